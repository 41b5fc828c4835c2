"""Which sample comes when: one endless global stream, a pure function of (seed, the samples, their groups).

Step s of w ranks with batch B takes positions [s * w * B, (s + 1) * w * B) of the stream; rank r takes every w-th of
them. So what is drawn does not depend on w or B, every rank takes equal steps of full batches, nothing is dropped or
repeated at an epoch's end, and a run resumes anywhere by its position alone, on another number of ranks too.

An epoch is n positions. Without groups it holds each of the n samples exactly once. With groups (slices with tumor and
the others, say) each group gets its exact share of the epoch's positions and goes through its own members in rounds:
every member once before any comes again, across epochs.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Group(NamedTuple):
    name: str  # for the log
    members: np.ndarray  # samples, distinct
    share: float  # of each epoch's positions; the shares of all groups sum to 1


class TrainOrder:
    """The stream for training; batches run across epoch ends."""

    def __init__(self, groups: list[Group], seed: int):
        self.num_samples = sum(len(group.members) for group in groups)
        self.groups = groups
        self.seed = seed
        edges = np.rint(np.cumsum([0.0, *(group.share for group in groups)]) * self.num_samples).astype(int)
        self.counts = np.diff(edges).tolist()  # positions of each group in an epoch; they sum to num_samples
        self._epoch = lru_cache(maxsize=2)(self._draw)  # a batch touches two epochs at most

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) global positions -> (B,) round, (B,) sample. (round, sample) never comes twice: it keys augmentation."""
        epochs, slots = np.divmod(positions, self.num_samples)
        drawn = np.empty((len(positions), 2), np.int64)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            drawn[mine] = self._epoch(int(epoch))[slots[mine]]
        return drawn[:, 0], drawn[:, 1]

    def _draw(self, epoch: int) -> np.ndarray:
        """(n, 2) int64: round and sample at each position of an epoch."""
        parts = []
        for number, (group, count) in enumerate(zip(self.groups, self.counts, strict=True)):
            rounds, slots = np.divmod(np.arange(epoch * count, (epoch + 1) * count), len(group.members))
            samples = np.empty(count, np.int64)
            for one in np.unique(rounds):
                mine = rounds == one
                samples[mine] = group.members[self._permutation(number, int(one), len(group.members))[slots[mine]]]
            parts.append(np.stack([rounds, samples], axis=1))
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts)[self._permutation(len(self.groups), epoch, self.num_samples)]

    def _permutation(self, stream: int, number: int, size: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[self.seed * 256 + stream, number])).permutation(size)


def train_positions(step: int, batch_size: int, rank: int, world: int, start: int = 0) -> np.ndarray:
    """(B,) positions of this rank's batch, `step` steps after global position `start`."""
    first = start + step * world * batch_size
    return np.arange(first + rank, first + world * batch_size, world)


def val_positions(num_samples: int, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
    """This rank's batches over 0..n-1 in order, the last one short: each sample once over all ranks, none twice.

    Ranks may differ by one batch and a rank may have none, so nothing collective may happen per batch.
    """
    mine = np.arange(rank, num_samples, world)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
