"""Slices in GPU memory are the slices of the store; on the CPU here, on a GPU in tests/gpu."""

import mmap
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import slice_cache
from kits_dist.data.backends.dali import DaliLoader
from kits_dist.data.dataset import BatchPlan, SliceDataset
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.sampler import train_positions
from kits_dist.data.samples import Samples, select_rows
from kits_dist.data.slice_cache import (
    GpuSlices,
    MappedSlices,
    MaskedSlices,
    choose_residency,
    gathered_bytes,
    queue_bytes,
)
from kits_dist.data.store import Store, array_path
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils.errors import InputError, JobFailed

CPU = torch.device("cpu")


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("slices", ["all", "kidney"])
def test_gathered_slices_are_those_of_the_store_padded_with_0(store, context, slices):
    rows = select_rows(store, [case.case_id for case in store.cases], slices, 0, ["axial"])
    mapped, resident = MappedSlices(store, context), GpuSlices(store, rows, context, CPU)
    table = store.slices
    places = [
        ((int(table.case[row]), "axial"), int(table.index[row])) for row in np.random.default_rng(0).permutation(rows)
    ]
    slabs, labels = resident.take(places)
    assert slabs.is_contiguous() and labels.is_contiguous()
    for expected, found in zip(mapped.take(places), (slabs, labels), strict=True):
        for view, padded in zip(expected, found.numpy(), strict=True):
            inside = tuple(map(slice, view.shape))
            assert np.array_equal(padded[inside], view)
            assert padded.sum() == view.sum()
    held = [tensor for pair in resident._tensors.values() for tensor in pair]
    assert sum(tensor.numel() for tensor in held) == GpuSlices.bytes_needed(store, rows, context)


def test_the_slices_of_the_next_batch_are_read_ahead(store, monkeypatch):
    """Each slice with its neighbors, and its label: whole pages that hold it, of the file that is mapped."""
    asked = []
    monkeypatch.setattr(slice_cache, "_madvise", lambda *call: asked.append(call))
    data = DataConfig(store=str(store.path), batch_size=4, size_px=(64, 64), threads=1, context=1)
    dataset = build_train_loader(store, data, AugmentConfig(), 0, Ranks())[1]
    plan = BatchPlan(lambda step: train_positions(step, 4, 0, 1), None)
    dataset.planned(plan, 0)
    following = dataset.batch(plan.positions(1))
    assert len(asked) == 2 * 4 and {advice for *_, advice in asked} == {mmap.MADV_WILLNEED}
    assert all(address % mmap.PAGESIZE == 0 for address, *_ in asked)
    for (image, label), (case, index, _) in zip(
        zip(asked[::2], asked[1::2], strict=True), following.identity, strict=True
    ):
        for (address, nbytes, _), volume, context in ((image, store.image, 1), (label, store.label, 0)):
            mapped = volume(case, "axial")
            first, last = max(0, index - context), min(len(mapped) - 1, index + context)
            for needed in (mapped[first], mapped[last]):
                begin = needed.__array_interface__["data"][0]
                assert address <= begin and begin + needed.nbytes <= address + nbytes
            assert nbytes < (last - first + 1) * mapped[0].nbytes + mmap.PAGESIZE


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:200])])
def test_a_file_that_is_gone_is_reported_by_the_batch_that_needs_it(store, tmp_path, spoil):
    """Not by the one before, which only lets the system read ahead."""
    shutil.copytree(store.path, tmp_path / "store")
    copy = Store(tmp_path / "store")
    data = DataConfig(store=str(copy.path), batch_size=1, size_px=(64, 64))
    rows = select_rows(copy, [case.case_id for case in copy.cases], "all", 0, ["axial"])
    dataset = SliceDataset(copy, Samples(rows), data, augment=None, seed=0, norm=copy.normalization(0))
    first, other = (int(np.flatnonzero(copy.slices.case[rows] == case)[0]) for case in (0, 1))
    plan = BatchPlan([np.array([first]), np.array([other])].__getitem__, 2)
    spoil(array_path(copy.path, "axial", copy.cases[1].case_id, "image"))
    assert dataset.planned(plan, 0).identity[0, 0] == 0
    with pytest.raises(JobFailed, match="the store changed while it was read"):
        dataset.planned(plan, 1)


def test_masked_slices_are_the_same_in_gpu_memory(store):
    rows = select_rows(store, [case.case_id for case in store.cases], "kidney", 0, ["axial"])
    resident = GpuSlices(store, rows, 0, CPU, masked=True)
    table = store.slices
    places = [((int(table.case[row]), "axial"), int(table.index[row])) for row in rows]
    for view, label, padded in zip(*MaskedSlices(store, 0).take(places), resident.take(places)[0].numpy(), strict=True):
        assert np.array_equal(padded[tuple(map(slice, view.shape))], view) and padded.sum() == view.sum() > 0
        assert not view[0][label == 0].any()
    data = DataConfig(store=str(store.path), mask="kidney")
    assert isinstance(choose_residency(store, rows, data, CPU), MaskedSlices)


def test_the_normalization_of_masked_slices_is_that_of_their_kidneys(store):
    cases = [store.row[case] for case in store.splits.select(0)[0]]
    levels = np.concatenate([store.image(case)[store.label(case) > 0] for case in cases]).astype(float)
    found = store.normalization(0, "kidney")
    assert (found.mean, found.sd) == pytest.approx((levels.mean(), levels.std()))
    assert store.normalization(0).mean < found.mean


def test_slices_of_one_size_are_not_padded(store):
    resident = GpuSlices(store, np.arange(len(store.slices.case)), 0, CPU)
    shape = store.image(2, "axial").shape[1:]
    assert resident.take([((2, "axial"), 0), ((4, "axial"), 1)])[0].shape == (2, 1, *shape, 1)


class OnTheHost(GpuSlices):
    """As arrays: DALI takes tensors only from a GPU."""

    def take(self, places):
        slabs, labels = super().take(places)
        return slabs.numpy(), labels.numpy()


def test_the_same_batches_come_out_of_dali(store):
    data = DataConfig(store=str(store.path), batch_size=4, size_px=(64, 64), threads=1, context=1, backend="dali")
    real, dataset = build_train_loader(store, data, AugmentConfig(), 0, Ranks())
    held = OnTheHost(store, dataset.rows, data.context, CPU)
    other = SliceDataset(
        store, Samples(dataset.rows), data, augment=AugmentConfig(), seed=0, norm=dataset.norm, slice_source=held
    )
    plan = BatchPlan(lambda step: train_positions(step, 4, 0, 1), None)
    resident = DaliLoader(other, plan, CPU, torch.float32, threads=1)
    for _, a, b in zip(range(8), real, resident, strict=False):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_gpu_residency_without_a_gpu_is_refused_and_auto_falls_back(store):
    data = {"store": str(store.path), "batch_size": 4, "size_px": (64, 64)}
    with pytest.raises(InputError, match="data.residency=gpu needs an NVIDIA GPU.*Use data.residency=mmap"):
        build_train_loader(store, DataConfig(**data, residency="gpu"), AugmentConfig(), 0, Ranks())
    _, dataset = build_train_loader(store, DataConfig(**data, residency="auto"), AugmentConfig(), 0, Ranks())
    assert isinstance(dataset.slice_source, MappedSlices)


@pytest.mark.parametrize(
    ("residency", "backend", "device"),
    [("auto", "dali", "cpu"), ("auto", "opencv", "cuda"), ("mmap", "dali", "cuda"), ("gpu", "dali", "cuda")],
)
def test_no_step_is_measured_where_the_answer_does_not_count(store, monkeypatch, residency, backend, device):
    """Measuring costs a forward and a backward pass."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**8, 10**8))
    monkeypatch.setattr(slice_cache, "GpuSlices", OnTheCPU)
    data = DataConfig(store="s", batch_size=2, size_px=(64, 64), residency=residency, backend=backend)
    choose_residency(store, np.arange(4), data, torch.device(device), lambda: pytest.fail("measured"))


@pytest.mark.parametrize(
    ("residency", "step_bytes", "free", "expected"),
    [
        ("auto", 10**6, 10**8, GpuSlices),  # the slices fit in addition to the step
        ("auto", 10**8, 10**8, MappedSlices),  # the step takes what is there
        ("auto", 0, 12 * 10**5, MappedSlices),  # 0.36 MB of batches for training, as much for validation, 0.28 gathered
        ("auto", 0, 14 * 10**5, GpuSlices),
        ("auto", None, 10**8, GpuSlices),  # not measured: half of what is free is the step's
        ("auto", None, 10**5, MappedSlices),
        ("gpu", 10**8, 10**8, GpuSlices),  # asked for by name: the user may know better
        ("gpu", 0, 10**4, InputError),
    ],
)
def test_auto_weighs_the_slices_against_the_measured_step(store, monkeypatch, residency, step_bytes, free, expected):
    """~0.3 MB of slices; a fake mem_get_info stands in for a GPU."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(slice_cache, "GpuSlices", OnTheCPU)
    data = DataConfig(store=str(store.path), batch_size=2, size_px=(64, 64), residency=residency)
    rows = select_rows(store, [case.case_id for case in store.cases], "all", 0, ["axial"])
    assert 2e5 < GpuSlices.bytes_needed(store, rows, 0) < 4e5 and queue_bytes(data) == 2 * 4 * 2 * 64 * 64 * 11
    assert gathered_bytes(store, data) == 9 * 2 * 96 * 70 * 2  # nine batches of two of the largest slices, with labels
    measured = None if step_bytes is None else lambda: step_bytes
    if expected is InputError:
        with pytest.raises(InputError, match="data.residency=gpu: .* of GPU memory free. Use data.residency=mmap"):
            choose_residency(store, rows, data, torch.device("cuda", 0), measured)
        return
    chosen = choose_residency(store, rows, data, torch.device("cuda", 0), measured)
    assert isinstance(chosen, expected) and "GB" in chosen.description


class OnTheCPU(GpuSlices):
    def __init__(self, store, rows, context, device, description, masked):
        super().__init__(store, rows, context, CPU, description, masked)
