"""Surfaces of a label map as a picture: rays through the volume, no mesh, all lengths in mm."""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from kits_dist.labels import LABEL_COLORS, LABELS
from kits_dist.utils.components import bounding_box

# sd of the Gaussian that rounds off voxels, along each axis at least so many mm and voxels. A sheet of one voxel keeps
# its surface (0.6 in its middle), a single voxel (0.6^3) is not drawn.
SMOOTH_MM, SMOOTH_VOXELS = 1.0, 0.6
VEIL = 0.45  # how much of the kidney's surface is seen where a tumor or cyst lies behind it
BACKGROUND_GREY = 24
AMBIENT = 0.3  # brightness of what turns away from the light
LIGHT = np.array([-0.5, -0.35, -0.8])  # towards it: above, left, the viewer


class Viewpoint(NamedTuple):
    """An orthographic camera in front of the patient, patient's right on the left, head up."""

    azimuth_deg: float = 25.0  # walking from the front towards the patient's left
    elevation_deg: float = 15.0  # and looking down by this

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit vectors of (D, H, W) mm: down the picture, to the right in it, away from the viewer."""
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
    """Where picture points lie in a volume: voxel index = matrix @ (row, column, depth in pixels) + offset."""

    matrix: np.ndarray  # (3, 3)
    offset: np.ndarray  # (3,)
    side_px: int
    mm_per_px: float


def fit_camera(
    shape: tuple[int, ...], spacing_mm: tuple[float, float, float], most_px: int, viewpoint: Viewpoint
) -> Camera:
    """A volume of `shape` fills the picture, whatever is in it: so label maps of one shape are drawn at one scale.

    The picture has at most `most_px` pixels a side, and no more than two for the smallest side of a voxel.
    """
    axes = np.stack(viewpoint.axes)
    high_mm, wide_mm, deep_mm = np.abs(axes) @ (np.array(shape) * spacing_mm) + 4 * SMOOTH_MM  # of the turned box
    mm_per_px = max(high_mm / most_px, wide_mm / most_px, min(spacing_mm) / 2)
    side_px = round(max(high_mm, wide_mm) / mm_per_px)
    matrix = axes.T * mm_per_px / np.array(spacing_mm)[:, None]
    middle_px = np.array([(side_px - 1) / 2, (side_px - 1) / 2, deep_mm / mm_per_px / 2])
    return Camera(matrix, (np.array(shape) - 1) / 2 - matrix @ middle_px, side_px, float(mm_per_px))


def render(labels: np.ndarray, spacing_mm: tuple[float, float, float], camera: Camera) -> np.ndarray:
    """(D, H, W) uint8 -> (side_px, side_px, 3) uint8: kidney, cyst and tumor as shaded surfaces.

    A surface is where the smoothed mask is 0.5, as marching cubes would have it.
    """
    surfaces = [_surface(labels == LABELS[name], spacing_mm, camera) for name in LABEL_COLORS]  # the kidney first
    depth = np.stack([surface[0] for surface in surfaces])
    color = np.stack(
        [surface[1][..., None] * np.float32(c) for surface, c in zip(surfaces, LABEL_COLORS.values(), strict=True)]
    )
    picture = _picked(color, depth.argmin(axis=0))
    # the kidney is a veil over what lies within or behind it
    veiled = (depth.argmin(axis=0) == 0) & np.isfinite(depth[1:].min(axis=0))
    picture[veiled] = VEIL * picture[veiled] + (1 - VEIL) * _picked(color[1:], depth[1:].argmin(axis=0))[veiled]
    picture[~np.isfinite(depth.min(axis=0))] = BACKGROUND_GREY
    return np.clip(picture, 0, 255).astype(np.uint8)


def _picked(color: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """(L, h, w, 3) by (h, w) -> (h, w, 3)."""
    return np.take_along_axis(color, layer[None, ..., None], axis=0)[0]


def _surface(mask: np.ndarray, spacing_mm: tuple[float, float, float], camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """(side_px, side_px) depth in pixels, infinite where no ray hits, and brightness 0..1."""
    depth = np.full((camera.side_px, camera.side_px), np.inf)
    brightness = np.zeros(depth.shape, np.float32)
    box = bounding_box(mask)
    if not mask[box].size:
        return depth, brightness
    sd = np.maximum(SMOOTH_MM / np.array(spacing_mm), SMOOTH_VOXELS)
    around = np.ceil(3 * sd).astype(int)  # the surface lies up to half a voxel outside of the mask
    padded = np.pad(mask[box], [(n, n) for n in around]).astype(np.float32)
    soft = ndimage.gaussian_filter(padded, sd)
    low, high = _seen(box, camera)
    offset = camera.offset + camera.matrix @ low - [part.start for part in box] + around
    seen = ndimage.affine_transform(soft, camera.matrix, offset, tuple(high - low), order=1)
    inside = seen > 0.5
    hit = inside.any(axis=2)
    rows, columns = np.nonzero(hit)
    first = inside.argmax(axis=2)[hit]
    outer, inner = seen[rows, columns, np.maximum(first - 1, 0)], seen[rows, columns, first]
    points = np.stack([rows, columns, first - np.clip((inner - 0.5) / np.maximum(inner - outer, 1e-6), 0, 1)])
    # half a voxel: within one the interpolated mask has one slope, and the surface would show facets
    steps = (1 + max(spacing_mm) / camera.mm_per_px / 2) * np.eye(3)[:, :, None]
    rise = [
        ndimage.map_coordinates(seen, points + step, order=1) - ndimage.map_coordinates(seen, points - step, order=1)
        for step in steps
    ]
    normal = -np.stack(rise) / np.maximum(np.linalg.norm(rise, axis=0), 1e-6)  # out of the body
    at = rows + low[0], columns + low[1]
    depth[at] = points[2] + low[2]
    brightness[at] = AMBIENT + (1 - AMBIENT) * np.clip(LIGHT @ normal / np.linalg.norm(LIGHT), 0, 1)
    return depth, brightness


def _seen(box: tuple[slice, ...], camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """The part of (rows, columns, depths) that a box of voxels can fill: no ray is traced beside it."""
    corners = np.array(list(itertools.product(*((part.start - 0.5, part.stop - 0.5) for part in box))))
    points = np.linalg.solve(camera.matrix, (corners - camera.offset).T)
    margin = 3 * SMOOTH_MM / camera.mm_per_px + 2
    low = np.floor(points.min(axis=1) - margin).astype(int)
    high = np.ceil(points.max(axis=1) + margin).astype(int) + 1
    low[:2], high[:2] = np.maximum(low[:2], 0), np.minimum(high[:2], camera.side_px)
    return low, high
