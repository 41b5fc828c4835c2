"""Which sample comes when: one endless global stream, a pure function of (seed, the samples, their groups).

Step s of w ranks with batch B takes positions [s * w * B, (s + 1) * w * B) of the stream; rank r takes every w-th of
them. So what is drawn does not depend on w or B, every rank takes equal steps of full batches, nothing is dropped or
repeated at an epoch's end, and a run resumes anywhere by its position alone, on another number of ranks too.

An epoch is n positions. Without groups it holds each of the n samples exactly once. With groups (slices with tumor and
the others, say) each group gets its exact share of the epoch's positions and goes through its own members in rounds:
every member once before any comes again, across epochs.
"""

from typing import NamedTuple

import numpy as np

from kits_dist.data.shuffle import hashed, permuted


class Group(NamedTuple):
    name: str  # for the log
    members: np.ndarray  # samples, distinct, below 2**31
    share: float  # of each epoch's positions; the shares of all groups sum to 1


class TrainOrder:
    """The stream for training; batches run across epoch ends. Computed where it is asked for: no epoch is held."""

    def __init__(self, groups: list[Group], seed: int):
        self.seed = seed
        self.num_samples = sum(len(group.members) for group in groups)
        edges = np.rint(np.cumsum([0.0, *(group.share for group in groups)]) * self.num_samples).astype(np.int64)
        self.counts = np.diff(edges).tolist()  # positions of each group in an epoch; they sum to num_samples
        self._edges, self._counts = edges, np.diff(edges)
        self._sizes = np.array([len(group.members) for group in groups])
        self._first = np.cumsum(self._sizes) - self._sizes
        # The one copy that is held, 4 bytes a sample: of ten million, 40 MB on every rank.
        self._members = np.concatenate([group.members for group in groups], dtype=np.int32, casting="same_kind")
        parts = np.split(self._members, self._first[1:])
        self.groups = [group._replace(members=part) for group, part in zip(groups, parts, strict=True)]

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) global positions -> (B,) round, (B,) sample. (round, sample) never comes twice: it keys augmentation."""
        epochs, slots = np.divmod(positions, self.num_samples)
        if len(self.groups) > 1:  # groups take turns at random places
            size = np.full_like(slots, self.num_samples)
            slots = permuted(slots, size, hashed(self.seed, len(self.groups), epochs))
        group = np.searchsorted(self._edges, slots, side="right") - 1
        turn = epochs * self._counts[group] + slots - self._edges[group]
        rounds, place = np.divmod(turn, self._sizes[group])
        member = permuted(place, self._sizes[group], hashed(self.seed, group, rounds))
        return rounds, self._members[self._first[group] + member].astype(np.int64)

    def shares(self) -> dict[str, dict[str, int]]:
        """Of each group: how many positions of an epoch are its, and how many members take turns in them."""
        return {
            group.name: {"an_epoch": count, "members": len(group.members)}
            for group, count in zip(self.groups, self.counts, strict=True)
        }


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
