"""The reference for augmentation, in NumPy: every backend is compared with `apply`.

Steps: one warp; then, each only where it was drawn: blur, contrast and brightness, gamma, noise. After a step that can
leave the HU window, values are clipped to it.

Conventions are those of DALI's warp_affine: a pixel covers [i, i+1) and its center is at i + 0.5; the matrix maps an
output point (x, y) to the source point; images are interpolated linearly, labels take the nearest pixel; outside the
slice the level is 0 and the label background.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import ndimage

from kits_dist.data.augment_params import AugmentParams
from kits_dist.data.store import Normalization


@lru_cache(maxsize=2)
def noise_bank(size: int) -> np.ndarray:
    """Return the noise bank: one fixed 1-D field of float32 standard normals, the same in every process.

    size   normals that one sample takes: a slice of the bank that begins at the sample's noise_offset

    The bank makes noise a pure function of seed, round and sample, whereas the random operators of DALI depend on the
    batch and its order. A slice of an array is also faster than a generator per sample.
    """
    generator = np.random.Generator(np.random.Philox(key=[0, 0]))
    return generator.standard_normal(max(2**22, 2 * size) + size, dtype=np.float32)


def noise_offsets(size: int) -> int:
    """Return at how many places of the noise bank the noise of a sample of `size` normals can begin."""
    return len(noise_bank(size)) - size


def apply(
    slab: np.ndarray,
    label: np.ndarray,
    params: AugmentParams,
    i: int,
    size_px: tuple[int, int],
    levels: int,
    norm: Normalization,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the augmented sample i of `params`: (F, h, w) float32 normalized image and (h, w) uint8 label.

    slab      (F, H, W) uint8 levels, the slice and its neighbors
    label     (H, W) uint8
    size_px   (h, w)
    levels    highest level, the upper end of the HU window
    norm      mean and sd of levels
    """
    image = warp_linear(slab, params.matrix[i], size_px)
    if params.blur[i] > 0:
        image = blur(image, params.blur[i])
    if params.linear[i]:
        image = np.clip(image * params.gain[i] + params.bias[i], 0, levels)
    if params.gamma[i] != 1:
        image = levels * (image / levels) ** params.gamma[i]
    if params.noise_sd[i] > 0:
        noise = noise_bank(image.size)[params.noise_offset[i] :][: image.size]
        image = np.clip(image + params.noise_sd[i] * noise.reshape(image.shape), 0, levels)
    return ((image - norm.mean) / norm.sd).astype(np.float32), warp_nearest(label, params.matrix[i], size_px)


def blur(image: np.ndarray, sd_px: float) -> np.ndarray:
    """Blur (F, h, w) float32 frames by a Gaussian cut at 3 sd, mirrored at the border without repeating the edge."""
    radius = math.ceil(3 * sd_px)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sd_px) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        image = ndimage.correlate1d(image, kernel, axis=axis, mode="mirror")
    return image.astype(np.float32)


def warp_linear(slab: np.ndarray, matrix: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Warp (F, H, W) to (F, h, w) float32 by bilinear interpolation; pixels outside the slice count as 0."""
    x, y = source_points(matrix, size_px)
    left, top = np.floor(x - 0.5).astype(int), np.floor(y - 0.5).astype(int)
    fx, fy = x - 0.5 - left, y - 0.5 - top
    padded = np.pad(slab.astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    height, width = slab.shape[1:]

    def tap(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return padded[:, np.clip(row, -1, height) + 1, np.clip(column, -1, width) + 1]

    upper = tap(top, left) * (1 - fx) + tap(top, left + 1) * fx
    lower = tap(top + 1, left) * (1 - fx) + tap(top + 1, left + 1) * fx
    return (upper * (1 - fy) + lower * fy).astype(np.float32)


def warp_nearest(label: np.ndarray, matrix: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Warp (H, W) to (h, w) by nearest neighbor; 0 outside the slice."""
    x, y = (np.floor(v).astype(int) for v in source_points(matrix, size_px))
    height, width = label.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(inside, label[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)], 0).astype(label.dtype)


def source_points(matrix: np.ndarray, size_px: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y, each (h, w) float64: where the center of each output pixel lies in the slice."""
    y, x = np.mgrid[: size_px[0], : size_px[1]] + 0.5
    m = matrix.astype(np.float64)
    return m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2]
