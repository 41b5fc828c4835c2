"""How many CT volumes a minute does a model segment, how much of it in the network? `python -m benchmarks.predict`.

`Predictor.predict` on one scan after another, from HU in memory to labels in memory, and the same with reading the
NIfTI file and writing the label map, as kits_dist.predict does it. Their ceiling is the network alone on as many slices
in batches of the same size, already on the device. Weights are random: speed does not depend on them.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import roofline
from benchmarks.harness import (
    Ceiling,
    Variant,
    interleave,
    line,
    make_store,
    median,
    pick_device,
    plain,
    record,
    rounds,
)
from kits_dist import cli
from kits_dist.config import Config, DataConfig, ModelConfig
from kits_dist.data.volume import read_image, write_nifti
from kits_dist.inference import Predictor
from kits_dist.inference.region_models import RunModel, region_probabilities
from kits_dist.models import build_model
from kits_dist.run_folder import export_best


@dataclass(frozen=True)
class Args:
    size_px: tuple[int, int] = (0, 0)  # (height, width) of the network's window; 0x0: 512x512 on a GPU, else 128x128
    batch_size: int = 16  # slices at once, as kits_dist.predict has it
    slices: int = 0  # of a volume; 0: 64 on a GPU, 24 without
    arch: str = ""  # as model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 12 without
    windows: int = 5  # timed windows a variant, at least 5
    window_s: float = 2.0  # seconds a window, roughly
    out: str = ""  # folder for the line; empty: benchmarks/results
    quick: bool = False  # tiny volumes: proves that it runs


def main(args: Args) -> None:
    device = pick_device()
    on_gpu = device.type == "cuda"
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (128, 128)
    slices = args.slices or (8 if args.quick else 64 if on_gpu else 24)
    arch = args.arch or ("unet" if on_gpu and not args.quick else "simple_unet")
    width = {"simple_unet": 4 if args.quick else 12}.get(arch, 64)
    network = ModelConfig(arch=arch, encoder_weights="none", width=width)
    warmup_steps, window_s = (1, 0.0) if args.quick else (2, args.window_s)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        store = make_store(place, 3, (slices, *size))
        data = DataConfig(store=str(store.path), size_px=size)
        config = Config(run=str(place / "run"), data=data, model=network)
        (place / "run").mkdir()
        torch.manual_seed(0)
        export_best(config, store, 0, build_model(network, 1, pretrained=False))
        predictor = Predictor(place / "run", args.batch_size)
        scans = sorted((place / "raw").glob("*/imaging.nii.gz"))
        volumes = itertools.cycle([read_image(path) for path in scans])
        in_network = InNetwork(predictor.members[0].model, device)
        paths = itertools.cycle(scans)

        def from_file() -> None:
            image = read_image(next(paths))
            write_nifti(place / "labels.nii.gz", predictor.predict(image), image.geometry)

        runs = {
            "predict": Run(lambda: predictor.predict(next(volumes)), in_network),
            "file_to_file": Run(from_file, in_network),
        }
        alone = Variant(network_alone(predictor.members[0], slices, size))
        timed = interleave(
            {"network": alone} | {name: Variant(run.step, run.before, run.after) for name, run in runs.items()},
            device,
            windows=args.windows,
            window_s=window_s,
            warmup_steps=warmup_steps,
        )
        gflop = roofline.forward_gflop(predictor.members[0].model, (1, 1, *size))
        kind = store.meta["data"]
    common = {
        "device": device.type,
        "model": plain(network),
        "size_px": list(size),
        "batch_size": args.batch_size,
        "slices": slices,
        "forward_gflop": round(gflop, 3),
        "data": kind,
    }
    rates = {name: [60 * rate for rate in timed[name].rates(1)] for name in timed}

    def one(name: str, ceiling: Ceiling, more: dict[str, Any], **options: Any) -> None:
        config = {"variant": name, **common, **more}
        done = line("predict", rates[name], "volumes/min", ceiling, config, args, warmup_steps=warmup_steps, **options)
        record(done, args.out)

    one("network", Ceiling("none", None, "this is the network itself: see benchmarks.model, infer"), {})
    limit = Ceiling("network alone on as many slices", median(rates["network"])[0])
    for name, run in runs.items():
        share, spread = median(run.shares[-args.windows :])
        p50, p90 = (
            round(float(q), 4) for q in np.percentile(run.seconds[-args.windows * timed[name].steps :], [50, 90])
        )
        more = {
            "share_in_network": round(share, 4),
            "share_spread": [round(value, 4) for value in spread],
            "volume_s": {"p50": p50, "p90": p90},
        }
        ratio = median(rounds(rates[name], rates["network"]))[0]
        one(name, limit, more, ratio=ratio, answer=name == "file_to_file")
        print(f"  {100 * share:.0f} % of the time in the network; a volume p50 {p50:.3f} p90 {p90:.3f} s")


class InNetwork:
    """Seconds spent inside a network's forward pass, by its hooks; on a GPU by events, read when asked for."""

    def __init__(self, model: nn.Module, device: torch.device):
        self._cuda, self._marks = device.type == "cuda", []
        model.register_forward_pre_hook(lambda *_: self._marks.append(self._now()))
        model.register_forward_hook(lambda *_: self._marks.append(self._now()))

    def take(self) -> float:
        """Since the last time it was asked."""
        if self._cuda:
            torch.cuda.synchronize()  # sync
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        self._marks = []
        return sum(a.elapsed_time(b) / 1e3 if self._cuda else b - a for a, b in pairs)

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Run:
    """Work on a volume at a time; what it gives back lies in the host's memory, so its end is the end."""

    def __init__(self, work: Callable[[], object], in_network: InNetwork):
        self._work, self._in_network = work, in_network
        self._window: list[float] = []
        self.seconds: list[float] = []  # of each volume
        self.shares: list[float] = []  # of each window, spent in the network

    def step(self) -> None:
        begin = time.perf_counter()
        self._work()
        self._window.append(time.perf_counter() - begin)

    def before(self) -> None:
        self._in_network.take()
        self._window = []

    def after(self) -> None:
        self.seconds += self._window
        self.shares.append(self._in_network.take() / sum(self._window))


def network_alone(run: RunModel, slices: int, size: tuple[int, int]) -> Callable[[], None]:
    """The forward passes of one volume, on batches that are already there."""
    whole, rest = divmod(slices, run.batch_size)
    batches = [torch.randn(n, 1, *size, device=run.device) for n in [run.batch_size] * whole + [rest] * (rest > 0)]

    def work() -> None:
        for batch in batches:
            region_probabilities(run.model, batch)

    return work


if __name__ == "__main__":
    cli.run(main, Args)
