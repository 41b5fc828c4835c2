"""The tests of the data path can fail: each fault planted here turns the test red that should find it."""

import copy

import numpy as np
import pytest

from kits_dist.data import augment_params, augment_reference, sampler
from kits_dist.data import loaders as data_path
from kits_dist.data.backends import cpu
from kits_dist.distributed import runtime
from tests.unit.data import test_augment_reference, test_loaders
from tests.unit.distributed import test_runtime


def found_by(check, *arguments):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(*arguments)


@pytest.fixture(params=["dali", "opencv"])
def backend(request):
    return request.param


def handed(monkeypatch, change):
    """Give backends change(HostBatch) in place of the HostBatch; the check itself gets the true one."""
    real = data_path._build

    def build(dataset, *rest):
        other = copy.copy(dataset)
        other.batch = lambda positions: change(dataset.batch(positions))
        return real(other, *rest)

    monkeypatch.setattr(data_path, "_build", build)


def drawn(**change):
    """Change parameters of a HostBatch: name=function of the true values."""

    def changed(host):
        params = host.params._replace(**{name: f(getattr(host.params, name)) for name, f in change.items()})
        return host._replace(params=params)

    return changed


def relabelled(change):
    """Give the backend change((H, W) label) with the true image."""
    return lambda host: host._replace(labels=[change(label[..., 0])[..., None] for label in host.labels])


def turned(label):
    """Turn a label by two degrees about its center."""
    cos, sin = np.cos(np.deg2rad(2)), np.sin(np.deg2rad(2))
    turn, middle = np.array([[cos, -sin], [sin, cos]]), np.array(label.shape[::-1]) / 2
    return augment_reference.warp_nearest(label, np.c_[turn, middle - turn @ middle], label.shape)


def up(by):
    return lambda values: (values + by).astype(np.float32)


def times(factor):
    return lambda values: (values * factor).astype(np.float32)


PLANTED = {
    "a label turned two degrees further": ("rotation", relabelled(turned)),
    "a label one row off": ("window", relabelled(lambda label: np.roll(label, 1, axis=0))),
    "half a pixel of shift": ("shift", drawn(matrix=up(np.array([[0, 0, 0.5], [0, 0, 0]])))),
    "a hundredth of a pixel": ("rotation", drawn(matrix=up(np.array([[0, 0, 0.01], [0, 0, 0]])))),
    "a magnification one in a thousand off": ("scale", drawn(matrix=times(np.array([[1.001, 1, 1], [1, 1, 1]])))),
    "a mirror left out": ("flip", drawn(matrix=lambda matrix: np.abs(matrix))),
    "a level too bright": ("brightness", drawn(bias=up(1))),
    "a thousandth of a level": ("contrast", drawn(bias=up(1e-3))),
    "a gamma one in a thousand off": ("gamma", drawn(gamma=times(1.001))),
    "a blur one in a hundred off": ("blur", drawn(blur=times(1.01))),
    "noise one in a thousand off": ("noise", drawn(noise_sd=times(1.001))),
    "every noise from the bank's start": (
        "noise",
        drawn(noise_offset=np.zeros_like),
    ),
    "samples in another order": (
        "window",
        lambda host: host._replace(slabs=host.slabs[::-1], labels=host.labels[::-1]),
    ),
}


@pytest.mark.parametrize("fault", list(PLANTED))
def test_a_fault_in_what_a_backend_gets(store, backend, monkeypatch, fault):
    change, plant = PLANTED[fault]
    handed(monkeypatch, plant)
    found_by(test_loaders.test_each_change_agrees_with_the_reference, store, backend, change)


def test_a_tenth_of_a_level_in_the_mixture(store, backend, monkeypatch):
    handed(monkeypatch, drawn(bias=up(0.1)))
    found_by(test_loaders.test_all_changes_together_agree_with_the_reference, store, backend, {})


def test_a_cut_that_is_a_pixel_off(store, monkeypatch):
    real = cpu._cut
    monkeypatch.setattr(cpu, "_cut", lambda levels, crop: np.roll(real(levels, crop), 1, axis=1))
    found_by(test_loaders.test_moves_by_whole_pixels_are_exact, store, "opencv")


def test_image_and_label_half_a_pixel_apart_in_the_reference(monkeypatch):
    real = augment_reference.warp_nearest
    monkeypatch.setattr(
        augment_reference, "warp_nearest", lambda label, m, size: real(label, m + 0.5 * np.eye(3)[[2]], size)
    )
    found_by(test_augment_reference.test_image_and_label_move_together)


def test_a_stride_by_local_rank(tmp_path, monkeypatch):
    real = runtime.launched_ranks
    monkeypatch.setattr(runtime, "launched_ranks", lambda: real()._replace(rank=real().rank % real().local_world))
    found_by(test_runtime.test_a_process_takes_the_samples_of_its_global_rank, tmp_path, monkeypatch)


def test_two_ranks_that_take_the_same_samples(store, monkeypatch):
    real = sampler.train_positions
    monkeypatch.setattr(data_path, "train_positions", lambda step, b, rank, world, *a: real(step, b, 0, 1, *a))
    found_by(test_loaders.test_a_sample_is_the_same_on_other_ranks_batches_and_after_resuming, store, "opencv")


def test_an_epoch_that_does_not_enter_the_key(store, backend, monkeypatch):
    """In what the dataset asks for, as a backend shows it; and in the draw itself."""
    real = augment_params.uniforms
    monkeypatch.setattr(augment_params, "uniforms", lambda seed, rounds, sample: real(seed, rounds * 0, sample))
    found_by(test_loaders.test_a_sample_looks_different_in_the_next_epoch, store, backend)
    found_by(test_augment_reference.test_uniforms_are_uniform_independent_and_keyed)


def test_a_noise_offset_that_is_not_drawn(monkeypatch):
    real = augment_params.draw
    monkeypatch.setattr(
        augment_params, "draw", lambda *a: real(*a)._replace(noise_offset=np.zeros(len(a[2]), np.int32))
    )
    found_by(test_augment_reference.test_noise_has_the_drawn_sd_stays_in_the_window_and_varies_with_the_offset)


def test_an_epoch_missing_a_sample(store, monkeypatch):
    real = sampler.TrainOrder.at
    monkeypatch.setattr(sampler.TrainOrder, "at", lambda self, p: real(self, np.maximum(p, 1)))
    found_by(test_loaders.test_every_epoch_covers_every_slice_with_its_true_name, store, "opencv")
