"""Does the data path give the right pixels, and the same ones on a busy device? `python -m benchmarks.agreement`.

1. Differences over drawn augmentations between DALI on the GPU, DALI on the CPU, threads on the CPU (opencv) and the
   NumPy meaning (augment_reference.apply), in HU and in the share of label pixels. Without a GPU its ways are left out.
2. Two passes over the same batches, one with the device kept busy so that the host runs far ahead, must give equal
   sums of all bits: a buffer handed back too early shows as a batch that differs.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.lib.harness import Ceiling, drain, line, pick_device, plain, record
from benchmarks.lib.harness import store_or_phantoms as open_store
from kits_dist import cli
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import augment_reference
from kits_dist.data.batch import Batch
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.sampler import train_positions
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils.errors import InputError

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
NOT_A_SPEED = Ceiling("none", None, "a difference, not a speed: less is better and 0 is best")


@dataclass(frozen=True)
class Args:
    store: str = ""
    """Folder written by kits_dist.prepare; empty: phantoms, 6 of 16x256x256."""
    size_px: tuple[int, int] = (256, 256)
    """(height, width) of the images."""
    batch_size: int = 32
    """Images a batch."""
    batches: int = 8
    """Batches compared pixel by pixel."""
    busy_batches: int = 200
    """Batches of the two passes."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """Few batches of tiny images: proves that it runs."""

    def __post_init__(self):
        if self.batches < 1 or self.busy_batches < 1:
            raise InputError(f"batches={self.batches}, busy_batches={self.busy_batches}: compare one of each at least.")


class Way(NamedTuple):
    backend: str
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32


class Difference(NamedTuple):
    """Between two batches of the same samples."""

    hu: np.ndarray  # every pixel's absolute difference, HU
    label_share: float  # of pixels whose label differs

    @property
    def worst_hu(self) -> float:
        return float(self.hu.max())


def main(args: Args) -> None:
    device = pick_device()
    size, batch_size = ((64, 64), 4) if args.quick else (args.size_px, args.batch_size)
    batches, busy_batches = (2, 6) if args.quick else (args.batches, args.busy_batches)
    shape = (8, 64, 64) if args.quick else (16, 256, 256)
    with open_store(args.store, 6, shape) as store:
        data = DataConfig(store=str(store.path), size_px=size, batch_size=batch_size)
        ways = {"dali_cpu": Way("dali"), "opencv": Way("opencv")}
        if device.type == "cuda":
            ways["dali_gpu"] = Way("dali", device)
            ways["dali_gpu_fp16"] = Way("dali", device, torch.float16)
        common = plain(data) | {"augment": plain(DRAWN), "data": store.meta["data"]}
        for name, differences in compare(store, data, ways, batches).items():
            hu = np.concatenate([difference.hu.ravel() for difference in differences])
            config = {
                "variant": name,
                **common,
                "hu_p99_9": float(f"{np.percentile(hu, 99.9):.4g}"),
                "hu_mean": float(f"{hu.mean():.4g}"),
                "label_share": float(f"{np.mean([difference.label_share for difference in differences]):.4g}"),
                "images": batches * batch_size,
            }
            worst = [difference.worst_hu for difference in differences]
            done = line("agreement", worst, "HU (worst pixel of a batch)", NOT_A_SPEED, config, args, answer=True)
            record(done, args.out)
            print(f"  99.9 % of pixels within {config['hu_p99_9']:g} HU, labels differ in {config['label_share']:.2e}")
        for name in ("dali_gpu_fp16" if "dali_gpu_fp16" in ways else "dali_cpu", "opencv"):
            wrong = busy_differences(store, data, ways[name], busy_batches)
            config = {"variant": f"busy_{name}", **common, "batches": busy_batches, "wrong": wrong[:20]}
            done = line("agreement", [float(len(wrong))], "batches that differ", NOT_A_SPEED, config, args, answer=True)
            record(done, args.out)


def compare(store: Store, data: DataConfig, ways: dict[str, Way], batches: int) -> dict[str, list[Difference]]:
    """{"a against b": a difference a batch} of each way against the NumPy meaning, and of the GPU against the CPU."""
    found: dict[str, list[Difference]] = {}
    built = {name: _train_loader(store, data, way) for name, way in ways.items()}
    streams = {name: iter(loader) for name, (loader, _) in built.items()}
    dataset = next(iter(built.values()))[1]
    hu_per_unit = dataset.norm.sd * store.window.step_hu
    for step in range(batches):
        got = {"numpy": reference(dataset, train_positions(step, data.batch_size, 0, 1))}
        for name, stream in streams.items():
            batch = next(stream)
            got[name] = (batch.image.float().cpu().numpy(), batch.label.cpu().numpy())
        pairs = [(name, "numpy") for name in streams] + [(name, "dali_cpu") for name in streams if "gpu" in name]
        for a, b in pairs:
            hu = np.abs(got[a][0] - got[b][0]) * hu_per_unit
            difference = Difference(hu, float((got[a][1] != got[b][1]).mean()))
            found.setdefault(f"{a} against {b}", []).append(difference)
    return found


def _train_loader(store: Store, data: DataConfig, way: Way):
    return build_train_loader(
        store, replace(data, backend=way.backend), DRAWN, 0, Ranks(), device=way.device, dtype=way.dtype
    )


def reference(dataset: SliceDataset, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What augment_reference.apply makes of these positions: (B, C, H, W) float32 and (B, H, W) uint8."""
    host = dataset.batch(positions)
    made = [
        augment_reference.apply(
            slab[..., 0], label[..., 0], host.params, i, dataset.data.size_px, dataset.store.window.levels, dataset.norm
        )
        for i, (slab, label) in enumerate(zip(host.slabs, host.labels, strict=True))
    ]
    return np.stack([image for image, _ in made]), np.stack([label for _, label in made])


def busy_differences(store: Store, data: DataConfig, way: Way, batches: int) -> list[int]:
    """Steps whose batch, used late by a busy device, differs from the same batch of an undisturbed pass."""
    calm = _digests(store, data, way, batches, busy=False)
    late = _digests(store, data, way, batches, busy=True)
    return np.flatnonzero(calm != late).tolist()


def digest(batch: Batch) -> torch.Tensor:
    """() int64 on the batch's device: a sum of all its bits, weighted by place. Waits for nothing."""
    total = torch.zeros((), dtype=torch.int64, device=batch.image.device)
    bits = torch.int16 if batch.image.dtype == torch.float16 else torch.int32
    for tensor in (batch.image.contiguous().view(bits), batch.label, batch.case, batch.index):
        flat = tensor.reshape(-1).long()
        place = torch.arange(len(flat), device=flat.device) % 65521 + 1  # a prime: rows that swap places show
        total = total * 31 + (flat * place).sum()
    return total


def _digests(store: Store, data: DataConfig, way: Way, batches: int, busy: bool) -> np.ndarray:
    """(batches,) int64. busy: work queued before each batch is used lets the host run ahead of the device."""
    loader = _train_loader(store, data, way)[0]
    work = torch.randn(4096 if way.device.type == "cuda" else 128, 4096, device=way.device)
    work = work @ work.T / 4096
    found: list[Any] = []
    for _, batch in zip(range(batches), loader, strict=False):
        if busy:
            product = work
            for _ in range(8):
                product = product @ work
        found.append(digest(batch))
        if not busy:
            drain(way.device)
    return torch.stack(found).cpu().numpy()


if __name__ == "__main__":
    cli.run(main, Args)
