"""What does the trainer cost in addition to the work itself? `python -m benchmarks.overhead`.

`kits_dist.train` as a user starts it (Accelerate, log lines, TensorBoard, early stopping, stop requests) on one batch
repeated, against a loop written by hand for the same network, batch and precision: forward, BCE, backward, Adam. A
ratio of 1 means that the trainer costs nothing.

The two take turns inside one training: each time the trainer has written a log line, the bare loop takes as many steps
as lie between two of them. A pair is seconds apart, so a machine that slows down affects both alike; the answer is the
median of the pairs' ratios. Start-up is left out, and so are pairs that contain a validation.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from benchmarks.lib.arguments import NetworkArgs
from benchmarks.lib.harness import MIN_WINDOWS, drain
from benchmarks.lib.lines import Baseline, Recorder, no_ceiling, rounds
from benchmarks.lib.stores import open_store, plain
from kits_dist import cli, train
from kits_dist.config import AugmentConfig, Config, DataConfig, LogConfig, OptimConfig, TrainConfig
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.store import Store
from kits_dist.distributed.runtime import Runtime, start
from kits_dist.models import build_model
from kits_dist.training import instruments
from kits_dist.training.tracker import Tracker
from kits_dist.training.train_step import build_optimizer, place_model
from kits_dist.utils.errors import InputError

SKIPPED = 2  # log lines at the start: memory, kernels, caches


@dataclass(frozen=True)
class Args(NetworkArgs):
    """Arguments of the program."""

    store: str = ""
    """Folder written by kits_dist.prepare; empty: phantoms, 24 of 32x512x512 on a GPU, else 24x128x128."""
    batch_size: int = 0
    """Images per step; 0: 16 on a GPU, 8 without. Small ones make overhead show."""
    precision: str = "auto"
    """As train.precision."""
    windows: int = 21
    """Pairs, at least 5."""


def main(args: Args) -> None:
    """Train with turns of the bare loop, and write the lines of both."""
    if args.windows < MIN_WINDOWS:
        raise InputError(f"windows={args.windows}: a median and a spread need at least {MIN_WINDOWS}.")
    batch_size = args.batch_size or args.default(gpu=16, cpu=8, quick=4)
    cases, shape = args.default(gpu=(24, (32, 512, 512)), cpu=(24, (24, 128, 128)), quick=(8, (12, 64, 64)))
    with open_store(args.store, cases, shape) as store, tempfile.TemporaryDirectory() as folder:
        config = Config(
            run=str(Path(folder) / "run"),
            data=DataConfig(store=str(store.path), size_px=args.image_size(), batch_size=batch_size, backend="fixed"),
            model=args.network(quick_width=2),
            optim=OptimConfig(epochs=10**6, patience=0),  # `Turns` ends it
            train=TrainConfig(precision=args.precision),
            log=LogConfig(every_steps=2 if args.quick else 10, images=0),
        )
        runtime = start(config.train, 1, Path(folder), 0)
        device = runtime.accelerator.device
        turns = Turns(bare_step(store, config, runtime), config, device, args.windows)
        tracker = mock.patch.object(instruments, "Tracker", turns.tracker())
        with contextlib.redirect_stdout(io.StringIO()), tracker, contextlib.suppress(Done):
            train.main(config)

    common = {"device": device.type, "precision": runtime.precision.mode, "model": plain(config.model)}
    common |= {**plain(config.data), "data": store.meta["data"], "log_every_steps": config.log.every_steps}
    recorder = Recorder("overhead", args, common, warmup_steps=SKIPPED * config.log.every_steps)
    recorder.write("bare", turns.bare, no_ceiling("it is the ceiling of trainer"))
    quartiles = statistics.quantiles(rounds(turns.trainer, turns.bare), n=4)
    config = {"ratio_quartiles": [round(value, 4) for value in quartiles]}
    recorder.write("trainer", turns.trainer, Baseline("bare (a loop written by hand)", turns.bare), config, answer=True)


class Done(Exception):
    """Ends the training once there are enough pairs."""


class Turns:
    """Lets the bare loop take as many steps as the trainer between two log lines; keeps both rates, in images/s."""

    def __init__(self, step: Callable[[], None], config: Config, device: torch.device, windows: int):
        self.trainer: list[float] = []
        self.bare: list[float] = []
        self._step, self._device, self._windows = step, device, windows
        self._steps, self._images = config.log.every_steps, config.log.every_steps * config.data.batch_size
        self._lines = 0
        self._whole = True  # no validation since the last log line
        self._began = 0.0

    def tracker(self) -> type[Tracker]:
        """Return a Tracker class that calls `line_written` after each of its lines."""
        turns = self

        class Alternating(Tracker):
            def log(self, step: int, scalars: dict[str, float]) -> None:
                super().log(step, scalars)
                turns.line_written("train/loss" in scalars)

        return Alternating

    def line_written(self, of_training: bool) -> None:
        """Time a turn of the bare loop, or discard the pair that a validation falls into. Raises Done at the end."""
        if not of_training:
            self._whole = False
            return
        drain(self._device)
        trainer_s = time.perf_counter() - self._began

        begin = time.perf_counter()
        for _ in range(self._steps):
            self._step()
        drain(self._device)
        bare_s = time.perf_counter() - begin

        if self._lines >= SKIPPED and self._whole:
            self.trainer.append(self._images / trainer_s)
            self.bare.append(self._images / bare_s)
        if len(self.bare) == self._windows:
            raise Done
        self._lines += 1
        self._whole, self._began = True, time.perf_counter()


def bare_step(store: Store, config: Config, runtime: Runtime) -> Callable[[], None]:
    """Return a training step as a reader of the network's documentation would write it."""
    loader, dataset = build_train_loader(
        store, config.data, AugmentConfig(), 0, runtime.ranks, device=runtime.device, dtype=runtime.image_dtype
    )
    model = build_model(config.model, dataset.frames, pretrained=False)
    model = place_model(model, config.train, runtime.accelerator.device).train()
    batch = next(iter(loader))
    optimizer = build_optimizer(model, config.optim, batch.image.device)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(runtime.precision.mode)
    scaler = torch.amp.GradScaler(batch.image.device.type, enabled=half is torch.float16)

    def step() -> None:
        with torch.autocast(batch.image.device.type, half, enabled=half is not None):
            logits = model(batch.image)
        targets = (batch.label[:, None] > 0).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    cli.run(main, Args)
