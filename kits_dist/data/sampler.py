"""Which sample comes when: one endless global stream, a pure function of (seed, number of samples).

Position p of the stream is sample `permutation(seed, epoch)[p % n]` of epoch `p // n`. Step s of w ranks with batch B
takes positions [s * w * B, (s + 1) * w * B); rank r takes every w-th of them. So each epoch holds each sample exactly
once whatever w and B are, every rank takes equal steps of full batches, nothing is dropped or repeated at an epoch's
end, and a run resumes anywhere by its position alone, on another number of ranks too.
"""

from functools import lru_cache

import numpy as np


class TrainOrder:
    """The stream for training; batches run across epoch ends."""

    def __init__(self, num_samples: int, seed: int):
        self.num_samples = num_samples
        self.seed = seed
        self._permutation = lru_cache(maxsize=2)(self._draw)  # a batch touches two epochs at most

    def _draw(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        return generator.permutation(self.num_samples)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) global positions -> (B,) epoch, (B,) sample in 0..n-1."""
        epochs, slots = np.divmod(positions, self.num_samples)
        samples = np.empty_like(slots)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            samples[mine] = self._permutation(int(epoch))[slots[mine]]
        return epochs, samples


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


def steps_to(position: int, global_batch: int) -> int:
    """Steps from the start of the stream until `position` samples have been consumed, rounded up."""
    return -(-position // global_batch)
