"""The cut that replaces a warp where a window of whole pixels is drawn."""

import numpy as np
import pytest

from kits_dist.data import augment_reference
from kits_dist.data.augment_params import OutputGrid
from kits_dist.data.backends.cpu import _crop_of, _cut
from tests.unit.data.test_augment_reference import case, drawn


@pytest.mark.parametrize("flips", [{}, {"flip": 1}, {"flip_vertical": 1}, {"flip": 1, "flip_vertical": 1}])
def test_a_cut_of_a_larger_slice_is_the_warp_it_replaces(flips):
    levels = np.random.default_rng(0).integers(0, 201, (80, 120)).astype(np.uint8)
    matrices = drawn(20, case((1, 80, 120)), OutputGrid((64, 96), None), crop=1, **flips).matrix
    for matrix in matrices:
        crop = _crop_of(matrix, levels.shape, (64, 96))
        assert crop is not None
        assert np.array_equal(_cut(levels, crop), augment_reference.warp_linear(levels[None], matrix, (64, 96))[0])
    assert len({matrix.tobytes() for matrix in matrices}) > 10


def test_what_reaches_beyond_the_slice_is_warped():
    levels, size_px = np.zeros((80, 120), np.uint8), (64, 96)
    inside = np.array([[-1, 0, 96], [0, 1, 16]], np.float32)
    assert _crop_of(inside, levels.shape, size_px) is not None
    for row, column, by in ((0, 2, -1), (1, 2, 1), (0, 2, 0.5), (0, 1, 0.1)):
        outside = inside.copy()
        outside[row, column] += by
        assert _crop_of(outside, levels.shape, size_px) is None
