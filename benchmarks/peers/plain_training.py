"""Plain PyTorch, as most people train: DataLoader, albumentations, the same network, autocast, Adam.

Options that are faster than the obvious ones: bytes travel to the GPU and are normalized there (float32 from the
workers is four times as much to pin and copy), pinned memory, persistent workers, channels_last and the fused optimizer
as in ours. So only the data path and the loop differ.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.lib.training import PeerBatch, PlainStep, Setup, Training
from benchmarks.peers.albumentations_loader import Albumentations
from benchmarks.peers.slices import stream
from kits_dist.data.dataset import SliceDataset
from kits_dist.models import build_model
from kits_dist.utils.limits import available_cores

CHOICES = "DataLoader of one worker a core, albumentations, the same network, autocast, Adam"


def build(setup: Setup, dataset: SliceDataset) -> Training:
    """Build the training on the training slices of `dataset`."""
    peer = _ToDevice(dataset, setup) if setup.device.type == "cuda" else Albumentations(dataset, setup.changes)
    pairs = stream(peer, dataset, setup.changes, setup.data.batch_size, workers=available_cores())
    model = build_model(setup.network, 1, pretrained=False)
    step = PlainStep(model, setup.network.regions, setup.runtime, setup.optim, setup.train)
    return Training(_batches(pairs, setup.device), step, step.model, CHOICES)


def _batches(pairs: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[PeerBatch]:
    for image, label in pairs:
        yield PeerBatch(image.to(device, non_blocking=True), label.to(device, non_blocking=True))


class _ToDevice(Albumentations):
    """Copies batches to the device as they leave the workers, and normalizes them there."""

    def __init__(self, dataset: SliceDataset, setup: Setup):
        super().__init__(dataset, setup.changes)
        self.device, self.levels, self.norm = setup.device, dataset.store.window.levels, dataset.norm

    def __getstate__(self) -> dict:  # a worker needs only the transform
        return vars(self) | {"device": None}

    def batch(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        levels = image.pin_memory().to(self.device, non_blocking=True)[:, None].float().clamp_(max=self.levels)
        return levels.sub_(self.norm.mean).div_(self.norm.sd), label.pin_memory().to(self.device, non_blocking=True)
