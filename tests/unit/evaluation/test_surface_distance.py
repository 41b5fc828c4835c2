"""Surface elements and distances, in closed form and against a computation that looks at every pair."""

import itertools
import math

import numpy as np
import pytest

from kits_dist.evaluation.surface_distance import element_areas_mm2, nearest_mm, surface_of, surface_scores


def scores(a, b, spacing_mm, tolerance_mm=None):
    return surface_scores(surface_of(a, spacing_mm), surface_of(b, spacing_mm), spacing_mm, tolerance_mm)


def blob(rng, shape=(9, 11, 10)) -> np.ndarray:
    """Smooth enough to have an inside, rough enough to have every kind of corner."""
    noise = rng.normal(size=shape)
    for axis in range(3):
        noise = noise + np.roll(noise, 1, axis)
    return noise > rng.uniform(-1, 1)


def box(shape, start, size) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = True
    return mask


def areas_of_a_box(d, h, w):
    """Area of one element: on a face across d, h, w; on an edge along d, h, w; on a corner."""
    faces = h * w, d * w, d * h
    # half of the rectangle that cuts an edge of length d: its sides are d and the diagonal of half a voxel's face
    edges = d * math.hypot(h, w) / 2, h * math.hypot(d, w) / 2, w * math.hypot(d, h) / 2
    return faces, edges, math.sqrt(sum(face**2 for face in faces)) / 8


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.7)])
def test_the_surface_of_a_box_is_faces_edges_and_corners(spacing):
    size = a, b, c = 3, 4, 6
    faces, edges, corner = areas_of_a_box(*spacing)
    surface = surface_of(box((9, 9, 9), (2, 1, 3), size), spacing)
    expected = 2 * ((b - 1) * (c - 1) * faces[0] + (a - 1) * (c - 1) * faces[1] + (a - 1) * (b - 1) * faces[2])
    expected += 4 * ((a - 1) * edges[0] + (b - 1) * edges[1] + (c - 1) * edges[2]) + 8 * corner
    assert surface.areas_mm2.sum() == pytest.approx(expected, rel=1e-12)
    assert len(surface.corners) == 4 * 5 * 7 - 2 * 3 * 5  # all corners of its voxels but those inside
    assert surface.corners.min(axis=0).tolist() == [2, 1, 3] and surface.corners.max(axis=0).tolist() == [5, 5, 9]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.7)])
def test_surface_dice_of_a_cube_against_a_shifted_cube(spacing):
    n, k = 6, 2  # edge and shift along w, in voxels
    a, b = (box((10, 10, 14), (2, 2, start), (n, n, n)) for start in (2, 2 + k))
    faces, edges, corner = areas_of_a_box(*spacing)
    # what they share: the rings around w of the part that overlaps. n - k rings of four sides and four edges ...
    shared = (n - k) * (2 * (n - 1) * (faces[0] + faces[1]) + 4 * edges[2])
    # ... and the last ring, the rim of the one cube's end, on the sides of the other
    shared += 2 * (n - 1) * (edges[0] + edges[1]) + 4 * corner
    whole = 2 * (n - 1) ** 2 * sum(faces) + 4 * (n - 1) * sum(edges) + 8 * corner
    assert scores(a, b, spacing, 0.1).surface_dice == pytest.approx(shared / whole, rel=1e-12)
    assert scores(a, b, spacing, k * spacing[2]).surface_dice == 1  # no element lies further away, and <= counts
    far = np.roll(a, 1, axis=0)  # shifted across w by one voxel of spacing[0] mm
    assert scores(a, far, spacing, spacing[0]).surface_dice == 1
    assert scores(a, far, spacing, spacing[0] * 0.999).surface_dice < 1


def test_equal_masks_and_empty_masks():
    a, none = box((5, 5, 5), (1, 1, 1), (2, 3, 2)), np.zeros((5, 5, 5), bool)
    assert scores(a, a, (3, 1, 1), 1.0) == (1, 0, 0)
    assert scores(none, none, (3, 1, 1), 1.0) == (1, None, None)
    assert scores(a, none, (3, 1, 1), 1.0) == scores(none, a, (3, 1, 1), 1.0) == (0, None, None)
    assert scores(a, a, (3, 1, 1)).surface_dice is None  # no tolerance, no figure


def test_distances_of_two_voxels_are_known():
    # corners of one voxel and of another 3 further along w: 4 pairs at 3 - 1 = 2 voxels, 4 at 3 voxels
    a, b = box((3, 3, 7), (1, 1, 1), (1, 1, 1)), box((3, 3, 7), (1, 1, 4), (1, 1, 1))
    result = scores(a, b, (5.0, 1.0, 0.5), 1.0)
    assert result.hd95_mm == 1.5 and result.assd_mm == pytest.approx((1.0 + 1.5) / 2)
    assert result.surface_dice == 0.5  # the near halves, at 2 x 0.5 mm


def brute_force(a, b, spacing_mm):
    """(HD95, ASSD) from all corners, one by one, and the distances of all pairs."""
    sides = []
    table = element_areas_mm2(spacing_mm)
    for mask in (a, b):
        padded, elements = np.pad(mask, 1), []
        for corner in itertools.product(*(range(n + 1) for n in mask.shape)):
            eight = padded[tuple(slice(c, c + 2) for c in corner)]
            if 0 < eight.sum() < 8:
                code = sum(int(inside) << bit for bit, inside in enumerate(eight.ravel()))
                elements.append((np.array(corner) * spacing_mm, table[code]))
        sides.append(elements)
    percentiles, weighted, total = [], 0.0, 0.0
    for mine, other in (sides, sides[::-1]):
        there = np.array([place for place, _ in other])
        pairs = sorted((float(np.linalg.norm(there - place, axis=1).min()), area) for place, area in mine)
        whole = sum(area for _, area in pairs)
        below = 0.0
        for mm, area in pairs:
            below += area
            if below >= 0.95 * whole * (1 - 1e-12):
                percentiles.append(mm)
                break
        weighted, total = weighted + sum(mm * area for mm, area in pairs), total + whole
    return max(percentiles), weighted / total


@pytest.mark.parametrize("seed", range(6))
def test_hd95_and_assd_equal_a_look_at_every_pair(seed):
    rng = np.random.default_rng(seed)
    a, b = (blob(rng, (6, 7, 6)) for _ in range(2))
    if seed == 5:
        b = box((6, 7, 6), (0, 0, 0), (1, 2, 1))  # one small corner of the grid
    spacing = tuple(rng.uniform(0.4, 5, 3))
    hd95, assd = brute_force(a, b, spacing)
    result = scores(a, b, spacing)
    assert result.hd95_mm == pytest.approx(hd95, abs=1e-9) and result.assd_mm == pytest.approx(assd, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_axis_order_padding_and_exchange_change_nothing(seed):
    rng = np.random.default_rng(seed)
    a, b = (blob(rng) for _ in range(2))
    spacing = tuple(rng.uniform(0.4, 5, 3))
    tolerance = float(np.mean(spacing))
    expected = pytest.approx(scores(a, b, spacing, tolerance), abs=1e-9)
    assert scores(b, a, spacing, tolerance) == expected
    for axes in itertools.permutations(range(3)):
        turned = tuple(spacing[axis] for axis in axes)
        assert scores(a.transpose(axes), b.transpose(axes), turned, tolerance) == expected
        assert scores(a.transpose(axes)[::-1], b.transpose(axes)[::-1], turned, tolerance) == expected
    padded = [np.pad(mask, ((2, 1), (0, 3), (4, 0))) for mask in (a, b)]
    assert scores(*padded, spacing, tolerance) == expected
    inside_out = [~mask[1:-1, 1:-1, 1:-1] for mask in (np.pad(a, 2), np.pad(b, 2))]
    assert len(surface_of(inside_out[0], spacing).corners) > len(
        surface_of(a, spacing).corners
    )  # the grid's own border


def test_a_tenfold_spacing_is_tenfold_distance_and_another_surface_dice():
    a, b = (blob(np.random.default_rng(seed)) for seed in (1, 2))
    small, large = scores(a, b, (1.0, 0.8, 0.8), 1.0), scores(a, b, (10.0, 8.0, 8.0), 1.0)
    assert large.hd95_mm == pytest.approx(10 * small.hd95_mm) and large.assd_mm == pytest.approx(10 * small.assd_mm)
    assert large.surface_dice < small.surface_dice
    assert scores(a, b, (10.0, 8.0, 8.0), 10.0).surface_dice == pytest.approx(small.surface_dice)


def test_a_surface_knows_where_its_array_lies_in_the_grid():
    whole = box((12, 12, 12), (5, 6, 7), (3, 2, 4))
    cut = surface_of(whole[4:9, 5:9, 6:12], (1, 1, 1), corner=(4, 5, 6))
    assert np.array_equal(cut.corners, surface_of(whole, (1, 1, 1)).corners)


def test_elements_on_the_other_surface_are_at_exactly_0():
    rng = np.random.default_rng(0)
    a = surface_of(blob(rng), (0.1, 0.7, 1.3))
    assert not nearest_mm(a, a, (0.1, 0.7, 1.3)).any()


def test_the_table_is_whole_and_knows_no_axis():
    table = element_areas_mm2((1.0, 1.0, 1.0))
    assert table[0] == table[255] == 0 and (table[1:255] > 0).all()
    assert np.array_equal(table, table[::-1])  # inside and outside exchanged
    assert table[1] == pytest.approx(math.sqrt(3) / 8) and table[0b00001111] == 1
