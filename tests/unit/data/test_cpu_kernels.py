"""The compiled warps agree with `augment_reference`, at every size and far outside the slice."""

import numba
import numpy as np
import pytest

from kits_dist.data import augment_reference
from kits_dist.data.backends import cpu_kernels
from kits_dist.data.store import Normalization


def cases(count: int, largest: int):
    """(slab, label, matrix, output size): any turn, stretch and mirror; windows inside, across and beyond the slice."""
    rng = np.random.default_rng(0)
    for k in range(count):
        frames, (rows, columns), (height, width) = rng.integers(1, 4), *rng.integers(1, largest, (2, 2))
        slab = rng.integers(0, 201, (frames, rows, columns), dtype=np.uint8)
        label = np.zeros((rows, columns), np.uint8)
        (top, bottom), (left, right) = np.sort(rng.integers(0, rows + 1, 2)), np.sort(rng.integers(0, columns + 1, 2))
        label[top:bottom, left:right] = rng.integers(0, 4, (bottom - top, right - left))
        angle, (x_zoom, y_zoom), mirror = rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 3, 2), rng.choice([-1, 1])
        turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]] * np.array([mirror * x_zoom, y_zoom])
        centered = np.array([columns, rows]) / 2 - turn @ [width / 2, height / 2]
        corner = rng.uniform(-60, 120, 2) if k % 3 == 0 else centered
        yield slab, label, np.c_[turn, corner].astype(np.float32), (int(height), int(width))


@pytest.mark.parametrize(("count", "largest"), [(150, 90), (8, 800)])
def test_warps_agree_with_the_reference(count, largest):
    met = 0
    for slab, label, matrix, size_px in cases(count, largest):
        image, labels = np.full((len(slab), *size_px), -7, np.float32), np.full(size_px, 99, np.uint8)
        cpu_kernels.warp_linear(slab, matrix, image)
        cpu_kernels.warp_nearest(label, matrix, labels)
        # 1e-4 pixel of a point's place, times 200 levels from one pixel to the next
        np.testing.assert_allclose(image, augment_reference.warp_linear(slab, matrix, size_px), atol=0.02)
        points = np.stack(augment_reference.source_points(matrix, size_px))
        tie = (np.abs(points - np.rint(points)) < 1e-4).any(0)  # on the edge between two pixels: either may be taken
        np.testing.assert_array_equal(labels[~tie], augment_reference.warp_nearest(label, matrix, size_px)[~tie])
        met += labels.any()
    assert met > count / 3


def test_slices_that_cannot_be_written_are_read():
    slab = np.full((1, 8, 8), 5, np.uint8)
    slab.flags.writeable = False
    image, labels, still = np.empty((1, 8, 8), np.float32), np.empty((8, 8), np.uint8), np.eye(2, 3, dtype=np.float32)
    cpu_kernels.warp_linear(slab, still, image)
    cpu_kernels.warp_nearest(slab[0], still, labels)
    assert (image == 5).all() and (labels == 5).all()


def test_noise_is_clipped_before_normalization():
    image = np.array([[0, 100, 200]], np.float32)
    norm = Normalization(mean=50, sd=20)
    noisy = image.copy()
    cpu_kernels.finish(noisy, np.array([[-1, 1, 1]], np.float32), 10, 200, norm.mean, 1 / norm.sd)
    np.testing.assert_allclose(noisy, (np.array([[0, 110, 200]]) - 50) / 20, rtol=1e-6)
    cpu_kernels.finish(image, image, 0, 200, norm.mean, 1 / norm.sd)
    np.testing.assert_allclose(image, (np.array([[0, 100, 200]]) - 50) / 20, rtol=1e-6)


@pytest.mark.parametrize("signature", [(), (numba.int64,)])
def test_without_a_folder_for_machine_code_each_process_compiles_its_own(signature, monkeypatch):
    asked = []

    def njit(*signature, cache=False, **how):
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    assert cpu_kernels._compiled(*signature)(abs) is abs and asked == [True, False]
