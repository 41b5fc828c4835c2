import itertools

import numpy as np
import pytest

from kits_dist.imaging.foreground import check_grids, crop_to_common_box, foreground_of, read_foreground
from kits_dist.imaging.nifti import Volume, kits_geometry, read_labels, read_labels_view, write_nifti
from kits_dist.utils.components import bounding_box
from kits_dist.utils.errors import InputError

SPACING = (3.0, 0.8, 0.7)


def labels_at(*voxels, shape=(5, 6, 7)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for number, voxel in enumerate(voxels):
        labels[voxel] = 1 + number % 3
    return labels


def foreground(*voxels, shape=(5, 6, 7), spacing=SPACING):
    labels = labels_at(*voxels, shape=shape)
    return foreground_of(Volume(labels, kits_geometry(shape, spacing)))


def moved(one, mm):
    affine = one.grid.affine.copy()
    affine[0, 3] += mm
    return one._replace(grid=one.grid._replace(affine=affine))


def test_the_box_in_every_memory_order():
    labels = labels_at((1, 2, 3), (3, 2, 6))
    for axes in itertools.permutations(range(3)):
        for steps in itertools.product((1, -1), repeat=3):
            turned = labels.transpose(axes)[tuple(slice(None, None, step) for step in steps)]
            inside = np.argwhere(turned)
            expected = tuple(slice(a, b + 1) for a, b in zip(inside.min(axis=0), inside.max(axis=0), strict=True))
            assert bounding_box(turned) == bounding_box(turned > 0) == expected
    for empty in (np.zeros((2, 3, 4), np.uint8), np.zeros((0, 3, 4), bool)):
        assert labels[bounding_box(empty)].size == 0


def test_what_is_read_is_what_read_labels_reads_without_background(tmp_path):
    labels = labels_at((1, 2, 3), (3, 4, 5))
    write_nifti(tmp_path / "a.nii.gz", labels, kits_geometry(labels.shape, SPACING))
    one = read_foreground(tmp_path / "a.nii.gz")
    assert one.corner == (1, 2, 3) and one.array.shape == (3, 3, 3) and one.grid.shape == (5, 6, 7)
    assert np.array_equal(one.array, labels[1:4, 2:5, 3:6]) and one.spacing_mm == pytest.approx(SPACING)
    view = read_labels_view(tmp_path / "a.nii.gz").array
    assert np.array_equal(view, read_labels(tmp_path / "a.nii.gz").array) and not view.flags.writeable


def test_several_maps_in_one_box():
    a, b, none = foreground((1, 2, 3)), foreground((3, 1, 5), (4, 1, 5)), foreground()
    (ours, theirs, empty), corner = crop_to_common_box([a, b, none])
    assert corner == (1, 1, 3) and ours.shape == theirs.shape == empty.shape == (4, 2, 3)
    assert np.argwhere(ours).tolist() == [[0, 1, 0]] and np.argwhere(theirs).tolist() == [[2, 0, 2], [3, 0, 2]]
    assert not empty.any() and crop_to_common_box([none, none])[0][0].size == 0


def test_both_values_of_what_differs():
    a = foreground((1, 2, 3))
    check_grids(a, foreground((0, 0, 0)), "a", "b")
    for other, words in (
        (foreground(shape=(5, 6, 8)), r"a is not on the grid of b: shape \(5, 6, 7\) and \(5, 6, 8\) \(D, H, W\)\."),
        (foreground(spacing=(3.0, 0.8, 0.7021)), r"spacing \[3.0, 0.8, 0.7\] and \[3.0, 0.8, 0.7021\] mm\."),
        (moved(a, 2e-3), r"affine \[\[.*\]\] and \[\["),
    ):
        with pytest.raises(InputError, match=words):
            check_grids(a, other, "a", "b")
    check_grids(a, moved(a, 9e-4), "a", "b")
