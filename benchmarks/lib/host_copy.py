"""Slices of the store copied into one host batch and left as they are: the ceiling of every loader."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kits_dist.data.dataset import SliceDataset
from kits_dist.data.sampler import train_positions


class CopyStep(NamedTuple):
    """A step that brings images somewhere."""

    run: Callable[[], object]
    images: int  # per step
    nbytes: int  # per step


def host_steps(dataset: SliceDataset, batch_size: int) -> dict[str, CopyStep]:
    """Return "views" of the slices of a batch, "read", which copies them, and "host_copy" of as many bytes."""
    steps = itertools.count()
    target, nbytes = room_for(dataset, batch_size)
    source = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)

    def views():
        return dataset.batch(train_positions(next(steps), batch_size, 0, 1))

    return {
        "views": CopyStep(views, batch_size, 0),
        "read": CopyStep(lambda: copy_into(target, views()), batch_size, nbytes),
        "host_copy": CopyStep(lambda: np.copyto(target[:nbytes], source), batch_size, nbytes),
    }


def room_for(dataset: SliceDataset, batch_size: int) -> tuple[np.ndarray, int]:
    """Return memory for any batch, and the bytes of the first one: slices may differ in size between cases."""
    largest = max(int(np.prod(case.shape[1:])) for case in dataset.store.cases)
    room = np.zeros(batch_size * largest * (dataset.frames + 1), np.uint8)
    return room, copy_into(room, dataset.batch(train_positions(0, batch_size, 0, 1)))


def copy_into(target: np.ndarray, host: Any) -> int:
    """Copy images, then labels, one after another, and return their bytes."""
    end = 0
    for piece in itertools.chain(host.slabs, host.labels):
        begin, end = end, end + piece.size
        target[begin:end] = piece.reshape(-1)
    return end
