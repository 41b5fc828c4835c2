"""The contract of loaders, on every backend, and each backend against the NumPy reference."""

import gc
import itertools
import os
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from kits_dist import cli, prepare
from kits_dist.config import AugmentConfig, Config, DataConfig
from kits_dist.data import augment_reference
from kits_dist.data.backends import real_backend
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.loaders import build_train_loader, build_val_loader
from kits_dist.data.sampler import train_positions
from kits_dist.data.samples import select_rows
from kits_dist.data.slice_cache import MappedSlices, choose_residency, slab_of
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks
from kits_dist.imaging.nifti import kits_geometry, write_nifti
from kits_dist.utils.errors import InputError, MissingPackage
from tests.conftest import write_case
from tests.helpers import pixels

ALL_DRAWN = replace(pixels.DRAWN, crop=0.8)
STILL = AugmentConfig(rotate_p=0, flip=0, scale_p=0, crop=0, noise_p=0)
# Every change by itself, and how far a pixel may then be from the reference, in HU: about twice what was measured.
ALONE_HU = {
    "rotation": (replace(STILL, rotate_p=1), 0.03),  # float32 coordinates near 100: 1e-4 px of steps of 200 HU
    "scale": (replace(STILL, scale_p=1), 0.01),
    "zoom_crop": (replace(STILL, zoom_crop_p=1), 0.01),
    "shift": (replace(STILL, shift_p=1), 2e-3),  # nothing is multiplied: only the fraction is rounded, by 4e-6 px
    "flip": (replace(STILL, flip=1), 4e-5),  # whole pixels: what is left is the normalization in float32
    "flip_vertical": (replace(STILL, flip_vertical=1), 4e-5),
    "window": (replace(STILL, crop=1), 4e-5),
    "brightness": (replace(STILL, brightness_p=1), 4e-5),  # one float32 product and sum more
    "contrast": (replace(STILL, contrast_p=1), 4e-5),
    "noise": (replace(STILL, noise_p=1), 4e-5),
    "gamma": (replace(STILL, gamma_p=1), 1e-4),  # the last bits of a power
    "blur": (replace(STILL, blur_p=1), 1e-4),  # eleven products and more, summed in another order
}


@pytest.fixture(params=["dali", "opencv"])
def backend(request):
    return request.param


def data(store, backend="dali", **more):
    common = {"batch_size": 4, "size_px": (64, 96), "threads": 1, "backend": backend}
    return DataConfig(store=str(store.path), **(common | more))


def take(loader, n):
    return list(itertools.islice(iter(loader), n))


def agrees(store, config, augment, tolerance_hu, batches=6) -> None:
    """Compare a backend's first batches with `augment_reference.apply`: each pixel, and each label that is no tie."""
    loader, dataset = build_train_loader(store, config, augment, 7, Ranks())
    _, unchanged = build_train_loader(store, config, STILL, 7, Ranks())
    changed = []
    for step, batch in enumerate(take(loader, batches)):
        positions = train_positions(step, config.batch_size, 0, 1)
        host, still = dataset.batch(positions), unchanged.batch(positions)
        assert torch.equal(torch.stack([batch.case, batch.index, batch.plane], 1), torch.from_numpy(host.identity))
        for i in range(config.batch_size):
            image, label = reference(dataset, host, i)
            assert np.abs(batch.image[i].numpy() - image).max() * dataset.norm.sd < tolerance_hu
            points = np.stack(augment_reference.source_points(host.params.matrix[i], config.size_px))
            to_edge = np.abs(points - np.rint(points)).min(axis=0)  # source pixels
            assert (to_edge[batch.label[i].numpy() != label] < 1e-3).all()
            changed.append(np.abs(image - reference(unchanged, still, i)[0]).max() * dataset.norm.sd > 1)
    assert np.mean(changed) > 0.7  # otherwise little was compared


def reference(dataset, host, i):
    """(image, label) of sample i as `augment_reference` defines them."""
    slab, label = host.slabs[i][..., 0], host.labels[i][..., 0]
    return augment_reference.apply(
        slab, label, host.params, i, dataset.data.size_px, dataset.store.window.levels, dataset.norm
    )


@pytest.mark.parametrize("change", list(ALONE_HU))
def test_each_change_agrees_with_the_reference(store, backend, change):
    agrees(store, data(store, backend), *ALONE_HU[change])


@pytest.mark.parametrize(
    "more",
    [{}, {"context": 1}, {"pixel_mm": 1.3}, {"size_px": (32, 64)}],
    ids=["plain", "context", "pixel_mm", "small"],
)
def test_all_changes_together_agree_with_the_reference(store, backend, more):
    agrees(store, data(store, backend, **more), ALL_DRAWN, 0.03)


def test_masked_slices_agree_with_the_reference_and_show_nothing_but_kidneys(store, backend):
    config = data(store, backend, mask="kidney")
    agrees(store, config, ALL_DRAWN, 0.03)
    loader, dataset = build_val_loader(store, config, [c.case_id for c in store.cases], Ranks())
    plain = build_val_loader(store, data(store, backend), [c.case_id for c in store.cases], Ranks())[1]
    assert dataset.norm != plain.norm
    for batch in loader:
        levels = batch.image[:, 0] * dataset.norm.sd + dataset.norm.mean
        assert levels[batch.label == 0].abs().max() < 1e-3
        assert levels[batch.label == 1].mean() > 100  # kidneys of 150 HU


@pytest.mark.parametrize("more", [{"context": 1}, {"box": "kidney"}])
def test_a_mask_shows_whole_slices_without_neighbors(store, more):
    with pytest.raises(InputError, match="data.mask=kidney shows whole slices without neighbors"):
        data(store, mask="kidney", **more)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    for number, width in enumerate((512, 796, 512)):
        write_case(root / "raw", number, (2, 512, width))
    prepare.main(prepare.Args(source=str(root / "raw"), store=str(root / "store"), workers=1))
    return Store(root / "store")


@pytest.mark.parametrize(("backend", "tolerance_hu"), [("dali", 0.7), ("opencv", 0.03)])
def test_all_changes_agree_with_the_reference_at_full_size(large, backend, tolerance_hu):
    """DALI's coordinates are float32 near 800, those of the CPU kernels keep a fixed fraction of a pixel."""
    config = data(large, backend, size_px=(512, 512), batch_size=2, fold="all")
    agrees(large, config, ALL_DRAWN, tolerance_hu, batches=3)


def test_moves_by_whole_pixels_are_exact(store, backend):
    """Neither rotation nor scale: mirrored or not, a window inside its slice and one that reaches beyond it."""
    config = data(store, backend, size_px=(64, 64))
    loader, dataset = build_train_loader(
        store, config, replace(STILL, flip=0.5, flip_vertical=0.5, crop=1, noise_p=0.3), 5, Ranks()
    )
    seen = set()
    for step, batch in enumerate(take(loader, 12)):
        host = dataset.batch(train_positions(step, 4, 0, 1))
        for i in range(4):
            image, label = reference(dataset, host, i)
            assert np.array_equal(batch.label[i].numpy(), label)
            assert np.abs(batch.image[i].numpy() - image).max() < 1e-5
            flips = host.params.matrix[i, 0, 0] < 0, host.params.matrix[i, 1, 1] < 0
            seen.add((*flips, min(host.labels[i].shape[:2]) >= 64))
    assert len(seen) == 8  # slices of 63 rows are smaller than the window


def test_without_augmentation_every_backend_is_exact(store, backend):
    loader, dataset = build_val_loader(store, data(store, backend), [c.case_id for c in store.cases], Ranks())
    for batch in loader:
        for i in range(len(batch.image)):
            row = np.flatnonzero(
                (store.slices.case == batch.case[i].item()) & (store.slices.index == batch.index[i].item())
            )
            image, label = reference(dataset, dataset.batch(np.searchsorted(dataset.rows, row)), 0)
            assert np.array_equal(batch.label[i].numpy(), label)
            assert np.abs(batch.image[i].numpy() - image).max() < 1e-5


def test_shapes_types_and_ranges(store, backend):
    loader, dataset = build_train_loader(store, data(store, backend, context=2), ALL_DRAWN, 0, Ranks())
    batch = take(loader, 1)[0]
    assert batch.image.shape == (4, 5, 64, 96) and batch.image.dtype == torch.float32 and batch.image.is_contiguous()
    assert batch.label.shape == (4, 64, 96) and batch.label.dtype == torch.uint8 and batch.label.max() <= 3
    assert batch.case.dtype == batch.index.dtype == torch.int32
    levels = batch.image * dataset.norm.sd + dataset.norm.mean
    assert levels.min() > -0.01 and levels.max() < 200.01


def test_half_precision_is_the_same_rounded_once(store, backend):
    loaders = [
        build_train_loader(store, data(store, backend), ALL_DRAWN, 0, Ranks(), dtype=dtype)[0]
        for dtype in (torch.float32, torch.float16)
    ]
    for full, half in zip(*(take(loader, 3) for loader in loaders), strict=True):
        assert half.image.dtype == torch.float16 and torch.equal(half.label, full.label)
        # 2^-11 of the value is half a step of its 11 bits: rounded once, by whatever rule for ties
        torch.testing.assert_close(half.image.float(), full.image, rtol=2**-11, atol=2**-24)


def test_same_seed_same_batches_other_seed_others(store, backend):
    def images(seed):
        return torch.stack(
            [b.image for b in take(build_train_loader(store, data(store, backend), ALL_DRAWN, seed, Ranks())[0], 6)]
        )

    assert torch.equal(images(1), images(1))
    assert not torch.equal(images(1), images(2))


def test_a_sample_is_the_same_on_other_ranks_batches_and_after_resuming(store, backend):
    def samples(world, batch, steps, start=0):
        """{(position): bytes of image and label}"""
        found = {}
        for rank in range(world):
            ranks = Ranks(rank=rank, world=world)
            loader, _ = build_train_loader(
                store, data(store, backend, batch_size=batch), ALL_DRAWN, 3, ranks, start=start
            )
            for step, got in enumerate(take(loader, steps)):
                for k, position in enumerate(train_positions(step, batch, rank, world, start)):
                    found[int(position)] = got.image[k].numpy().tobytes() + got.label[k].numpy().tobytes()
        return found

    whole = samples(1, 6, 8)
    assert len(set(whole.values())) == 48
    for other in (samples(2, 3, 8), samples(3, 4, 4), samples(2, 4, 3, start=24)):
        assert all(whole[position] == content for position, content in other.items())


def test_a_sample_looks_different_in_the_next_epoch(store, backend):
    loader, dataset = build_train_loader(store, data(store, backend, batch_size=1), ALL_DRAWN, 0, Ranks())
    n, seen = len(dataset.rows), {}
    for batch in take(loader, 2 * n):
        for one in zip(batch.case.tolist(), batch.index.tolist(), batch.image, strict=True):
            seen.setdefault(one[:2], set()).add(one[2].numpy().tobytes())
    assert len(seen) == n and all(len(looks) == 2 for looks in seen.values())


def test_every_epoch_covers_every_slice_with_its_true_name(store, backend):
    loader, dataset = build_train_loader(store, data(store, backend, batch_size=3), AugmentConfig(), 0, Ranks())
    n = len(dataset.rows)
    seen = [pair for b in take(loader, -(-2 * n // 3)) for pair in zip(b.case.tolist(), b.index.tolist(), strict=True)][
        : 2 * n
    ]
    expected = sorted(
        zip(store.slices.case[dataset.rows].tolist(), store.slices.index[dataset.rows].tolist(), strict=True)
    )
    assert sorted(seen[:n]) == sorted(seen[n:]) == expected


def test_validation_passes_are_equal_and_complete(store, backend):
    ids = store.splits.select(0)[1]
    places = [Ranks(rank=rank, world=2) for rank in range(2)]
    loaders = [build_val_loader(store, data(store, backend), ids, ranks)[0] for ranks in places]
    passes = [[(b.case.tolist(), b.index.tolist()) for loader in loaders for b in loader] for _ in range(3)]
    assert passes[0] == passes[1] == passes[2]
    seen = sorted(pair for cases, indices in passes[0] for pair in zip(cases, indices, strict=True))
    assert seen == [(store.row[c], i) for c in sorted(ids) for i in range(store.cases[store.row[c]].shape[0])]


def test_a_validation_pass_after_one_that_was_left_is_whole(store, backend):
    loader, _ = build_val_loader(store, data(store, backend), [c.case_id for c in store.cases[:2]], Ranks())
    whole = [batch.index.tolist() for batch in loader]
    assert len(whole) > 2 and len(whole[-1]) < len(whole[0])
    next(iter(loader))
    assert [batch.index.tolist() for batch in loader] == whole


def test_a_rank_without_validation_slices_has_an_empty_loader(store):
    ranks = Ranks(rank=99, world=100)
    assert list(build_val_loader(store, data(store), [store.cases[3].case_id], ranks)[0]) == []


def test_a_validation_pass_is_whole_after_its_first_batch_was_looked_at(store, backend):
    loader, dataset = build_val_loader(store, data(store, backend), [c.case_id for c in store.cases], Ranks())
    first = loader.peek()
    for _ in range(2):
        batches = list(loader)
        assert torch.equal(batches[0].image, first.image)
        assert sum(len(batch.label) for batch in batches) == len(dataset.rows)
    nothing = build_val_loader(store, data(store), [store.cases[3].case_id], Ranks(rank=99, world=100))[0]
    assert nothing.peek() is None and list(nothing) == []


def test_fixed_repeats_one_real_batch(store):
    real = take(build_train_loader(store, data(store, "opencv"), ALL_DRAWN, 0, Ranks())[0], 1)[0]
    fixed = take(build_train_loader(store, data(store, backend="fixed"), ALL_DRAWN, 0, Ranks())[0], 3)
    assert all(torch.equal(a, b) for one in fixed for a, b in zip(one, real, strict=True))


def test_fixed_and_its_validation_do_without_dali(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    fixed, opencv = (data(store, backend) for backend in ("fixed", "opencv"))
    loaders = [build_train_loader(store, config, ALL_DRAWN, 0, Ranks())[0] for config in (fixed, opencv)]
    assert all(torch.equal(a, b) for a, b in zip(*(take(loader, 1)[0] for loader in loaders), strict=True))
    assert len(list(build_val_loader(store, fixed, [store.cases[0].case_id], Ranks())[0])) == 2
    assert isinstance(
        choose_residency(store, np.arange(4), replace(fixed, residency="auto"), torch.device("cuda")), MappedSlices
    )
    with pytest.raises(MissingPackage, match="data.backend=dali needs NVIDIA DALI"):
        build_train_loader(store, data(store, "dali"), ALL_DRAWN, 0, Ranks())


@pytest.mark.parametrize(
    ("device", "installed", "expected"), [("cuda", True, "dali"), ("cuda", False, "opencv"), ("cpu", True, "opencv")]
)
def test_auto_takes_dali_only_on_a_gpu(monkeypatch, device, installed, expected):
    monkeypatch.setitem(sys.modules, "nvidia.dali", ModuleType("nvidia.dali") if installed else None)
    for backend in ("auto", "fixed"):
        assert real_backend(backend, torch.device(device)) == expected
    for backend in ("dali", "opencv"):
        assert real_backend(backend, torch.device(device)) == backend


def test_auto_sees_that_no_package_of_nvidia_is_installed(monkeypatch):
    """A PyTorch that was not installed by pip, as in a container, has no package `nvidia`."""
    monkeypatch.setitem(sys.modules, "nvidia", None)
    for name in [name for name in sys.modules if name.startswith("nvidia.")]:
        monkeypatch.delitem(sys.modules, name)
    assert real_backend("auto", torch.device("cuda")) == "opencv"


def test_a_broken_dali_is_as_good_as_none_and_said(store, monkeypatch):
    """Installed for another CUDA version, its shared library does not load."""

    class Broken:
        def find_spec(self, name, *_):
            if name == "nvidia.dali":
                raise OSError("libnvjpeg.so.12: cannot open")

    monkeypatch.delitem(sys.modules, "nvidia.dali", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.warns(UserWarning, match=r"DALI is installed but .*libnvjpeg.so.12.*opencv instead"):
        assert real_backend("auto", torch.device("cuda")) == "opencv"
    with pytest.raises(MissingPackage, match=r"needs NVIDIA DALI, which is installed but .*libnvjpeg.so.12"):
        build_train_loader(store, data(store, "dali"), ALL_DRAWN, 0, Ranks())


def test_the_demo_trains_on_the_same_pixels_by_either_backend(store):
    """Without a GPU the demo takes the CPU backend; DALI's graph is that of a GPU."""
    keys = ["config=configs/demo.yaml", f"data.store={store.path}", "run=r", "data.batch_size=4"]
    batches = {}
    for backend in ("dali", "opencv"):
        config = cli.load(Config, [*keys, f"data.backend={backend}"])
        loader, dataset = build_train_loader(store, config.data, config.augment, config.seed, Ranks())
        batches[backend] = take(loader, 5)
    for one, other in zip(*batches.values(), strict=True):
        assert torch.equal(one.label, other.label) and torch.equal(one.index, other.index)
        assert (one.image - other.image).abs().max() * dataset.norm.sd < 0.03  # HU


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("backend", ["dali", "opencv", "fixed"])
def test_an_error_in_a_batch_is_raised_and_leaves_no_thread(store, backend, error, monkeypatch):
    def threads():
        return set(os.listdir("/proc/self/task"))

    def failing(dataset, positions):
        if positions[0] >= failing_from:
            raise error("in a batch")
        return real(dataset, positions)

    real, failing_from = SliceDataset.batch, 0 if backend == "fixed" else 12  # fixed makes one batch only; step 3
    take(build_train_loader(store, data(store, backend), ALL_DRAWN, 0, Ranks())[0], 1)  # libraries start some for good
    gc.collect()
    before = threads()
    monkeypatch.setattr(SliceDataset, "batch", failing)

    def read_on():
        for batch in build_train_loader(store, data(store, backend), ALL_DRAWN, 0, Ranks())[0]:
            assert batch.image.isfinite().all()
            assert threads() - before or backend == "fixed"  # while it runs, it has threads of its own

    with pytest.raises(error, match="in a batch"):
        read_on()
    gc.collect()
    assert threads() <= before


def test_kidney_slices_with_margin(store):
    for case in store.cases:
        row = store.row[case.case_id]
        rows = select_rows(store, [case.case_id], "kidney", 0, ["axial"])
        assert store.slices.index[rows].tolist() == list(range(1, case.shape[0]))  # the fixture leaves slice 0 empty
        assert set(store.slices.case[rows]) == {row}
        assert len(select_rows(store, [case.case_id], "kidney", 1, ["axial"])) == case.shape[0]


def test_a_case_without_foreground_gives_no_kidney_slice(store, monkeypatch):
    empty = store.slices._replace(
        kidney=store.slices.kidney * 0, tumor=store.slices.tumor * 0, cyst=store.slices.cyst * 0
    )
    monkeypatch.setattr(store, "slices", empty)
    assert len(select_rows(store, [store.cases[0].case_id], "kidney", 10, ["axial"])) == 0
    said = "data.slices=kidney: none of the 4 training cases has a kidney in its annotation. Use data.slices=all"
    with pytest.raises(InputError, match=said):
        build_train_loader(store, data(store, slices="kidney"), ALL_DRAWN, 0, Ranks())


@pytest.mark.parametrize(("sampler", "label"), [("tumor", 2), ("cyst", 3), ("foreground", None)])
def test_a_sampler_shows_its_slices_as_often_as_asked(store, sampler, label):
    config = data(store, sampler=sampler, share=0.75, fold="all")
    seen = _first_epoch(store, config)
    held = sum((store.label(c)[i] == label if label else store.label(c)[i] > 0).any() for c, i in seen)
    assert held == round(0.75 * len(seen))


def test_the_case_sampler_gives_each_case_the_same_share(store):
    seen = _first_epoch(store, data(store, sampler="case", fold="all"))
    counts = np.bincount([case for case, _ in seen])
    assert np.ptp(counts[counts > 0]) <= 1 and (counts > 0).sum() == len(store.splits.select("all")[0])


def test_a_sampler_without_anything_to_choose_from_is_refused(store):
    config = data(store, sampler="foreground", slices="kidney", margin=0)  # no slice without foreground is left
    for share, words in ((0.01, "is 0 of them, so slices with tumor would"), (0.99, "so slices without tumor would")):
        with pytest.raises(InputError, match=words):
            build_train_loader(store, data(store, sampler="tumor", share=share), AugmentConfig(), 0, Ranks())
    with pytest.raises(InputError, match="0 do not; both are needed. Use data.sampler=natural"):
        build_train_loader(store, config, AugmentConfig(), 0, Ranks())


def _first_epoch(store, config):
    loader, dataset = build_train_loader(store, config, AugmentConfig(), 0, Ranks())
    n = len(dataset.rows)
    return [pair for b in take(loader, -(-n // 4)) for pair in zip(b.case.tolist(), b.index.tolist(), strict=True)][:n]


def test_context_repeats_the_end_slices():
    volume = np.arange(4)[:, None, None] * np.ones((1, 2, 2), int)
    assert slab_of(volume, 0, 1)[:, 0, 0].tolist() == [0, 0, 1]
    assert slab_of(volume, 3, 2)[:, 0, 0].tolist() == [1, 2, 3, 3, 3]
    assert np.shares_memory(slab_of(volume, 2, 1), volume)


def test_a_batch_larger_than_the_data_is_refused(store):
    with pytest.raises(
        InputError, match=r"data.batch_size=500 times 2 processes is more than the \d+ training slices. Use \d+ or less"
    ):
        build_train_loader(store, data(store, batch_size=500), ALL_DRAWN, 0, Ranks(world=2))


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    """Twenty-five discs, as bright as labelled, on slices of 300x340: where they lie is known to a tenth of a pixel."""
    y, x = np.mgrid[:300, :340] + 0.5
    label = np.zeros((6, 300, 340), np.uint8)
    places = itertools.product((80.3, 115.7, 150.1, 184.6, 219.2), (95.4, 131.9, 170.3, 206.8, 243.1))
    for row, column in places:  # off any grid, so that the sampling errors of their edges are independent
        label[:, np.hypot(y - row - 0.07 * column, x - column + 0.13 * row) < 13 + row % 3] = 1
    root = tmp_path_factory.mktemp("dots")
    for number in range(3):
        folder, geometry = root / "raw" / f"case_{number:05d}", kits_geometry(label.shape, (3.0, 0.8, 0.7))
        write_nifti(folder / "imaging.nii.gz", np.where(label == 1, 200, 0).astype(np.int16) + number, geometry)
        write_nifti(folder / "aggregated_MAJ_seg.nii.gz", label, geometry)
    prepare.main(prepare.Args(source=str(root / "raw"), store=str(root / "store"), workers=1))
    return Store(root / "store")


@pytest.mark.parametrize("pixel_mm", [None, 0.9])
def test_image_and_label_stay_together(dots, backend, pixel_mm):
    """Centroids of what is bright and what is labelled under drawn geometry: within 0.1 px where the slice is turned by
    5 degrees or more. Below, a whole label moves with its nearest pixels, by up to half a pixel, but without bias.
    """
    config = data(dots, backend, size_px=(352, 352), pixel_mm=pixel_mm, batch_size=6)
    augment = AugmentConfig(rotate_p=1, rotate_deg=30, scale_p=1, scale=(0.9, 1.2), flip=0.5, noise_p=0, crop=0.5)
    loader, dataset = build_train_loader(dots, config, augment, 1, Ranks())
    grid, apart, turned = np.mgrid[:352, :352], [], []
    for step, batch in enumerate(take(loader, 8)):
        linear = dataset.batch(train_positions(step, 6, 0, 1)).params.matrix
        turned += (np.abs(linear[:, 1, 0] / linear[:, 1, 1]) > np.tan(np.deg2rad(5))).tolist()
        for image, label in zip(batch.image[:, 0].numpy(), batch.label.numpy(), strict=True):
            levels = np.round(image * dataset.norm.sd + dataset.norm.mean, 2)
            weights = np.where(levels > 3, levels, 0)  # cases lie 0, 1 or 2 HU above air
            bright, labelled = ((grid * w).sum(axis=(1, 2)) / w.sum() for w in (weights, label.astype(float)))
            apart.append(bright - labelled)
    assert sum(turned) > 30 and np.abs(np.array(apart)[turned]).max() < 0.1
    assert np.abs(np.mean(apart, axis=0)).max() < 0.03 and np.abs(apart).max() < 0.5


def test_batches_are_intact_when_the_device_is_busy_and_the_host_runs_ahead(store, backend):
    """A buffer that is reused too early shows as a batch that differs. tests/gpu asks the same of a GPU."""
    assert pixels.busy_differences(store, data(store, backend), pixels.Backend(backend), batches=6) == []


def test_a_batch_that_changed_has_another_digest(store, backend):
    (batch,) = take(build_train_loader(store, data(store, backend), ALL_DRAWN, 0, Ranks())[0], 1)
    changed = batch._replace(image=batch.image.clone())
    assert pixels.digest(changed) == pixels.digest(batch)
    changed.image[1, 0, 5, 5] += 1e-3
    assert pixels.digest(changed) != pixels.digest(batch)
    assert pixels.digest(batch._replace(label=batch.label.flip(0))) != pixels.digest(batch)
