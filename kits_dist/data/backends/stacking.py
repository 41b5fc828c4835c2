"""Make few arrays of a batch: its slices in one, in host memory that is used again, its parameters in another.

DALI takes one array in a hundredth of the time of a view per slice, and a GPU copies from page-locked memory by itself,
without a thread that waits for it.
"""

import math
import warnings
from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kits_dist.data.augment_params import AugmentParams
from kits_dist.data.dataset import HostBatch

# of torch.from_numpy: a mapped file is only read
warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)


class StackedBatch(NamedTuple):
    """A HostBatch whose slabs are one (B, F, H, W, 1) array and whose labels are one (B, H, W, 1) array."""

    host: HostBatch
    memory: Tensor | None  # that holds both; None where they are in GPU memory anyway
    numbers: np.ndarray  # (B, 6) float32: blur, linear, gain, bias, gamma, noise_sd


class Stacker:
    """Stack batches in one thread; another thread may give their memory back."""

    def __init__(self, pinned: bool):
        """pinned: use page-locked memory, for a GPU."""
        self._pinned = pinned
        self._free: deque[Tensor] = deque()

    def stack(self, host: HostBatch) -> StackedBatch:
        """Return the batch, each slice padded with 0 at the bottom and on the right to the size of the largest.

        Padding changes no warp: outside a slice everything counts as 0.
        """
        if not isinstance(host.slabs, list) or not isinstance(host.labels, list):
            return StackedBatch(host, None, _numbers(host.params))
        shapes = [(len(views), *np.max([view.shape for view in views], axis=0)) for views in (host.slabs, host.labels)]
        sizes = [math.prod(shape) for shape in shapes]
        memory = self._memory(sum(sizes))
        slabs, labels = (
            part.reshape(shape) for part, shape in zip(np.split(memory.numpy(), np.cumsum(sizes)), shapes, strict=False)
        )
        _copy(host.slabs, slabs)
        _copy(host.labels, labels)
        return StackedBatch(host._replace(slabs=slabs, labels=labels), memory, _numbers(host.params))

    def give_back(self, batch: StackedBatch) -> None:
        """Take the memory of a batch that nothing reads any more."""
        if batch.memory is not None:
            self._free.append(batch.memory)

    def _memory(self, size: int) -> Tensor:
        while self._free:
            memory = self._free.popleft()
            if len(memory) >= size:
                return memory
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)


def _numbers(p: AugmentParams) -> np.ndarray:
    return np.stack([p.blur, p.linear, p.gain, p.bias, p.gamma, p.noise_sd], axis=1, dtype=np.float32)


def _copy(views: list[np.ndarray], out: np.ndarray) -> None:
    if all(view.shape == out.shape[1:] for view in views):
        # One call that gives up Python's lock once: a copy of each slice asks for it back each time, and the thread
        # that starts kernels waits in turn.
        torch.stack([torch.from_numpy(view) for view in views], out=torch.from_numpy(out))
        return
    for view, place in zip(views, out, strict=True):
        if view.shape != place.shape:
            place[:] = 0
            place = place[tuple(map(slice, view.shape))]
        np.copyto(place, view)  # gives up Python's lock
