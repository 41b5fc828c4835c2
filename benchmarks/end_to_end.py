"""Does the data path keep the training step busy? `python -m benchmarks.end_to_end`.

The training step of kits_dist.train (Accelerate, autocast, loss, optimiser, a log step every ten) on the real loader
and on one batch repeated (data.backend=fixed), interleaved window by window. The answer is their ratio: 1 means that no
step waits for data. Validation, checkpoints and TensorBoard are outside.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Ceiling, Variant, Windows, interleave, line, pick_device, plain, record
from benchmarks.harness import store_or_phantoms as open_store
from kits_dist import cli
from kits_dist.batch import Batch
from kits_dist.config import AugmentConfig, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data import build_train_loader
from kits_dist.learner import build_optimizer
from kits_dist.losses import RegionLoss
from kits_dist.models import build_model
from kits_dist.runtime import Runtime, start
from kits_dist.tracking import Pace

LEARNING = OptimConfig()
EVERY_STEPS = LogConfig().every_steps


@dataclass(frozen=True)
class Args:
    store: str = (
        ""  # folder written by kits_dist.prepare; empty: phantoms, 24 of 32x512x512 on a GPU, else 10 of 24x128x128
    )
    size_px: tuple[int, int] = (0, 0)  # (height, width) of the images; 0x0: 512x512 on a GPU, 128x128 without
    batch_size: int = 0  # images a step; 0: 128 on a GPU, 8 without
    arch: str = ""  # as model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 12 without
    precision: str = "auto"  # as train.precision
    compile: bool = False  # as train.compile
    windows: int = 7  # timed windows a variant, at least 5
    window_s: float = 2.5  # seconds a window, roughly
    out: str = ""  # folder for the line; empty: benchmarks/results
    quick: bool = False  # a few steps on tiny images: proves that it runs


def main(args: Args) -> None:
    on_gpu = pick_device().type == "cuda"
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (128, 128)
    batch_size = args.batch_size or (4 if args.quick else 128 if on_gpu else 8)
    arch = args.arch or ("unet" if on_gpu and not args.quick else "simple_unet")
    cases, shape = (6, (8, 64, 64)) if args.quick else (24, (32, 512, 512)) if on_gpu else (10, (24, 128, 128))
    warmup_steps, window_s = (1, 0.0) if args.quick else (10, args.window_s)
    network = ModelConfig(arch=arch, encoder_weights="none", width=12 if arch == "simple_unet" else 64)
    training = TrainConfig(precision=args.precision, compile=args.compile)
    with open_store(args.store, cases, shape) as store, tempfile.TemporaryDirectory() as run:
        runtime = start(training, 1, Path(run), 0)
        device = runtime.accelerator.device
        data = DataConfig(store=str(store.path), size_px=size, batch_size=batch_size)
        loaders = {
            backend: build_train_loader(store, replace(data, backend=backend), AugmentConfig(), 0, runtime.shard)
            for backend in ("fixed", "dali")
        }
        step = Step(runtime, network, training, loaders["dali"][1].frames)
        runs = {backend: Run(step, iter(loader), batch_size, device) for backend, (loader, _) in loaders.items()}
        timed = interleave(
            {backend: Variant(run.step, run.before, run.after) for backend, run in runs.items()},
            device,
            windows=args.windows,
            window_s=window_s,
            warmup_steps=warmup_steps,
            lead_in=data.prefetch + 2,  # a pipeline that stood still has its queue full: that is not its pace
        )
        common = {
            "device": device.type,
            "precision": runtime.precision.mode,
            "model": plain(network),
            "train": plain(training),
            **plain(data),
            "augment": plain(AugmentConfig()),
            "log_every_steps": EVERY_STEPS,
            "data": store.meta["data"],
            "slices": len(loaders["dali"][1].rows),
            "slice_px": list(store.cases[0].shape[1:]),
            "cache": "warm",
        }
        runtime.accelerator.end_training()
    _report(args, timed, runs, common, batch_size, warmup_steps)


class Step:
    """One optimiser step as kits_dist.train takes it; both loaders share the network."""

    def __init__(self, runtime: Runtime, network: ModelConfig, training: TrainConfig, frames: int):
        self.accelerator = runtime.accelerator
        device = self.accelerator.device
        model = build_model(network, frames, pretrained=False)
        if training.channels_last:
            model = model.to(memory_format=torch.channels_last)
        model.to(device)
        optimizer = build_optimizer(model, LEARNING, device)
        self.loss_fn = RegionLoss(LEARNING.loss, network.regions).to(device)
        if training.compile:
            model = torch.compile(model)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.model.train()

    def __call__(self, batch: Batch, logging: bool) -> float | None:
        """Returns the loss at log steps, which is where the host waits."""
        accelerator = self.accelerator
        with accelerator.autocast():
            logits = self.model(batch.image)
        loss = self.loss_fn(logits, batch.label)
        accelerator.backward(loss)
        if logging:
            accelerator.clip_grad_norm_(self.model.parameters(), math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return accelerator.reduce(loss.detach(), "mean").item() if logging else None  # sync


class Run:
    """A loader driving the step, its pace and the time of each step."""

    def __init__(self, step: Step, batches: Iterator[Batch], batch_size: int, device: torch.device):
        self._step, self._batches, self._batch_size, self._device = step, batches, batch_size, device
        self._pace, self._marks, self._count = Pace(device), [], 0
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

    def _mark(self):
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _ms(self, a, b) -> float:
        return a.elapsed_time(b) if self._device.type == "cuda" else 1e3 * (b - a)


def _report(
    args: Args, timed: dict[str, Windows], runs: dict[str, Run], common: dict[str, Any], batch_size: int, warmup: int
) -> None:
    rates = {backend: timed[backend].rates(batch_size) for backend in ("fixed", "dali")}
    calibration = args.windows + 1  # `after` also ran for the window that chose the number of steps: leave it out
    for backend, name in (("fixed", "fixed"), ("dali", "end_to_end")):
        run = runs[backend]
        steps = run.step_ms[-args.windows * timed[backend].steps :]
        p50, p90, p99 = np.percentile(steps, [50, 90, 99])
        assert len(run.waits) == calibration
        config = {
            "variant": name,
            **common,
            "backend": backend,
            "data_wait": round(statistics.median(run.waits[1:]), 5),
            "step_ms": {"p50": round(p50, 3), "p90": round(p90, 3), "p99": round(p99, 3), "steps": len(steps)},
            "steps_per_window": timed[backend].steps,
        }
        ceiling, ratio = Ceiling("none", None, "the model's peak is benchmarks.model's question"), None
        if backend == "dali":
            ceiling = Ceiling("fixed (one batch repeated)", statistics.median(rates["fixed"]))
            rounds = [real / fixed for real, fixed in zip(rates["dali"], rates["fixed"], strict=True)]
            ratio = statistics.median(rounds)
            config["ratio_spread"] = [round(min(rounds), 4), round(max(rounds), 4)]
        done = line("end_to_end", rates[backend], "images/s", ceiling, config, args, warmup_steps=warmup, ratio=ratio)
        record(done, args.out)
        print(
            f"  step p50 {p50:.1f} p90 {p90:.1f} p99 {p99:.1f} ms, waiting for data {100 * config['data_wait']:.2f} % "
            f"of the time"
        )


if __name__ == "__main__":
    cli.run(main, Args)
