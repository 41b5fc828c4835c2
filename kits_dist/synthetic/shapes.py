"""Geometry and noise of the phantom: signed distances and smooth random fields as functions of coordinates in mm.

A case therefore looks the same at any voxel spacing. Positions are (z, y, x) with z to caudal, y to posterior, x to the
patient's left: the directions in which KiTS slice, row and column indices grow.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from kits_dist.utils.components import Box3

Vec3 = tuple[float, float, float]
FIELD_EXTENT_MM = 640.0  # smooth fields cover +-320 mm (KiTS scans at hand: up to 295 mm tall)


def vec3(values: Iterable[float]) -> Vec3:
    """Return three values as a tuple, without converting them: the precision of NumPy scalars carries into products."""
    z, y, x = values
    return z, y, x


def box3(slices: Iterable[slice]) -> Box3:
    """Return three slices as a tuple."""
    z, y, x = slices
    return z, y, x


def distance_mm(mask: np.ndarray, spacing_mm: Iterable[float]) -> np.ndarray:
    """Return the distance of each voxel of `mask` to the nearest one outside it, 0 outside; float64."""
    distance = ndimage.distance_transform_edt(mask, sampling=tuple(spacing_mm))
    assert isinstance(distance, np.ndarray)  # the stubs allow for other results
    return distance


class Axes(NamedTuple):
    """Voxel centers of a rectangular grid, ascending float32 vectors in mm from the kidneys' middle."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (D, H, W)."""
        return len(self.z), len(self.y), len(self.x)

    def crop(self, box: Box3) -> "Axes":
        """Return the axes of the voxels in `box`."""
        return Axes(self.z[box[0]], self.y[box[1]], self.x[box[2]])

    def box(self, low_mm: Vec3, high_mm: Vec3) -> Box3:
        """Return the index box of the voxel centers inside [low_mm, high_mm], which may be empty."""
        bounds = [np.searchsorted(a, (lo, hi)) for a, lo, hi in zip(self, low_mm, high_mm, strict=True)]
        return box3(slice(int(start), int(stop)) for start, stop in bounds)

    def mesh(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return broadcastable coordinates (D, 1, 1), (1, H, 1), (1, 1, W)."""
        return self.z[:, None, None], self.y[None, :, None], self.x[None, None, :]


def is_empty(box: Box3) -> bool:
    """Return whether a box holds no voxel."""
    return any(s.stop <= s.start for s in box)


def grid_axes(shape: tuple[int, int, int], spacing_mm: Vec3, first_mm: Vec3) -> Axes:
    """Return the axes of a grid whose voxel (0, 0, 0) has its center at `first_mm`."""
    triples = zip(shape, spacing_mm, first_mm, strict=True)
    return Axes(*(np.arange(n, dtype=np.float32) * np.float32(s) + np.float32(f) for n, s, f in triples))


def coarse_axes(axes: Axes, step_mm: Vec3) -> Axes:
    """Return axes of the same extent with steps near `step_mm`; a direction that is already that coarse is kept."""

    def one(a: np.ndarray, step: float) -> np.ndarray:
        extent = float(a[-1] - a[0])
        n = int(np.ceil(extent / step)) + 1
        return a if n >= len(a) else np.linspace(a[0], a[-1], n, dtype=np.float32)

    return Axes(*(one(a, s) for a, s in zip(axes, step_mm, strict=True)))


def interpolate(volume: np.ndarray, source: Axes, target: Axes) -> np.ndarray:
    """Interpolate a volume (D, H, W) trilinearly from `source` to float32 on `target`; outside, edge values repeat.

    Gathers instead of matrix products give the same bits with any number of BLAS threads.
    """
    out = volume
    for dim in range(3):
        a, t = source[dim], target[dim]
        if a is t or (len(a) == len(t) and np.array_equal(a, t)):
            continue
        low = np.clip(np.searchsorted(a, t, side="right") - 1, 0, max(len(a) - 2, 0))
        high = np.minimum(low + 1, len(a) - 1)
        gap = np.where(high > low, a[high] - a[low], 1.0)
        weight = (
            np.clip((t - a[low]) / gap, 0.0, 1.0).astype(np.float32).reshape([-1 if d == dim else 1 for d in range(3)])
        )
        lower = np.take(out, low, axis=dim)
        upper = np.take(out, high, axis=dim)
        upper -= lower
        upper *= weight
        upper += lower
        out = upper
    return np.asarray(out, np.float32)


class SmoothField:
    """A random field with zero mean and sd about 1 that varies over `scale_mm`, with the same values at any spacing."""

    def __init__(self, rng: Generator, scale_mm: float) -> None:
        n = int(FIELD_EXTENT_MM / scale_mm) + 1
        first = -FIELD_EXTENT_MM / 2
        self.knots = grid_axes((n, n, n), (scale_mm, scale_mm, scale_mm), (first, first, first))
        white = rng.standard_normal((n, n, n), dtype=np.float32)
        for dim in range(3):  # 1-2-1 smoothing keeps linear interpolation from showing its facets
            white = white + 0.5 * (np.roll(white, 1, dim) + np.roll(white, -1, dim))
        self.values = white * np.float32(1.3 / 1.5**1.5)  # 1-2-1 has norm^2 1.5; 1.3: interpolation

    def at(self, axes: Axes) -> np.ndarray:
        """Return the field at `axes`, float32 of axes.shape."""
        # Only the knots around the box are interpolated: most boxes are an organ, not the body.
        box = box3(
            slice(max(int(np.searchsorted(k, a[0])) - 2, 0), int(np.searchsorted(k, a[-1])) + 2)
            for k, a in zip(self.knots, axes, strict=True)
        )
        if any(s.stop - s.start < 1 or s.start >= len(self.knots.z) for s in box):
            return np.zeros(axes.shape, np.float32)
        return interpolate(self.values[box], self.knots.crop(box), axes)


class Ellipsoid(NamedTuple):
    """Center and semi-axes in mm, (z, y, x); `turn` (3, 3) maps world offsets to the axes of the ellipsoid."""

    center: Vec3
    semi: Vec3
    turn: np.ndarray = np.eye(3)

    def box(self, axes: Axes, margin_mm: float) -> Box3:
        """Return the index box that holds the ellipsoid and a margin."""
        reach = np.sqrt(((np.asarray(self.turn).T * np.asarray(self.semi)) ** 2).sum(1)) + margin_mm
        center = np.asarray(self.center)
        return axes.box(vec3(center - reach), vec3(center + reach))

    def distance(self, axes: Axes) -> np.ndarray:
        """Return the signed distance to the surface in mm, positive inside, exact to first order near it; float32."""
        offsets = [m - np.float32(c) for m, c in zip(axes.mesh(), self.center, strict=True)]
        k1 = k2 = np.float32(0.0)
        for row, semi in zip(np.asarray(self.turn, np.float32), self.semi, strict=True):
            own = (row[0] * offsets[0] + row[1] * offsets[1] + row[2] * offsets[2]) * np.float32(1.0 / semi)
            own = own * own
            k1 = k1 + own
            k2 = k2 + own * np.float32(1.0 / semi**2)
        k1 = np.sqrt(k1)
        # k1 (1 - k1) / |p / s^2| is https://iquilezles.org/articles/ellipsoids/ with the sign turned
        return k1 * (1.0 - k1) / np.sqrt(np.maximum(k2, 1e-8)) + (k1 < 1e-3) * np.float32(min(self.semi))


def capsule_distance(axes: Axes, start: Vec3, end: Vec3, radius_mm: float) -> np.ndarray:
    """Return the signed distance (positive inside) to a tube of `radius_mm` around a segment; float32."""
    a = np.asarray(start, np.float32)
    ab = np.asarray(end, np.float32) - a
    oz, oy, ox = (m - c for m, c in zip(axes.mesh(), a, strict=True))
    t = np.clip((oz * ab[0] + oy * ab[1] + ox * ab[2]) / np.float32(max(float(ab @ ab), 1e-6)), 0.0, 1.0)
    return np.float32(radius_mm) - np.sqrt((oz - t * ab[0]) ** 2 + (oy - t * ab[1]) ** 2 + (ox - t * ab[2]) ** 2)


def superellipse_distance(y: np.ndarray, x: np.ndarray, semi_y: float, semi_x: float, power: float = 2.4) -> np.ndarray:
    """Return the approximate signed distance in mm (positive inside) to a trunk outline.

    y (H, 1), x (1, W) -> (H, W)
    """
    u, v = np.abs(y) / semi_y, np.abs(x) / semi_x
    r = (u**power + v**power) ** (1.0 / power)
    return (1.0 - r) * np.hypot(y, x) / np.maximum(r, 1e-3) + (r < 1e-3) * min(semi_y, semi_x)


def rotation(about_z_deg: float, about_y_deg: float, about_x_deg: float) -> np.ndarray:
    """Return a (3, 3) rotation of (z, y, x) vectors: axial turn, then coronal (y), then sagittal (x) tilt."""
    cz, cy, cx = np.cos(np.deg2rad([about_z_deg, about_y_deg, about_x_deg]))
    sz, sy, sx = np.sin(np.deg2rad([about_z_deg, about_y_deg, about_x_deg]))
    turn_z = np.array([[1, 0, 0], [0, cz, -sz], [0, sz, cz]])
    turn_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    turn_x = np.array([[cx, -sx, 0], [sx, cx, 0], [0, 0, 1]])
    return turn_x @ turn_y @ turn_z


def scanner_noise(rng: Generator, shape: tuple[int, int, int], sd_hu: float, lag1: float) -> np.ndarray:
    """Draw Gaussian noise (D, H, W) float32 with in-plane lag-1 autocorrelation `lag1` (below 0.7), slices independent.

    Each direction is filtered with [a, 1, a], whose lag-1 autocorrelation is 2a / (1 + 2a^2).
    """
    a = 0.0 if lag1 == 0 else (1.0 - np.sqrt(1.0 - 2.0 * lag1**2)) / (2.0 * lag1)
    depth, height, width = shape
    white = rng.standard_normal((depth, height + 2, width + 2), dtype=np.float32)
    white *= np.float32(sd_hu / (1.0 + 2.0 * a * a))
    rows = white[:, :-2] + white[:, 2:]
    rows *= np.float32(a)
    rows += white[:, 1:-1]
    out = rows[:, :, :-2] + rows[:, :, 2:]
    out *= np.float32(a)
    out += rows[:, :, 1:-1]
    return out


def soften(volume: np.ndarray, side_weights: Vec3) -> np.ndarray:
    """Blur with [w, 1 - 2w, w] per direction (edges repeated), w <= 0.25: the scanner's point spread."""
    out = volume
    for dim, w in enumerate(side_weights):
        if out.shape[dim] < 2 or w <= 0:
            continue
        first, last = [slice(None)] * 3, [slice(None)] * 3
        first[dim], last[dim] = slice(1, None), slice(None, -1)
        step = out[tuple(first)] - out[tuple(last)]
        step *= np.float32(w)
        out = out.copy()
        out[tuple(last)] += step
        out[tuple(first)] -= step
    return out
