"""Does the data path keep the training step busy? `python -m benchmarks.end_to_end`.

The training step of kits_dist.train (Accelerate, autocast, loss, optimiser, a log step every ten) on the real loader
and on one batch repeated (data.backend=fixed), interleaved window by window. The answer is their ratio: 1 means that no
step waits for data. Validation, checkpoints and TensorBoard are outside. `peers=true` adds the training that a user
would write instead, in plain PyTorch and in MONAI, on the same slices.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peers
from benchmarks.feed import dataset_of
from benchmarks.lib import roofline
from benchmarks.lib.harness import (
    A_RATIO,
    Ceiling,
    Variant,
    Windows,
    checked,
    interleave,
    line,
    median,
    pick_device,
    plain,
    record,
    rounds,
    settle,
)
from benchmarks.lib.harness import store_or_phantoms as open_store
from benchmarks.lib.training import OurStep, Setup, Training, Watch, build_ours, with_backend
from kits_dist import cli
from kits_dist.config import AugmentConfig, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.distributed.runtime import start
from kits_dist.training.step_timer import StepTimer
from kits_dist.utils.errors import InputError, MissingPackage

EVERY_STEPS = LogConfig().every_steps
FIXED = "fixed (one batch repeated)"
OURS = {"dali": ("dali", "mmap"), "dali_resident": ("dali", "gpu"), "opencv": ("opencv", "mmap")}  # backend, residency


@dataclass(frozen=True)
class Args:
    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 24 of 32x512x512 on a GPU, else 10 of 24x128x128."""
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the images; 0x0: 512x512 on a GPU, 128x128 without."""
    batch_size: int = 0
    """Images a step; 0: 128 on a GPU, 8 without."""
    arch: str = ""
    """As model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 12 without."""
    precision: str = "auto"
    """As train.precision."""
    compile: bool = False
    """As train.compile."""
    ways: tuple[str, ...] = ()
    """Of dali, dali_resident, opencv; empty: dali, and dali_resident on a GPU, else opencv."""
    peers: tuple[str, ...] = ()
    """Other trainings, of plain_pytorch, monai; true: both."""
    windows: int = 7
    """Timed windows a variant, at least 5."""
    window_s: float = 2.5
    """Seconds a window, roughly."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """A few steps on tiny images: proves that it runs."""


def main(args: Args) -> None:
    on_gpu = pick_device().type == "cuda"
    ways = args.ways or ("dali", "dali_resident" if on_gpu else "opencv")
    if wrong := [way for way in ways if way not in OURS]:
        raise InputError(f"ways={wrong}: choose from {list(OURS)}.")
    names = peers.chosen(args.peers, peers.TRAININGS)
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (128, 128)
    batch_size = args.batch_size or (4 if args.quick else 128 if on_gpu else 8)
    arch = args.arch or ("unet" if on_gpu and not args.quick else "simple_unet")
    cases, shape = (6, (8, 64, 64)) if args.quick else (24, (32, 512, 512)) if on_gpu else (10, (24, 128, 128))
    warmup_steps, window_s = (1, 0.0) if args.quick else (10, args.window_s)
    network = ModelConfig(arch=arch, encoder_weights="none", width=12 if arch == "simple_unet" else 64)
    train = TrainConfig(precision=args.precision, compile=args.compile)
    with open_store(args.store, cases, shape) as store, tempfile.TemporaryDirectory() as run:
        data = DataConfig(store=str(store.path), size_px=size, batch_size=batch_size)
        setup = Setup(start(train, 1, Path(run), 0), store, data, AugmentConfig(), network, OptimConfig(), train)
        trainings, missing = build_all(setup, ways, names)
        watches = {name: Watch(training.model) for name, training in trainings.items()}
        runs = {name: Run(training, name, batch_size, setup.device) for name, training in trainings.items()}
        timed = measure(runs, setup.device, args.windows, window_s, warmup_steps, data.prefetch + 2)
        common = {
            "device": setup.device.type,
            "precision": setup.runtime.precision.mode,
            "train": plain(train),
            **plain(data),
            "augment": plain(AugmentConfig()),
            "log_every_steps": EVERY_STEPS,
            "data": store.meta["data"],
            "slices": len(dataset_of(store, with_backend(setup, "opencv").data).rows),
            "slice_px": list(store.cases[0].shape[1:]),
            "cache": "warm",
        }
        seen = {name: _seen(watches[name], trainings[name]) for name in trainings}
        setup.runtime.accelerator.end_training()

    rates = {name: timed[name].rates(batch_size) for name in runs}

    def one(name: str, values: list[float], unit: str, ceiling: Ceiling, more: dict[str, Any], **options: Any) -> None:
        config = {"variant": name, **common, **more}
        record(line("end_to_end", values, unit, ceiling, config, args, warmup_steps=warmup_steps, **options), args.out)

    for name, run in runs.items():
        more = run.findings(timed[name], args.windows) | seen[name]
        more["model"] = plain(network) if name not in names else {"arch": trainings[name].choices}
        more["backend"], more["residency"] = OURS.get(name, (name, "mmap"))
        if name == "fixed":
            none = Ceiling("none", None, "the model's peak is benchmarks.model's question")
            one(name, rates[name], "images/s", none, more)
        elif name in names:
            none = Ceiling("none", None, "another network or loop than ours: see the lines `against` it")
            one(name, rates[name], "images/s", none, more | {"choices": trainings[name].choices})
        else:
            ratios = rounds(rates[name], rates["fixed"])
            more["ratio_spread"] = [round(min(ratios), 4), round(max(ratios), 4)]
            ceiling = Ceiling(FIXED, median(rates["fixed"])[0])
            one(name, rates[name], "images/s", ceiling, more, ratio=median(ratios)[0], answer=True)
        print(f"  {run.in_words(more)}")
    for name in names:
        if name in missing:
            none = Ceiling("none", None, "not measured: the package is missing")
            one(name, [], "images/s", none, {"failed": missing[name]})
            continue
        for way in ways:
            times = rounds(rates[way], rates[name])
            one(f"{way} against {name}", times, "times", A_RATIO, {"choices": trainings[name].choices}, answer=True)


def build_all(setup: Setup, ways: tuple[str, ...], names: list[str]) -> tuple[dict[str, Training], dict[str, str]]:
    """{"fixed", each way, each peer} and {peer: why not}. Peers first: their workers are forked, before DALI has
    threads. Ours share one network."""
    dataset = dataset_of(setup.store, with_backend(setup, "opencv").data)
    others, missing = {}, {}
    for name in names:
        _, package, build = peers.TRAININGS[name]
        try:
            peers.version_of(package)
            others[name] = build(setup, dataset)
        except MissingPackage as error:
            missing[name] = str(error)
    step = OurStep(setup)
    ours = {name: build_ours(with_backend(setup, *OURS.get(name, (name,))), step) for name in ("fixed", *ways)}
    return ours | others, missing


def measure(
    runs: dict[str, "Run"], device: torch.device, windows: int, window_s: float, warmup_steps: int, lead_in: int
) -> dict[str, Windows]:
    """lead_in: a pipeline that stood still has its queue full: that is not its pace."""
    variants = {name: Variant(run.step, run.before, run.after) for name, run in runs.items()}
    return interleave(variants, device, windows=windows, window_s=window_s, warmup_steps=warmup_steps, lead_in=lead_in)


class Run:
    """A training at work: its pace and the time of each step."""

    def __init__(self, training: Training, name: str, batch_size: int, device: torch.device):
        self._step, self._batch_size, self._device = training.step, batch_size, device
        self._batches: Iterator[Any] = training.batches if name == "fixed" else checked(training.batches, name)
        self._pace, self._marks, self._count = StepTimer(device), [], 0
        self.waits: list[float] = []  # share of each window spent waiting for data
        self.step_ms: list[float] = []  # every timed step

    def step(self) -> None:
        self._pace.batch_requested()
        batch = next(self._batches)
        self._pace.batch_ready()
        self._count += 1
        self._step(batch, self._count % EVERY_STEPS == 0)
        self._pace.step_ended()
        self._marks.append(self._mark())

    def before(self) -> None:
        """Forget the untimed steps."""
        self._pace.report(self._batch_size)
        self._pace.resume()
        self._marks = [self._mark()]

    def after(self) -> None:
        self.waits.append(self._pace.report(self._batch_size)["perf/data_wait"])
        self.step_ms += [self._ms(a, b) for a, b in zip(self._marks, self._marks[1:], strict=False)]
        settle()  # what its workers prepare ahead is not made under the clock of the next

    def findings(self, timed: Windows, windows: int) -> dict[str, Any]:
        """Of the timed windows; `after` may also have run for one that chose the number of steps, which is left out."""
        steps = self.step_ms[-windows * timed.steps :]
        p50, p90, p99 = (round(float(ms), 3) for ms in np.percentile(steps, [50, 90, 99]))
        return {
            "data_wait": round(statistics.median(self.waits[-windows:]), 5),
            "step_ms": {"p50": p50, "p90": p90, "p99": p99, "steps": len(steps)},
            "steps_per_window": timed.steps,
        }

    @staticmethod
    def in_words(found: dict[str, Any]) -> str:
        ms = found["step_ms"]
        return (
            f"step p50 {ms['p50']:.1f} p90 {ms['p90']:.1f} p99 {ms['p99']:.1f} ms, waiting for data "
            f"{100 * found['data_wait']:.2f} % of the time"
        )

    def _mark(self):
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _ms(self, a, b) -> float:
        return a.elapsed_time(b) if self._device.type == "cuda" else 1e3 * (b - a)


def _seen(watch: Watch, training: Training) -> dict[str, Any]:
    """What really went through the network, by its hook, and the work that this is."""
    (shape,) = watch.shapes
    gflop = roofline.forward_gflop(training.model, (1, *shape))
    return {"pixels_per_image": watch.pixels_per_image(), "forward_gflop": round(gflop, 3)}


if __name__ == "__main__":
    cli.run(main, Args)
