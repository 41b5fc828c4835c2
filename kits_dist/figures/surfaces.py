"""Render the surfaces of a label map by casting rays through the volume; no mesh, all lengths in mm."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from kits_dist.labels import LABEL_COLORS, LABELS
from kits_dist.utils.components import bounding_box

# sd of the Gaussian that smooths voxels, along each axis the larger of the two. A sheet of one voxel keeps its surface
# (0.6 in its middle), a single voxel (0.6^3) is not drawn.
SMOOTH_MM = 1.0
SMOOTH_VOXELS = 0.6
KIDNEY_OPACITY = 0.45  # where a tumor or cyst is behind its surface
BACKGROUND_GRAY = 24
AMBIENT = 0.3  # brightness of surfaces that face away from the light
LIGHT = np.array([-0.5, -0.35, -0.8])  # direction towards it: above, left, the viewer


class Viewpoint(NamedTuple):
    """The direction of an orthographic camera in front of the patient, patient's right on the left, head up."""

    azimuth_deg: float = 25.0  # from the front towards the patient's left
    elevation_deg: float = 15.0  # looking down

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return unit vectors in (D, H, W) mm: down the picture, to the right in it, away from the viewer."""
        azimuth, elevation = np.deg2rad([self.azimuth_deg, self.elevation_deg])
        level = np.array([0, np.cos(azimuth), -np.sin(azimuth)])
        right = np.array([0, np.sin(azimuth), np.cos(azimuth)])
        down = np.array([1.0, 0, 0])
        return (
            np.cos(elevation) * down - np.sin(elevation) * level,
            right,
            np.cos(elevation) * level + np.sin(elevation) * down,
        )


class Camera(NamedTuple):
    """Maps picture points into a volume: voxel index = matrix @ (row, column, depth in pixels) + offset."""

    matrix: np.ndarray  # (3, 3)
    offset: np.ndarray  # (3,)
    side_px: int
    mm_per_px: float


def fit_camera(
    shape: tuple[int, ...], spacing_mm: tuple[float, float, float], most_px: int, viewpoint: Viewpoint
) -> Camera:
    """Place the camera so that a volume of `shape` fills the picture: label maps of one shape get the same scale.

    The picture has at most `most_px` pixels a side, and at most two for the smallest side of a voxel.
    """
    axes = np.stack(viewpoint.axes)
    high_mm, wide_mm, deep_mm = np.abs(axes) @ (np.array(shape) * spacing_mm) + 4 * SMOOTH_MM  # of the rotated box
    mm_per_px = max(high_mm / most_px, wide_mm / most_px, min(spacing_mm) / 2)
    side_px = round(max(high_mm, wide_mm) / mm_per_px)
    matrix = axes.T * mm_per_px / np.array(spacing_mm)[:, None]
    middle_px = np.array([(side_px - 1) / 2, (side_px - 1) / 2, deep_mm / mm_per_px / 2])
    return Camera(matrix, (np.array(shape) - 1) / 2 - matrix @ middle_px, side_px, float(mm_per_px))


def render(labels: np.ndarray, spacing_mm: tuple[float, float, float], camera: Camera) -> np.ndarray:
    """Render kidney, cyst and tumor of (D, H, W) uint8 labels as shaded surfaces, (side_px, side_px, 3) uint8.

    A surface is where the smoothed mask is 0.5, as with marching cubes. The kidney is translucent where a tumor or cyst
    is inside or behind it.
    """
    surfaces = [_surface(labels == LABELS[name], spacing_mm, camera) for name in LABEL_COLORS]  # the kidney first
    depth = np.stack([surface_depth for surface_depth, _ in surfaces])
    colors = np.array(list(LABEL_COLORS.values()), np.float32)
    shaded = np.stack([brightness for _, brightness in surfaces])[..., None] * colors[:, None, None]

    nearest = depth.argmin(axis=0)
    picture = _take_layer(shaded, nearest)
    behind = _take_layer(shaded[1:], depth[1:].argmin(axis=0))
    translucent = (nearest == 0) & np.isfinite(depth[1:].min(axis=0))
    picture[translucent] = KIDNEY_OPACITY * picture[translucent] + (1 - KIDNEY_OPACITY) * behind[translucent]
    picture[~np.isfinite(depth.min(axis=0))] = BACKGROUND_GRAY
    return np.clip(picture, 0, 255).astype(np.uint8)


def _take_layer(colors: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Pick one of L layers for each pixel: (L, h, w, 3) colors and (h, w) indices -> (h, w, 3)."""
    return np.take_along_axis(colors, layer[None, ..., None], axis=0)[0]


def _surface(mask: np.ndarray, spacing_mm: tuple[float, float, float], camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Cast rays at one mask: (side_px, side_px) depth in pixels, infinite without a hit, and brightness 0..1."""
    depth = np.full((camera.side_px, camera.side_px), np.inf)
    brightness = np.zeros(depth.shape, np.float32)
    from scipy import ndimage  # half a second to import

    box = bounding_box(mask)
    if not mask[box].size:
        return depth, brightness

    sd = np.maximum(SMOOTH_MM / np.array(spacing_mm), SMOOTH_VOXELS)
    padding = np.ceil(3 * sd).astype(int)  # the surface is up to half a voxel outside of the mask
    padded = np.pad(mask[box], [(n, n) for n in padding]).astype(np.float32)
    smooth = ndimage.gaussian_filter(padded, sd)

    # sample along the rays: axis 2 is the depth
    low, high = _ray_bounds(box, camera)
    offset: Any = camera.offset + camera.matrix @ low - [part.start for part in box] + padding
    samples = ndimage.affine_transform(smooth, camera.matrix, offset, tuple(high - low), order=1)
    inside = samples > 0.5
    hit = inside.any(axis=2)
    rows, columns = np.nonzero(hit)
    first = inside.argmax(axis=2)[hit]
    outer = samples[rows, columns, np.maximum(first - 1, 0)]
    inner = samples[rows, columns, first]
    points = np.stack([rows, columns, first - np.clip((inner - 0.5) / np.maximum(inner - outer, 1e-6), 0, 1)])

    # half a voxel: within one voxel the interpolated mask has one slope, and the surface would show facets
    steps = (1 + max(spacing_mm) / camera.mm_per_px / 2) * np.eye(3)[:, :, None]
    gradient = np.stack(
        [
            ndimage.map_coordinates(samples, points + step, order=1)
            - ndimage.map_coordinates(samples, points - step, order=1)
            for step in steps
        ]
    )
    outward = -gradient / np.maximum(np.linalg.norm(gradient, axis=0), 1e-6)
    pixels = (rows + low[0], columns + low[1])
    depth[pixels] = points[2] + low[2]
    brightness[pixels] = AMBIENT + (1 - AMBIENT) * np.clip(LIGHT @ outward / np.linalg.norm(LIGHT), 0, 1)
    return depth, brightness


def _ray_bounds(box: tuple[slice, ...], camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest (row, column, depth) that a box of voxels can fill; no ray is cast outside."""
    corners = np.array(list(itertools.product(*((part.start - 0.5, part.stop - 0.5) for part in box))))
    points = np.linalg.solve(camera.matrix, (corners - camera.offset).T)
    margin = 3 * SMOOTH_MM / camera.mm_per_px + 2
    low = np.floor(points.min(axis=1) - margin).astype(int)
    high = np.ceil(points.max(axis=1) + margin).astype(int) + 1
    low[:2] = np.maximum(low[:2], 0)
    high[:2] = np.minimum(high[:2], camera.side_px)
    return low, high
