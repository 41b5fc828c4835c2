"""The peers of benchmarks.loader see the pixels that we see; each is tested where it is installed."""

import dataclasses
import platform
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from benchmarks import loader, peers
from benchmarks.lib import stores
from benchmarks.lib.stores import AUGMENTED, STILL
from benchmarks.lib.training import Setup, Watch
from kits_dist.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data import augment_params, augment_reference
from kits_dist.data.sampler import train_positions
from kits_dist.distributed.precision import Precision
from kits_dist.distributed.ranks import Ranks
from kits_dist.distributed.runtime import Runtime
from kits_dist.utils.errors import InputError, MissingPackage
from tests.helpers.pixels import reference

platform.processor()  # albumentationsx asks when it is imported; the first answer starts a process


@pytest.fixture(params=sorted(set(peers.PEERS) - set(peers.CHANGES)))
def name(request):
    return installed(request.param)


def installed(name: str) -> str:
    """Skip the test where the peer is not installed."""
    try:
        peers.version_of(name)
    except MissingPackage as error:
        pytest.skip(str(error))
    return name


def dataset_of(store, changes, size_px):
    return stores.dataset_of(store, DataConfig(store=str(store.path), size_px=size_px, batch_size=4), changes)


def batches(name, dataset, changes):
    torch.manual_seed(0)  # what the peer is seeded from
    return peers.stream(peers.build(name, dataset, changes), dataset, changes, 4, workers=0)


def test_without_augmentation_it_gives_our_pixels(store, name):
    dataset = dataset_of(store, STILL, (32, 64))
    for step, (image, label) in zip(range(4), batches(name, dataset, STILL), strict=False):
        expected = reference(dataset, train_positions(step, 4, 0, 1))
        assert image.dtype == torch.float32 and image.is_contiguous() and label.dtype == torch.uint8
        assert np.array_equal(label.numpy(), expected[1])
        assert np.abs(image.numpy() - expected[0]).max() < 1e-5  # float32 keeps 7 digits


def test_augmented_batches_have_our_shape_and_range(store, name):
    dataset = dataset_of(store, AUGMENTED, (64, 96))  # most slices are smaller and get padded
    seen = [pair for _, pair in zip(range(8), batches(name, dataset, AUGMENTED), strict=False)]
    for image, label in seen:
        assert image.shape == (4, 1, 64, 96) and label.shape == (4, 64, 96) and label.max() <= 3
        levels = image * dataset.norm.sd + dataset.norm.mean
        assert levels.min() > -0.01 and levels.max() < 200.01
    assert len({image.numpy().tobytes() for image, _ in seen}) == 8


def test_the_posters_files_give_our_pixels(store):
    """Where its resizing changes nothing: on slices of the size of the window."""
    pytest.importorskip("albumentations", reason="needs: pip install -e .[peers]")
    still = dataclasses.replace(peers.CHANGES["poster"], rotate_p=0, flip=0, flip_vertical=0, noise_p=0, zoom_crop_p=0)
    dataset = dataset_of(store, still, (64, 64))
    seen = 0
    for step, (image, label) in zip(range(4), batches(installed("poster"), dataset, still), strict=False):
        expected = reference(dataset, train_positions(step, 4, 0, 1))
        for i, (case, _, _) in enumerate(dataset.batch(train_positions(step, 4, 0, 1)).identity):
            if store.cases[case].shape[1:] == (64, 64):
                seen += 1
                assert np.abs(image[i].numpy() - expected[0][i]).max() < 1e-4
                assert np.array_equal(label[i].numpy(), expected[1][i])
    assert seen > 4


def test_the_posters_changes_are_drawn(store):
    pytest.importorskip("albumentations", reason="needs: pip install -e .[peers]")
    changes = peers.CHANGES["poster"]
    assert (changes.rotate_deg, changes.flip_vertical, changes.zoom_crop_p, changes.noise_p) == (30, 0.5, 0.5, 0.5)
    dataset = dataset_of(store, changes, (64, 64))
    seen = [pair for _, pair in zip(range(4), batches(installed("poster"), dataset, changes), strict=False)]
    assert len({image.numpy().tobytes() for image, _ in seen}) == 4
    assert all(image.dtype == torch.float32 and label.dtype == torch.uint8 for image, label in seen)


TOLERANCE = 1.0  # levels: albumentations rounds to half a level, a fitted angle of 1e-4 moves a noisy slice by 0.2


@pytest.mark.parametrize("kind", ["turned", "scaled", "mirrored"])
def test_each_change_is_ours(store, name, kind):
    """A 64x64 slice in a 64x64 window, one change drawn always: ours with the same parameter gives the same pixels."""
    still = {"flip": 0, "rotate_p": 0, "scale_p": 0, "noise_p": 0}
    changes = {
        "turned": AugmentConfig(**still | {"rotate_p": 1, "rotate_deg": 10.0}),
        "scaled": AugmentConfig(**still | {"scale_p": 1, "scale": (1.07, 1.07)}),
        "mirrored": AugmentConfig(**still | {"flip": 0.5}),
    }[kind]
    dataset = dataset_of(store, changes, (64, 64))
    found = []
    for step, (image, label) in zip(range(6), batches(name, dataset, changes), strict=False):
        host = dataset.batch(train_positions(step, 4, 0, 1))
        for i, (case, _, _) in enumerate(host.identity):
            if store.cases[case].shape[1:] != (64, 64):
                continue  # the window has room to move
            view, levels = (
                store.cases[case].slice_geometry("axial"),
                image[i, 0].numpy() * dataset.norm.sd + dataset.norm.mean,
            )

            def matrix(degrees=0.0, mirror=1.0, zoom=1.0, view=view):
                return augment_params.matrices(
                    dataset.grid, [view], np.zeros((1, 2)), *np.array([[degrees], [mirror], [zoom]])
                )

            def difference(*change, levels=levels, slab=host.slabs[i][..., 0], matrix=matrix):
                return np.abs(augment_reference.warp_linear(slab, matrix(*change)[0], (64, 64))[0] - levels)

            if kind == "turned":
                near = min(np.arange(-10, 10.1, 0.5), key=lambda degrees: difference(degrees).mean())
                fit = minimize_scalar(
                    lambda d: difference(d).mean(), bounds=(near - 0.5, near + 0.5), options={"xatol": 1e-5}
                )
                change = (fit.x,)
            else:
                change = {"scaled": [(0.0, 1.0, 1.07)], "mirrored": [(0.0, 1.0), (0.0, -1.0)]}[kind]
                change = min(change, key=lambda one: difference(*one).mean())
            assert difference(*change).max() < TOLERANCE
            expected = augment_reference.warp_nearest(host.labels[i][..., 0], matrix(*change)[0], (64, 64))
            assert (label[i].numpy() != expected).mean() < 2e-3  # ties of nearest neighbours
            found.append(change)
    assert len(found) > 4
    if kind == "turned":
        assert min(found)[0] < -2 and max(found)[0] > 2 and max(np.abs(found)) <= 10.01
    if kind == "mirrored":
        assert len(set(found)) == 2


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(peers.PEERS["monai"], "package", "monai-of-nowhere")
    with pytest.raises(MissingPackage, match=r"monai-of-nowhere is not installed: pip install kits-dist\[peers\]"):
        peers.build("monai", None, AUGMENTED)


class Broken(peers.Peer):
    """A peer whose package is there, and needs another one that is not."""

    package = "numpy"
    choices = ""
    lazy = False

    def __init__(self, dataset, changes):
        if not self.lazy:
            import a_dependency_of_it  # noqa: F401

    def seed(self, seed):
        pass

    def sample(self, levels, labels):
        import a_dependency_of_it  # noqa: F401

    def batch(self, image, label):
        pass


REASON = r"numpy, which is installed but .*\(ModuleNotFoundError: No module named 'a_dependency_of_it'\)"


def test_a_peer_whose_own_dependency_is_missing_is_missing(store, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "monai", Broken)
    monkeypatch.setitem(peers.TRAININGS, "monai", ("", "monai", lambda setup, dataset: Broken(dataset, None)))
    with pytest.raises(MissingPackage, match=REASON):
        peers.build("monai", None, AUGMENTED)
    with pytest.raises(MissingPackage, match=REASON):
        peers.build_training("monai", None, None)


@pytest.mark.parametrize("lazy", [False, True])
def test_the_other_loaders_are_built(store, monkeypatch, lazy):
    """Whether the import fails when the peer is built or with its first batch."""
    monkeypatch.setattr(Broken, "lazy", lazy)
    monkeypatch.setitem(peers.PEERS, "monai", Broken)
    monkeypatch.setattr(loader, "available_cores", lambda: 0)  # no worker process
    dataset = dataset_of(store, AUGMENTED, (64, 64))
    makers = {"monai": lambda: loader._peer_step("monai", dataset, 4), "other": lambda: len}
    steps, missing = loader._built(makers)
    assert list(steps) == ["other"] and re.search(REASON, missing["monai"])


def test_peers_are_chosen_by_name():
    assert peers.chosen(()) == peers.chosen(("false",)) == []
    assert peers.chosen(("true",)) == list(peers.PEERS) == peers.chosen(("True",))
    assert peers.chosen(("monai",)) == ["monai"]
    with pytest.raises(InputError, match=r"peers=\['kornia'\]: choose from"):
        peers.chosen(("kornia",))


def test_a_peer_draws_its_window_always_or_never(store):
    with pytest.raises(ValueError, match="augment.crop=0.5"):
        peers.Slices(None, AugmentConfig(crop=0.5), None)


# whole trainings


@pytest.fixture(params=list(peers.TRAININGS))
def other(request, monkeypatch):
    installed(peers.TRAININGS[request.param][1])
    monkeypatch.setattr(peers.plain_training, "available_cores", lambda: 0)  # workers: its batches are made here
    return request.param


def setup_of(store, changes):
    data = DataConfig(store=str(store.path), size_px=(32, 64), batch_size=4, backend="opencv")
    network = ModelConfig(arch="simple_unet", width=2)
    cpu = SimpleNamespace(device=torch.device("cpu"))
    runtime = Runtime(cpu, Precision("fp32", "a test"), Ranks(), torch.float32)
    return Setup(runtime, store, data, changes, network, OptimConfig(lr=0.01), TrainConfig())


def test_other_trainings_see_our_pixels_and_learn(store, other):
    """Without changes each of their images is one of ours, with its label; on one batch their loss falls."""
    setup = setup_of(store, STILL)
    dataset = dataset_of(store, STILL, (32, 64))
    ours = {}
    for step in range(len(dataset.rows) // 4):
        for image, label in zip(*reference(dataset, train_positions(step, 4, 0, 1)), strict=True):
            ours[np.rint(image * dataset.norm.sd + dataset.norm.mean).astype(np.uint8).tobytes()] = label
    made = peers.TRAININGS[other][2](setup, dataset)
    watch = Watch(made.model)
    found = 0
    for _, batch in zip(range(4), made.batches, strict=False):
        assert batch.image.shape == (4, 1, 32, 64) and batch.image.dtype == torch.float32
        for image, label in zip(batch.image.numpy(), batch.label.numpy(), strict=True):
            key = np.rint(image * dataset.norm.sd + dataset.norm.mean).astype(np.uint8).tobytes()
            found += key in ours and np.array_equal(ours[key], label)
    assert found >= 14  # 16, but for the slices that four whole batches leave over
    losses = [made.step(batch, True) for _ in range(12)]
    assert losses[-1] < losses[0] and made.step(batch, False) is None
    assert watch.images == 13 * 4 and watch.pixels_per_image() == 32 * 64


def test_other_trainings_change_each_image_each_time(store, other):
    made = peers.TRAININGS[other][2](setup_of(store, AUGMENTED), dataset_of(store, AUGMENTED, (32, 64)))
    seen = {image.numpy().tobytes() for _, batch in zip(range(12), made.batches, strict=False) for image in batch.image}
    assert len(seen) == 48
