"""The tests of the data path can fail: each fault planted here turns the test red that is meant to find it."""

import numpy as np
import pytest

from kits_dist.data import augment, kernels, opencv_backend, sampler
from tests import test_augment, test_loaders, test_sampler


def found_by(check, *arguments):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(*arguments)


def warped_otherwise(monkeypatch, change):
    """change(matrix, is_label) -> the matrix that is used instead."""

    def changed(warp, is_label):
        return lambda pixels, matrix, out: warp(pixels, change(matrix, is_label).astype(np.float32), out)

    monkeypatch.setattr(kernels, "warp_linear", changed(kernels.warp_linear, False))
    monkeypatch.setattr(kernels, "warp_nearest", changed(kernels.warp_nearest, True))


def agreement(store):
    test_loaders.test_every_backend_does_what_augment_means(store, "opencv", {})


def test_a_label_turned_two_degrees_further_than_its_image(store, monkeypatch):
    cos, sin = np.cos(np.deg2rad(2)), np.sin(np.deg2rad(2))
    turn = np.array([[cos, -sin], [sin, cos]])
    warped_otherwise(monkeypatch, lambda m, is_label: np.c_[turn @ m[:, :2], m[:, 2]] if is_label else m)
    found_by(agreement, store)


def test_half_a_pixel_of_shift(store, monkeypatch):
    for of_label in (True, False):
        with monkeypatch.context() as patch:
            warped_otherwise(patch, lambda m, is_label, which=of_label: m + 0.5 * np.eye(3)[[2]] * (is_label == which))
            found_by(agreement, store)


def test_a_cut_that_is_a_pixel_off(store, monkeypatch):
    real = opencv_backend._cut
    monkeypatch.setattr(opencv_backend, "_cut", lambda levels, window: np.roll(real(levels, window), 1, axis=1))
    found_by(test_loaders.test_moves_by_whole_pixels_are_exact, store, "opencv")


def test_image_and_label_half_a_pixel_apart_in_the_meaning_itself(monkeypatch):
    real = augment.warp_nearest
    monkeypatch.setattr(augment, "warp_nearest", lambda label, m, size: real(label, m + 0.5 * np.eye(3)[[2]], size))
    found_by(test_augment.test_image_and_label_move_together)


def test_a_stride_by_local_rank(store, monkeypatch):
    real = sampler.train_positions
    monkeypatch.setattr(
        test_sampler, "train_positions", lambda step, b, rank, world, *a: real(step, b, rank % 2, 2, *a)
    )
    found_by(test_sampler.test_each_epoch_holds_each_sample_once_over_all_ranks, 3, 1)
    monkeypatch.setattr(sampler, "train_positions", lambda step, b, rank, world, *a: real(step, b, 0, 1, *a))
    found_by(test_loaders.test_a_sample_is_the_same_on_other_ranks_batches_and_after_resuming, store, "opencv")


def test_an_epoch_that_does_not_enter_the_key(monkeypatch):
    real = augment.uniforms
    monkeypatch.setattr(augment, "uniforms", lambda seed, rounds, sample: real(seed, rounds * 0, sample))
    found_by(test_augment.test_uniforms_are_uniform_independent_and_keyed)


def test_a_noise_offset_that_is_not_drawn(monkeypatch):
    real = augment.draw
    monkeypatch.setattr(augment, "draw", lambda *a: real(*a)._replace(noise_offset=np.zeros(len(a[2]), np.int32)))
    found_by(test_augment.test_noise_has_the_drawn_sd_stays_in_the_window_and_varies_with_the_offset)


def test_an_epoch_missing_a_sample(store, monkeypatch):
    real = sampler.TrainOrder.at
    monkeypatch.setattr(sampler.TrainOrder, "at", lambda self, p: real(self, np.maximum(p, 1)))
    found_by(test_loaders.test_every_epoch_covers_every_slice_with_its_true_name, store, "opencv")
