"""What the peers share: the store's slices in our order, handed to a torch DataLoader."""

import itertools
import warnings
from collections.abc import Iterator
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kits_dist.config import AugmentConfig
from kits_dist.data import augment_params
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.sampler import train_positions

PREFETCH = 2  # batches a worker prepares ahead: torch's default, and what bounds its work once nobody asks


class Peer(Protocol):
    """A library's way from a slice to what the network sees."""

    package: ClassVar[str]  # on the package index
    choices: ClassVar[str]  # which of the library's options are used, for the line

    def __init__(self, dataset: SliceDataset, changes: AugmentConfig): ...

    def seed(self, seed: int) -> None:
        """Called once in each worker: a forked generator would draw the same as its sibling."""

    def sample(self, levels: np.ndarray, labels: np.ndarray) -> tuple:
        """In a worker: (H, W) uint8 levels and labels, read-only -> what is collated."""

    def batch(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """In the calling process: what was collated -> (B, 1, h, w) float32 normalised, (B, h, w) uint8."""


class Slices(Dataset):
    """Row of store.slices -> a peer's sample of that slice."""

    def __init__(self, dataset: SliceDataset, changes: AugmentConfig, peer: Peer):
        """changes.crop: 1 leaves the window to the peer, 0 cuts it out around the body before the peer sees it."""
        if changes.crop not in (0, 1):
            raise ValueError(f"augment.crop={changes.crop}: a peer's window is drawn always (1) or never (0)")
        self.dataset, self.centred, self.peer = dataset, changes.crop == 0, peer

    def __getitem__(self, row: int) -> tuple:
        return self.peer.sample(*self.pair(row))

    def pair(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) uint8 levels and labels, at least as large as the window; views where nothing is padded."""
        store, size_px = self.dataset.store, self.dataset.data.size_px
        case, index = int(store.slices.case[row]), int(store.slices.index[row])
        found = [np.asarray(stack[index]) for stack in (store.image(case), store.label(case))]
        found = [_padded(array, size_px) for array in found]
        if self.centred:
            matrix = augment_params.centered(self.dataset.grid, [store.cases[case].slice_geometry("axial")]).matrix[0]
            left, top = np.maximum(matrix[:, 2], 0).astype(int)
            found = [array[top : top + size_px[0], left : left + size_px[1]] for array in found]
        return found[0], found[1]


class Order:
    """Endless batches of rows of store.slices: those that our loaders take at the same step."""

    def __init__(self, dataset: SliceDataset, batch_size: int):
        self.dataset, self.batch_size = dataset, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count():
            _, samples = self.dataset.order.at(train_positions(step, self.batch_size, 0, 1))
            yield self.dataset.rows[samples].tolist()


def stream(
    peer: Peer, dataset: SliceDataset, changes: AugmentConfig, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches. The workers start here and now, so start them before anything that has threads: they are forked.

    workers   0 makes the batches in the calling process
    """
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # a view of the map, copied next
    dataset = Slices(dataset, changes, peer)
    if not workers:
        peer.seed(torch.initial_seed() % 2**32)
    loader = DataLoader(
        dataset,
        batch_sampler=Order(dataset, batch_size),
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_begin_worker,
    )
    batches = iter(loader)
    return (peer.batch(*pair) for pair in batches)


def _begin_worker(worker: int) -> None:
    """torch has given this process one thread and a seed of its own."""
    info = torch.utils.data.get_worker_info()
    info.dataset.peer.seed(info.seed % 2**32)


def _padded(levels: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Level 0 around a slice that is smaller than the window. No slice of KiTS is smaller than 512x512."""
    missing = [max(0, want - have) for want, have in zip(size_px, levels.shape, strict=True)]
    if not any(missing):
        return levels
    return np.pad(levels, [(n // 2, n - n // 2) for n in missing])
