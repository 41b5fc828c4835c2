"""What the peers share: the store's slices in our order, handed to a torch DataLoader."""

import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kits_dist.config import AugmentConfig
from kits_dist.data import augment_params
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.sampler import train_positions

PREFETCH = 2  # batches that a worker prepares ahead: torch's default


class Peer(ABC):
    """A library that turns a slice into the input of the network."""

    package: ClassVar[str]  # on the package index
    module: ClassVar[str] = ""  # by which it is imported, where that is another name
    extra: ClassVar[str] = "peers"  # of kits-dist, which installs it
    choices: ClassVar[str]  # which of the library's options are used, for the line

    @abstractmethod
    def __init__(self, dataset: SliceDataset, changes: AugmentConfig):
        """Prepare the transforms; `changes` are what they shall draw."""

    def source(self, dataset: SliceDataset, changes: AugmentConfig) -> Dataset:
        """Return what maps a row of store.slices to a peer's sample of that slice, in a worker."""
        return Slices(dataset, changes, self)

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed the generators of a worker: forked ones would draw the same as those of its siblings."""

    @abstractmethod
    def sample(self, levels: np.ndarray, labels: np.ndarray) -> tuple:
        """Change a slice in a worker: (H, W) uint8 levels and labels, read-only -> what is collated."""

    @abstractmethod
    def batch(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Turn what was collated into (B, 1, h, w) float32 normalized and (B, h, w) uint8, in the calling process."""


class Slices(Dataset):
    """Maps a row of store.slices to a peer's sample of that slice."""

    def __init__(self, dataset: SliceDataset, changes: AugmentConfig, peer: Peer):
        """changes.crop: 1 leaves the crop to the peer, 0 crops around the body before the peer gets the slice."""
        if changes.crop not in (0, 1):
            raise ValueError(f"augment.crop={changes.crop}: a peer's crop is drawn always (1) or never (0)")
        self.dataset, self.centered, self.peer = dataset, changes.crop == 0, peer

    def __getitem__(self, row: int) -> tuple:
        return self.peer.sample(*self.pair(row))

    def pair(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (H, W) uint8 levels and labels, at least as large as the crop; views where nothing is padded."""
        store, size_px = self.dataset.store, self.dataset.data.size_px
        case, index = int(store.slices.case[row]), int(store.slices.index[row])
        found = [np.asarray(stack[index]) for stack in (store.image(case), store.label(case))]
        found = [_padded(array, size_px) for array in found]
        if self.centered:
            matrix = augment_params.centered(self.dataset.grid, [store.cases[case].slice_geometry("axial")]).matrix[0]
            left, top = np.maximum(matrix[:, 2], 0).astype(int)
            found = [array[top : top + size_px[0], left : left + size_px[1]] for array in found]
        return found[0], found[1]


class Order:
    """Endless batches of rows of store.slices, the same that our loaders take at each step."""

    def __init__(self, dataset: SliceDataset, batch_size: int):
        self.dataset, self.batch_size = dataset, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count():
            _, samples = self.dataset.order.at(train_positions(step, self.batch_size, 0, 1))
            yield self.dataset.rows[samples].tolist()


def stream(
    peer: Peer, dataset: SliceDataset, changes: AugmentConfig, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return endless batches. The workers are forked here, so call it before anything that starts threads.

    workers   0 makes the batches in the calling process
    """
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # a view of the map, copied next
    slices = peer.source(dataset, changes)
    if not workers:
        peer.seed(torch.initial_seed() % 2**32)
    loader = DataLoader(
        slices,
        batch_sampler=Order(dataset, batch_size),
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_begin_worker,
    )
    batches = iter(loader)
    return (peer.batch(*pair) for pair in batches)


def _begin_worker(worker: int) -> None:
    """Seed the peer; PyTorch has given this process one thread and its own seed."""
    info = torch.utils.data.get_worker_info()
    info.dataset.peer.seed(info.seed % 2**32)


def _padded(levels: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Pad a slice smaller than the crop with level 0. No slice of KiTS is smaller than 512x512."""
    missing = [max(0, want - have) for want, have in zip(size_px, levels.shape, strict=True)]
    if not any(missing):
        return levels
    return np.pad(levels, [(n // 2, n - n // 2) for n in missing])
