"""MONAI as in its fast-training tutorial: every slice cached on the device, transforms there, and ThreadDataLoader.

Its own U-Net (16 to 256 channels, two residual units per level) differs from ours and does less work for an image: the
line holds the counted operations.
"""

from collections.abc import Iterator

import torch

from benchmarks.lib.training import PeerBatch, PlainStep, Setup, Training
from benchmarks.peers.monai_loader import Monai
from benchmarks.peers.slices import Slices
from kits_dist.data.dataset import SliceDataset

CHANNELS = (16, 32, 64, 128, 256)
CHOICES = "CacheDataset on the device, ThreadDataLoader, MONAI's own UNet, autocast, Adam"


def build(setup: Setup, dataset: SliceDataset) -> Training:
    """Build the training on the training slices of `dataset`."""
    from monai.data import CacheDataset, ThreadDataLoader
    from monai.networks.nets import UNet
    from monai.transforms import Compose, RandomizableTransform, Transform

    peer = Monai(dataset, setup.changes)
    peer.seed(setup.seed)
    slices = Slices(dataset, setup.changes, peer)

    class Load(Transform):
        """Loads a row of store.slices onto the device; cached, since nothing random precedes it."""

        def __call__(self, row: int) -> dict[str, torch.Tensor]:
            return {key: tensor.to(setup.device) for key, tensor in peer.tensors(*slices.pair(row)).items()}

    class Change(RandomizableTransform):
        def __call__(self, pair: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            return peer.changed(pair)

    rows = dataset.rows.tolist()
    cached = CacheDataset(rows, Compose([Load(), Change()]), cache_rate=1.0, num_workers=0, progress=False)
    loader = ThreadDataLoader(cached, num_workers=0, batch_size=setup.data.batch_size, shuffle=True, drop_last=True)
    network = UNet(2, 1, len(setup.network.regions), CHANNELS, (2, 2, 2, 2), num_res_units=2, norm="batch")
    step = PlainStep(network, setup.network.regions, setup.runtime, setup.optim, setup.train)
    return Training(_endless(loader), step, step.model, CHOICES)


def _endless(loader) -> Iterator[PeerBatch]:
    while True:
        for image, label in loader:
            yield PeerBatch(image, label)
