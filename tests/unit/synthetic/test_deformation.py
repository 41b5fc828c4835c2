"""Deformed annotations: no label is invented or lost, and the map is smooth and invertible."""

import cc3d
import numpy as np
import pytest

from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.deformation import Deformation, deform, draw_deformation
from kits_dist.synthetic.shapes import SmoothField, grid_axes


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_no_deformation_changes_nothing(own):
    fields = tuple(SmoothField(rng(0), 45.0) for _ in range(3))
    still = Deformation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.0, fields)
    assert np.array_equal(deform(own.label, own.spacing_mm, still), own.label)
    larger = still._replace(scale=(1.1, 1.0, 1.0))
    grown = (deform(own.label, own.spacing_mm, larger) > 0).sum()
    assert grown / (own.label > 0).sum() == pytest.approx(1.1, abs=0.05)  # 9 mm slices: the ends are coarse


def test_a_kidney_that_the_scan_cuts_off_stays_cut_off():
    label = np.zeros((30, 40, 40), np.uint8)
    label[:20, 15:25, 15:25] = KIDNEY  # 100 mm
    fields = tuple(SmoothField(rng(0), 45.0) for _ in range(3))
    smaller = deform(label, (5.0, 2.0, 2.0), Deformation((0.0, 0.0, 0.0), (0.8, 1.0, 1.0), 0.0, fields))
    assert (smaller[:18, 15:25, 15:25] == KIDNEY).all()  # about its middle, 50 mm down, to 90 mm
    assert not smaller[18:].any()


@pytest.mark.parametrize("seed", range(4))
def test_labels_stay_labels_and_nothing_tears(own, seed):
    moved = deform(own.label, own.spacing_mm, draw_deformation(rng(seed)))
    assert moved.dtype == np.uint8 and moved.shape == own.label.shape
    assert set(np.unique(moved)) == set(np.unique(own.label)) and not np.array_equal(moved, own.label)
    for value in np.unique(own.label)[1:]:
        assert 0.6 < (moved == value).sum() / (own.label == value).sum() < 1.6  # 1.15^3 at most, and the grid
    counts = [cc3d.statistics(cc3d.connected_components(one > 0))["voxel_counts"] for one in (own.label, moved)]
    assert len({(n[1:] > 50).sum() for n in counts}) == 1  # as many kidneys as before


@pytest.mark.parametrize("seed", range(8))
def test_thin_and_tiny_pieces_do_not_vanish(seed):
    label = np.zeros((20, 60, 60), np.uint8)
    label[4:16, 20:40, 15:30] = KIDNEY
    label[6:14, 22:38, 30] = TUMOR  # a sheet, one voxel thick
    label[10, 30, 20], label[4, 45, 40] = CYST, CYST  # single voxels, in the kidney and alone
    moved = deform(label, (3.0, 1.5, 1.5), draw_deformation(rng(seed)))
    assert (moved == TUMOR).sum() > 0.6 * (label == TUMOR).sum()
    assert cc3d.connected_components(moved == CYST).max() >= 2


def test_deformation_never_folds_and_its_inverse_is_one():
    axes = grid_axes((41, 41, 41), (5.0, 5.0, 5.0), (-100.0,) * 3)
    for seed in range(20):
        one = draw_deformation(rng(seed))
        source = one.source_mm(axes)
        slopes = np.stack([np.stack(np.gradient(part, 5.0)) for part in source])  # (3, 3, D, H, W)
        assert np.linalg.det(slopes.transpose(2, 3, 4, 0, 1)).min() > 0.1
        voxel = (7, 20, 33)
        there = [float(a[i]) for a, i in zip(axes, voxel, strict=True)]
        assert one.target_mm(source[:, *voxel]) == pytest.approx(there, abs=0.05)
