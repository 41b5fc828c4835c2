"""Does the data path give the right pixels, and the same ones on a busy device? `python -m benchmarks.agreement`.

1. Differences over drawn augmentations between DALI on the GPU, DALI on the CPU, threads on the CPU (opencv) and the
   NumPy definition (augment_reference.apply), in HU and as the share of label pixels. Without a GPU its rows are
   missing.
2. Two passes over the same batches, one of them with a busy device so that the host runs far ahead, must give equal
   checksums: a buffer that is reused too early shows as a batch that differs.
"""

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.lib.arguments import RunArgs
from benchmarks.lib.harness import pick_device
from benchmarks.lib.lines import Recorder, no_ceiling
from benchmarks.lib.pixels import DRAWN, Backend, busy_differences, compare
from benchmarks.lib.stores import open_store, plain
from kits_dist import cli
from kits_dist.config import DataConfig
from kits_dist.utils.errors import InputError

NOT_A_SPEED = no_ceiling("a difference, not a speed: less is better and 0 is best")


@dataclass(frozen=True)
class Args(RunArgs):
    """Arguments of the program."""

    store: str = ""
    """Folder written by kits_dist.prepare; empty: phantoms, 6 of 16x256x256."""
    size_px: tuple[int, int] = (256, 256)
    """(height, width) of the images."""
    batch_size: int = 32
    """Images per batch."""
    batches: int = 8
    """Batches compared pixel by pixel."""
    busy_batches: int = 200
    """Batches of the two passes."""

    def __post_init__(self):
        if self.batches < 1 or self.busy_batches < 1:
            raise InputError(f"batches={self.batches}, busy_batches={self.busy_batches}: use 1 or more of each.")


def main(args: Args) -> None:
    """Compare, and write a line for each pair and each busy pass."""
    device = pick_device()
    size, batch_size = ((64, 64), 4) if args.quick else (args.size_px, args.batch_size)
    batches, busy_batches = (2, 6) if args.quick else (args.batches, args.busy_batches)
    shape = (8, 64, 64) if args.quick else (16, 256, 256)
    backends = {"dali_cpu": Backend("dali"), "opencv": Backend("opencv")}
    if device.type == "cuda":
        backends["dali_gpu"] = Backend("dali", device)
        backends["dali_gpu_fp16"] = Backend("dali", device, torch.float16)

    with open_store(args.store, 6, shape) as store:
        data = DataConfig(store=str(store.path), size_px=size, batch_size=batch_size)
        common = plain(data) | {"augment": plain(DRAWN), "data": store.meta["data"]}
        recorder = Recorder("agreement", args, common, unit="HU (worst pixel of a batch)")
        for name, differences in compare(store, data, backends, batches).items():
            hu = np.concatenate([difference.hu.ravel() for difference in differences])
            config = {
                "hu_p99_9": float(f"{np.percentile(hu, 99.9):.4g}"),
                "hu_mean": float(f"{hu.mean():.4g}"),
                "label_share": float(f"{np.mean([difference.label_share for difference in differences]):.4g}"),
                "images": batches * batch_size,
            }
            worst = [difference.worst_hu for difference in differences]
            recorder.write(name, worst, NOT_A_SPEED, config, answer=True)
            print(f"  99.9 % of pixels within {config['hu_p99_9']:g} HU, labels differ in {config['label_share']:.2e}")

        for name in ("dali_gpu_fp16" if "dali_gpu_fp16" in backends else "dali_cpu", "opencv"):
            wrong = busy_differences(store, data, backends[name], busy_batches)
            config = {"batches": busy_batches, "wrong": wrong[:20]}
            differ, unit = [float(len(wrong))], "batches that differ"
            recorder.write(f"busy_{name}", differ, NOT_A_SPEED, config, unit=unit, answer=True)


if __name__ == "__main__":
    cli.run(main, Args)
