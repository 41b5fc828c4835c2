"""The order of samples: one endless global stream, a pure function of (seed, samples, groups).

With a world of w ranks and batch size B, step s takes positions [s * w * B, (s + 1) * w * B) of the stream, and rank r
every w-th of them. So the samples drawn do not depend on w or B, every rank takes the same number of full batches,
nothing is dropped or repeated at the end of an epoch, and a run resumes from its position, on any number of ranks.

An epoch is n positions. With a single group it holds each of the n samples exactly once. With several groups (slices
with tumor and the others, say) each group gets its exact share of the positions of an epoch and goes through its
members in rounds: every member once before any is drawn again, across epochs.
"""

from typing import NamedTuple

import numpy as np

from kits_dist.data.counter_rng import hashed, permuted


class Group(NamedTuple):
    """Samples that share a quota of each epoch."""

    name: str  # for the log
    members: np.ndarray  # samples, distinct, below 2**31
    share: float  # of each epoch's positions; the shares of all groups sum to 1


class TrainOrder:
    """The stream of training samples. Elements are computed on demand: no permutation of an epoch is stored."""

    def __init__(self, groups: list[Group], seed: int):
        self.seed = seed
        self.num_samples = sum(len(group.members) for group in groups)
        edges = np.rint(np.cumsum([0.0, *(group.share for group in groups)]) * self.num_samples).astype(np.int64)
        self.counts = np.diff(edges).tolist()  # positions of each group in an epoch; they sum to num_samples
        self._edges = edges
        self._counts = np.diff(edges)
        self._sizes = np.array([len(group.members) for group in groups])
        self._first = np.cumsum(self._sizes) - self._sizes

        # The only copy, 4 bytes per sample: for ten million, 40 MB on every rank.
        self._members = np.concatenate([group.members for group in groups], dtype=np.int32, casting="same_kind")
        parts = np.split(self._members, self._first[1:])
        self.groups = [group._replace(members=part) for group, part in zip(groups, parts, strict=True)]

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the (B,) rounds and (B,) samples at (B,) global positions.

        A pair (round, sample) is never repeated, therefore augmentation is keyed by it.
        """
        epochs, slots = np.divmod(positions, self.num_samples)
        if len(self.groups) > 1:  # mix the groups within the epoch
            size = np.full_like(slots, self.num_samples)
            slots = permuted(slots, size, hashed(self.seed, len(self.groups), epochs))

        group = np.searchsorted(self._edges, slots, side="right") - 1
        turn = epochs * self._counts[group] + slots - self._edges[group]
        rounds, place = np.divmod(turn, self._sizes[group])
        member = permuted(place, self._sizes[group], hashed(self.seed, group, rounds))
        return rounds, self._members[self._first[group] + member].astype(np.int64)

    def shares(self) -> dict[str, dict[str, int]]:
        """Return, per group, its samples per epoch and the number of its distinct members."""
        return {
            group.name: {"an_epoch": count, "members": len(group.members)}
            for group, count in zip(self.groups, self.counts, strict=True)
        }


def train_positions(step: int, batch_size: int, rank: int, world: int, start: int = 0) -> np.ndarray:
    """Return the (B,) positions of the batch of a rank, `step` steps after global position `start`."""
    first = start + step * world * batch_size
    return np.arange(first + rank, first + world * batch_size, world)


def val_positions(num_samples: int, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
    """Return the batches of a rank over 0..n-1, in order: each sample exactly once over all ranks.

    The last batch may be short. Ranks may differ by one batch and a rank may have none, so a validation loop must not
    call collectives per batch.
    """
    mine = np.arange(rank, num_samples, world)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
