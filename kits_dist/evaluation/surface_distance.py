"""Distances between the surfaces of two masks: surface Dice, HD95, ASSD, as DeepMind's surface-distance defines them.

A surface element is a corner of the voxel grid whose eight voxels are neither all inside nor all outside. Its area is
that of the triangles which marching cubes would put there; its distance to another surface is the distance to the
nearest element of that surface. (Nikolov et al. 2018, arXiv:1809.04430; github.com/google-deepmind/surface-distance)
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np

PERCENT = 95

# The 14 configurations of the eight voxels around a corner, up to rotation, reflection and exchange of inside and
# outside. The key has bit 4d + 2h + w set where voxel (d, h, w) is inside. Marching cubes puts the vertices of its
# triangles halfway between an inner and an outer voxel. The value holds each triangle's area vector without signs, in
# eighths of a voxel's faces perpendicular to d, h and w: scaled by the faces' areas, its length is the triangle's area
# at any spacing.
_TRIANGLES = {
    0b00000000: (),
    0b00000001: ((1, 1, 1),),
    0b00000011: ((2, 2, 0), (2, 2, 0)),
    0b00000110: ((1, 1, 1), (1, 1, 1)),
    0b00000111: ((1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00001111: ((4, 0, 0), (4, 0, 0)),
    0b00010110: ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    0b00010111: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    0b00011000: ((1, 1, 1), (1, 1, 1)),
    0b00011001: ((1, 1, 1), (0, 2, 2), (0, 2, 2)),
    0b00011011: ((1, 1, 1), (0, 2, 2), (2, 0, 2), (3, 3, 3)),
    0b00011110: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00111100: ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0)),
    0b01101001: ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
}


class Surface(NamedTuple):
    """The surface elements of a mask."""

    corners: np.ndarray  # (N, 3) int64, in lexicographic order: corner (d, h, w) is the outer one of voxel (d, h, w)
    areas_mm2: np.ndarray  # (N,) float64


class SurfaceScores(NamedTuple):
    """Agreement of two surfaces."""

    surface_dice: float | None  # None: no tolerance was given
    hd95_mm: float | None  # None: one surface is empty, or both
    assd_mm: float | None


@functools.lru_cache(maxsize=64)
def element_areas_mm2(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return (256,) float64: the area of the surface element for each configuration of eight voxels."""
    d, h, w = spacing_mm
    faces_mm2 = np.array([h * w, d * w, d * h])
    table = np.full(256, np.nan)
    for code, triangles in _TRIANGLES.items():
        eight = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        vectors = np.array(triangles, float).reshape(-1, 3) / 8
        for axes in itertools.permutations(range(3)):
            area = np.linalg.norm(vectors[:, axes] * faces_mm2, axis=1).sum()
            for steps in itertools.product((1, -1), repeat=3):
                rotated = eight.transpose(axes)[tuple(slice(None, None, step) for step in steps)]
                equivalent = int((rotated.ravel() << np.arange(8)).sum())
                table[equivalent] = table[255 - equivalent] = area
    return table


def surface_of(
    mask: np.ndarray, spacing_mm: tuple[float, float, float], corner: tuple[int, ...] = (0, 0, 0)
) -> Surface:
    """Return the surface of a (D, H, W) bool mask; voxels beyond the array count as outside.

    corner   voxel of a larger grid at which the array begins; added to the surface's corners

    The cost follows the size of the array: crop it to the mask first.
    """
    code = mask.view(np.uint8)
    for axis, shift in ((2, 1), (1, 2), (0, 4)):
        code = _with_next(code, axis, shift)
    at = np.flatnonzero(code - np.uint8(1) < 254)  # 0 and 255 are no surface
    corners = np.stack(np.unravel_index(at, code.shape), axis=1) + corner
    d, h, w = map(float, spacing_mm)
    return Surface(corners, element_areas_mm2((d, h, w))[code.ravel()[at]])


def _with_next(code: np.ndarray, axis: int, shift: int) -> np.ndarray:
    """Join each voxel's bits with those of the next along `axis`, `shift` bits higher; the axis grows by one."""
    before, after = ([(0, 0)] * 3 for _ in range(2))
    before[axis] = (1, 0)
    after[axis] = (0, 1)
    return np.pad(code, before) | np.pad(code << np.uint8(shift), after)


def surface_scores(
    predicted: Surface, truth: Surface, spacing_mm: tuple[float, float, float], tolerance_mm: float | None = None
) -> SurfaceScores:
    """Measure the agreement of two surfaces of one grid; the result is symmetric in them.

    surface_dice   share of both areas within the tolerance of the other surface; both empty 1, one empty 0
    hd95_mm        the larger of the two directions' 95th percentiles of the distance, weighted by area
    assd_mm        mean distance over both surfaces, weighted by area
    """
    if not len(predicted.corners) or not len(truth.corners):
        agree = float(len(predicted.corners) == len(truth.corners))
        return SurfaceScores(None if tolerance_mm is None else agree, None, None)
    sides = [
        (nearest_mm(predicted, truth, spacing_mm), predicted.areas_mm2),
        (nearest_mm(truth, predicted, spacing_mm), truth.areas_mm2),
    ]
    total = sum(areas.sum() for _, areas in sides)
    surface_dice = None
    if tolerance_mm is not None:
        surface_dice = float(sum(areas[mm <= tolerance_mm].sum() for mm, areas in sides) / total)
    # a dot product would start BLAS threads, which do not pay off here
    assd = sum((mm * areas).sum() for mm, areas in sides) / total
    return SurfaceScores(surface_dice, max(_percentile(*side) for side in sides), float(assd))


def nearest_mm(of: Surface, to: Surface, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return (N,) float64: the distance from each element `of` a surface `to` the nearest of another, non-empty one."""
    mm = np.zeros(len(of.corners))
    apart = np.flatnonzero(~_contained(of.corners, to.corners))  # half of a fair prediction's surface lies on the truth
    if len(apart):
        from kits_dist.evaluation.nearest import nearest_squared  # imports Numba: wrong arguments are answered first

        points = (np.ascontiguousarray(corners, np.int64) for corners in (of.corners[apart], to.corners))
        mm[apart] = np.sqrt(nearest_squared(*points, *spacing_mm))
    return mm


def _contained(corners: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return (N,) bool: which corners are also `among` the others, both in lexicographic order."""
    keys, others = (np.asarray(np.ravel_multi_index(tuple(c.T), (1 << 20,) * 3)) for c in (corners, among))
    at = np.searchsorted(others, keys)
    return others[np.minimum(at, len(others) - 1)] == keys


def _percentile(mm: np.ndarray, areas: np.ndarray) -> float:
    """Return the distance within which 95 % of the area lies."""
    apart = mm > 0  # the others come first and need no sorting
    order = np.argsort(mm[apart])
    mm = np.append(0.0, mm[apart][order])
    areas = np.append(areas[~apart].sum(), areas[apart][order])
    within = np.cumsum(areas)
    return float(mm[np.searchsorted(within, within[-1] * PERCENT / 100)])
