"""Compare the batches of the backends with their definition, and those of a busy device with those of an idle one."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.lib.harness import drain
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import augment_reference
from kits_dist.data.batch import Batch
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.sampler import train_positions
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks

# every kind of change, each in enough of a batch, most samples with several
DRAWN = AugmentConfig(
    rotate_p=0.9,
    scale_p=0.9,
    shift_p=0.5,
    blur_p=0.3,
    brightness_p=0.3,
    contrast_p=0.3,
    gamma_p=0.3,
    noise_p=0.5,
)


class Backend(NamedTuple):
    """What makes the batches, and where they go."""

    name: str  # as data.backend
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32


class Difference(NamedTuple):
    """Difference of two batches of the same samples."""

    hu: np.ndarray  # absolute, of every pixel, HU
    label_share: float  # of pixels whose label differs

    @property
    def worst_hu(self) -> float:
        """The largest difference."""
        return float(self.hu.max())


def compare(store: Store, data: DataConfig, backends: dict[str, Backend], batches: int) -> dict[str, list[Difference]]:
    """Compare each backend with the NumPy definition, and those on a GPU with the CPU.

    Returns {"a against b": one difference for each batch}.
    """
    found: dict[str, list[Difference]] = {}
    built = {name: _train_loader(store, data, backend) for name, backend in backends.items()}
    streams = {name: iter(loader) for name, (loader, _) in built.items()}
    dataset = next(iter(built.values()))[1]
    hu_per_unit = dataset.norm.sd * store.window.step_hu
    pairs = [(name, "numpy") for name in streams] + [(name, "dali_cpu") for name in streams if "gpu" in name]

    for step in range(batches):
        got = {"numpy": reference(dataset, train_positions(step, data.batch_size, 0, 1))}
        for name, stream in streams.items():
            batch = next(stream)
            got[name] = (batch.image.float().cpu().numpy(), batch.label.cpu().numpy())
        for a, b in pairs:
            hu = np.abs(got[a][0] - got[b][0]) * hu_per_unit
            difference = Difference(hu, float((got[a][1] != got[b][1]).mean()))
            found.setdefault(f"{a} against {b}", []).append(difference)
    return found


def reference(dataset: SliceDataset, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what augment_reference.apply makes of positions: (B, C, H, W) float32 and (B, H, W) uint8."""
    host = dataset.batch(positions)
    made = [
        augment_reference.apply(
            slab[..., 0], label[..., 0], host.params, i, dataset.data.size_px, dataset.store.window.levels, dataset.norm
        )
        for i, (slab, label) in enumerate(zip(host.slabs, host.labels, strict=True))
    ]
    return np.stack([image for image, _ in made]), np.stack([label for _, label in made])


def busy_differences(store: Store, data: DataConfig, backend: Backend, batches: int) -> list[int]:
    """Return the steps whose batch, used late by a busy device, differs from that of an undisturbed pass."""
    calm = _digests(store, data, backend, batches, busy=False)
    late = _digests(store, data, backend, batches, busy=True)
    return np.flatnonzero(calm != late).tolist()


def digest(batch: Batch) -> torch.Tensor:
    """Return () int64 on the batch's device: the sum of all its bits, weighted by position. Waits for nothing."""
    total = torch.zeros((), dtype=torch.int64, device=batch.image.device)
    bits = torch.int16 if batch.image.dtype == torch.float16 else torch.int32
    for tensor in (batch.image.contiguous().view(bits), batch.label, batch.case, batch.index):
        flat = tensor.reshape(-1).long()
        weight = torch.arange(len(flat), device=flat.device) % 65521 + 1  # a prime: rows that swap places show
        total = total * 31 + (flat * weight).sum()
    return total


def _train_loader(store: Store, data: DataConfig, backend: Backend):
    data = replace(data, backend=backend.name)
    return build_train_loader(store, data, DRAWN, 0, Ranks(), device=backend.device, dtype=backend.dtype)


def _digests(store: Store, data: DataConfig, backend: Backend, batches: int, busy: bool) -> np.ndarray:
    """Return (batches,) int64. busy: work queued before each batch is used lets the host run ahead of the device."""
    loader = _train_loader(store, data, backend)[0]
    work = torch.randn(4096 if backend.device.type == "cuda" else 128, 4096, device=backend.device)
    work = work @ work.T / 4096
    found: list[torch.Tensor] = []
    for _, batch in zip(range(batches), loader, strict=False):
        if busy:
            product = work
            for _ in range(8):
                product = product @ work
        found.append(digest(batch))
        if not busy:
            drain(backend.device)
    return torch.stack(found).cpu().numpy()
