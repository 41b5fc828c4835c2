"""Warping on the device against the NumPy reference."""

import numpy as np
import pytest
import torch

from kits_dist.data import augment_reference
from kits_dist.inference.warping import invert_affine, warp


def test_warp_matches_the_numpy_reference():
    rng = np.random.default_rng(0)
    slab = rng.integers(0, 201, (2, 40, 50)).astype(np.float32)
    for matrix in ([[0.9, 0.3, 2.5], [-0.2, 1.1, -3.2]], [[1, 0, 7], [0, 1, -4]], [[1.3, 0, 0], [0, 0.8, 5]]):
        m = np.array(matrix, np.float32)
        ours = warp(torch.from_numpy(slab)[None], m, (32, 64))[0].numpy()
        assert (
            np.abs(ours - augment_reference.warp_linear(slab, m, (32, 64))).max() < 0.05
        )  # float32 coordinates on 0..200 noise


def test_inverse_affine():
    m = np.array([[0.9, 0.3, 2.5], [-0.2, 1.1, -3.2]])
    point = invert_affine(m) @ [*(m @ [5, 7, 1]), 1]
    assert point == pytest.approx([5, 7])
