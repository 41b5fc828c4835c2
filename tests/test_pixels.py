"""Slices in memory of a device are the slices of the store; on the CPU here, on a GPU in tests/gpu."""

import numpy as np
import pytest
import torch

from kits_dist.batch import ALONE
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import build_train_loader
from kits_dist.data.dali_backend import DaliLoader
from kits_dist.data.feed import Feed, Plan, select_rows
from kits_dist.data.pixels import Mapped, Resident
from kits_dist.data.sampler import train_positions
from kits_dist.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("slices", ["all", "kidney"])
def test_every_slab_and_label_is_that_of_the_store_and_a_view(store, context, slices):
    rows = select_rows(store, [case.case_id for case in store.cases], slices, 0, ["axial"])
    mapped, resident = Mapped(store, context), Resident(store, rows, context, CPU)
    for row in rows:
        stack, index = (int(store.slices.case[row]), "axial"), int(store.slices.index[row])
        slab, label = resident.slab(stack, index), resident.label(stack, index)
        assert np.array_equal(slab.numpy(), mapped.slab(stack, index)) and slab.is_contiguous()
        assert np.array_equal(label.numpy(), mapped.label(stack, index))
    held = [tensor for image, label, _ in resident._stacks.values() for tensor in (image, label)]
    assert sum(tensor.numel() for tensor in held) == Resident.bytes_needed(store, rows, context)
    assert resident.slab(stack, index).data_ptr() == resident.slab(stack, index).data_ptr()


class OnTheHost(Resident):
    """As arrays: DALI takes tensors only from a GPU."""

    def slab(self, *which):
        return super().slab(*which).numpy()

    def label(self, *which):
        return super().label(*which).numpy()


def test_the_same_batches_come_out_of_dali(store):
    data = DataConfig(store=str(store.path), batch_size=4, size_px=(64, 64), threads=1, context=1)
    real, feed = build_train_loader(store, data, AugmentConfig(), 0, ALONE)
    held = OnTheHost(store, feed.rows, data.context, CPU)
    other = Feed(store, feed.rows, data, AugmentConfig(), 0, feed.norm, held)
    plan = Plan(lambda step: train_positions(step, 4, 0, 1), None)
    resident = DaliLoader(other, plan, 4, CPU, 1, 2, torch.float32)
    for _, a, b in zip(range(8), real, resident, strict=False):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_what_this_machine_has_not_is_refused_and_auto_falls_back(store):
    data = {"store": str(store.path), "batch_size": 4, "size_px": (64, 64)}
    with pytest.raises(InputError, match="data.residency=gpu needs an NVIDIA GPU.*Use data.residency=mmap"):
        build_train_loader(store, DataConfig(**data, residency="gpu"), AugmentConfig(), 0, ALONE)
    _, feed = build_train_loader(store, DataConfig(**data, residency="auto"), AugmentConfig(), 0, ALONE)
    assert isinstance(feed.pixels, Mapped)
