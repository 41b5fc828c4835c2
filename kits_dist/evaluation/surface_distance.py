"""Distances between the surfaces of two masks: surface Dice, HD95, ASSD, as DeepMind's surface-distance defines them.

A surface element sits on a corner of the voxel grid whose eight voxels are neither all inside nor all outside. Its area
is that of the triangles which marching cubes would put there; its distance to another surface is that to the nearest
element of it. (Nikolov et al. 2018, arXiv:1809.04430; github.com/google-deepmind/surface-distance)
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

PERCENT = 95

# The 14 kinds of eight voxels around a corner, up to turning, mirroring and exchange of inside and outside. The key has
# bit 4d + 2h + w set where voxel (d, h, w) is inside. Marching cubes puts the vertices of its triangles halfway between
# an inner and an outer voxel; written here is each triangle's area vector without signs, in eighths of a voxel's faces
# across d, h and w. Scaled by the faces' areas, the length of that vector is the triangle's area at any spacing.
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
    corners: np.ndarray  # (N, 3) int64, in lexicographic order: corner (d, h, w) is the outer one of voxel (d, h, w)
    areas_mm2: np.ndarray  # (N,) float64


class SurfaceScores(NamedTuple):
    surface_dice: float | None  # None: no tolerance was given
    hd95_mm: float | None  # None: one side is empty, or both
    assd_mm: float | None


@functools.lru_cache(maxsize=64)
def element_areas_mm2(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """(256,) float64: area of the surface element for each way in which eight voxels can be inside or outside."""
    d, h, w = spacing_mm
    faces_mm2 = np.array([h * w, d * w, d * h])
    table = np.full(256, np.nan)
    for code, triangles in _TRIANGLES.items():
        eight = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        vectors = np.array(triangles, float).reshape(-1, 3) / 8
        for axes in itertools.permutations(range(3)):
            area = np.linalg.norm(vectors[:, axes] * faces_mm2, axis=1).sum()
            for steps in itertools.product((1, -1), repeat=3):
                turned = eight.transpose(axes)[tuple(slice(None, None, step) for step in steps)]
                same = int((turned.ravel() << np.arange(8)).sum())
                table[same] = table[255 - same] = area
    return table


def surface_of(
    mask: np.ndarray, spacing_mm: tuple[float, float, float], corner: tuple[int, ...] = (0, 0, 0)
) -> Surface:
    """(D, H, W) bool -> its surface; outside of the array nothing is inside, so cut the array to the mask first.

    corner   voxel of a larger grid at which the array begins; the surface's corners count from there
    """
    code = mask.view(np.uint8)
    for axis, shift in ((2, 1), (1, 2), (0, 4)):
        code = _with_next(code, axis, shift)
    at = np.flatnonzero(code - np.uint8(1) < 254)  # 0 and 255 are no surface
    corners = np.stack(np.unravel_index(at, code.shape), axis=1) + corner
    return Surface(corners, element_areas_mm2(tuple(map(float, spacing_mm)))[code.ravel()[at]])


def _with_next(code: np.ndarray, axis: int, shift: int) -> np.ndarray:
    """One longer along `axis`: each place holds the bits of the voxel before it, and `shift` bits higher those of its
    own."""
    shape = list(code.shape)
    shape[axis] += 1
    joined = np.zeros(shape, np.uint8)
    before, own = ([slice(None)] * 3 for _ in range(2))
    before[axis], own[axis] = slice(1, None), slice(None, -1)
    joined[tuple(before)] = code
    joined[tuple(own)] |= code << np.uint8(shift)
    return joined


def surface_scores(
    predicted: Surface, truth: Surface, spacing_mm: tuple[float, float, float], tolerance_mm: float | None = None
) -> SurfaceScores:
    """Agreement of two surfaces of one grid; it does not matter which is which.

    surface_dice   share of both areas that lies within the tolerance of the other surface; both empty 1, one empty 0
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
    assd = sum((mm * areas).sum() for mm, areas in sides) / total  # a dot product would wake BLAS threads for nothing
    return SurfaceScores(surface_dice, max(_percentile(*side) for side in sides), float(assd))


def nearest_mm(of: Surface, to: Surface, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """(N,) float64: distance from each element `of` one surface `to` the nearest element of another, not empty one."""
    mm = np.zeros(len(of.corners))
    apart = np.flatnonzero(~_contained(of.corners, to.corners))  # of a fair prediction half lies on the truth
    if len(apart):
        there = of.corners[apart]
        # without balancing and compacting the tree costs less than it saves: every point is asked once
        tree = cKDTree(to.corners * spacing_mm, balanced_tree=False, compact_nodes=False)
        nearest = tree.query(there * spacing_mm)[1]
        mm[apart] = np.sqrt((((there - to.corners[nearest]) * spacing_mm) ** 2).sum(axis=1))
    return mm


def _contained(corners: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(N,) bool: which corners are also `among` those, both in lexicographic order."""
    keys, others = (np.ravel_multi_index(c.T, (1 << 20,) * 3) for c in (corners, among))
    at = np.searchsorted(others, keys)
    return others[np.minimum(at, len(others) - 1)] == keys


def _percentile(mm: np.ndarray, areas: np.ndarray) -> float:
    """The distance within which 95 % of the area lies."""
    apart = mm > 0  # the others come first: they need no sorting
    order = np.argsort(mm[apart])
    mm, areas = np.append(0.0, mm[apart][order]), np.append(areas[~apart].sum(), areas[apart][order])
    within = np.cumsum(areas)
    return float(mm[np.searchsorted(within, within[-1] * PERCENT / 100)])
