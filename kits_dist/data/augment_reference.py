"""What augmentation means, in NumPy: `apply`, with which every backend is compared.

First the one warp; then, each only where it was drawn: blur, contrast and brightness, gamma, noise; the result is
clipped to the HU window again.

Conventions, those of DALI's warp_affine: a pixel covers [i, i+1), its centre is at i + 0.5; the matrix maps an output
point (x, y) to the source point; images are linear, labels nearest; outside the slice there is level 0 and background.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import ndimage

from kits_dist.data.augment_params import Params
from kits_dist.data.store import Normalization


@lru_cache(maxsize=2)
def noise_bank(need: int) -> np.ndarray:
    """Fixed field of standard normals, 1-D float32; a sample's noise is `need` of them from its drawn offset.

    A bank makes noise a pure function of the sample (a DALI random operator depends on batch and order) and is faster
    than drawing: a slice instead of a generator.
    """
    generator = np.random.Generator(np.random.Philox(key=[0, 0]))
    return generator.standard_normal(max(2**22, 2 * need) + need, dtype=np.float32)


def bank_offsets(need: int) -> int:
    """How many offsets a sample that needs `need` normals can begin at."""
    return len(noise_bank(need)) - need


def apply(
    slab: np.ndarray,
    label: np.ndarray,
    params: Params,
    i: int,
    size_px: tuple[int, int],
    levels: int,
    norm: Normalization,
) -> tuple[np.ndarray, np.ndarray]:
    """The reference: sample i of `params` on (F, H, W) uint8 levels and (H, W) uint8 labels.

    Returns ((F, h, w) float32 normalised, (h, w) uint8).
    """
    image = warp_linear(slab, params.matrix[i], size_px)
    if params.blur[i] > 0:
        image = blur(image, params.blur[i])
    if params.linear[i]:
        image = np.clip(image * params.gain[i] + params.bias[i], 0, levels)
    if params.gamma[i] != 1:
        image = levels * (image / levels) ** params.gamma[i]
    if params.noise_sd[i] > 0:
        need = image.size
        noise = noise_bank(need)[params.noise_offset[i] :][:need].reshape(image.shape)
        image = np.clip(image + params.noise_sd[i] * noise, 0, levels)
    return ((image - norm.mean) / norm.sd).astype(np.float32), warp_nearest(label, params.matrix[i], size_px)


def blur(image: np.ndarray, sd_px: float) -> np.ndarray:
    """(F, h, w) -> (F, h, w) float32, each frame for itself; 3 sd wide, mirrored at the border without doubling it."""
    radius = math.ceil(3 * sd_px)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sd_px) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        image = ndimage.correlate1d(image, kernel, axis=axis, mode="mirror")
    return image.astype(np.float32)


def warp_linear(slab: np.ndarray, matrix: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """(F, H, W) -> (F, h, w) float32; taps outside the slice count as 0."""
    x, y = source_points(matrix, size_px)
    x, y = x - 0.5, y - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - left, y - top
    padded = np.pad(slab.astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    height, width = slab.shape[1:]

    def tap(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return padded[:, np.clip(row, -1, height) + 1, np.clip(column, -1, width) + 1]

    upper = tap(top, left) * (1 - fx) + tap(top, left + 1) * fx
    lower = tap(top + 1, left) * (1 - fx) + tap(top + 1, left + 1) * fx
    return (upper * (1 - fy) + lower * fy).astype(np.float32)


def warp_nearest(label: np.ndarray, matrix: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """(H, W) -> (h, w), 0 outside."""
    x, y = (np.floor(v).astype(int) for v in source_points(matrix, size_px))
    height, width = label.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(inside, label[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)], 0).astype(label.dtype)


def source_points(matrix: np.ndarray, size_px: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) x and y, float64, of where each output pixel's centre lies in the slice."""
    y, x = np.mgrid[: size_px[0], : size_px[1]] + 0.5
    m = matrix.astype(np.float64)
    return m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2]
