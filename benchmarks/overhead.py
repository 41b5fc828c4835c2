"""What does the trainer cost beside the work itself? `python -m benchmarks.overhead`.

`kits_dist.train` as a user starts it (Accelerate, log lines, TensorBoard, early-stopping books, stop requests) on one
batch repeated, against a loop written by hand for the same network, batch and precision: forward, BCE, backward, Adam,
nothing else. 1: the trainer costs nothing.

The two take turns inside one training: each time the trainer has written a log line, the loop by hand takes as many
steps as lie between two of them. A pair is seconds apart, so a machine that slows down meets both alike; the answer is
the median of the pairs' ratios. Start-up is left out, and pairs between whose log lines there was a validation.
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

from benchmarks.lib.harness import MIN_WINDOWS, Ceiling, drain, line, pick_device, plain, record
from benchmarks.lib.harness import store_or_phantoms as open_store
from kits_dist import cli, train
from kits_dist.config import AugmentConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.store import Store
from kits_dist.distributed.runtime import Runtime, start
from kits_dist.models import build_model
from kits_dist.training.tracker import Tracker
from kits_dist.training.train_step import build_optimizer
from kits_dist.utils.errors import InputError

SKIPPED = 2  # log lines at the start: memory, kernels, caches


@dataclass(frozen=True)
class Args:
    store: str = ""
    """Folder written by kits_dist.prepare; empty: phantoms, 24 of 32x512x512 on a GPU, else 24x128x128."""
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the images; 0x0: 512x512 on a GPU, 128x128 without."""
    batch_size: int = 0
    """Images a step; 0: 16 on a GPU, 8 without. Small ones make overhead show."""
    arch: str = ""
    """As model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 12 without."""
    precision: str = "auto"
    """As train.precision."""
    windows: int = 21
    """Pairs, at least 5."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """Tiny images: proves that it runs."""


def main(args: Args) -> None:
    if args.windows < MIN_WINDOWS:
        raise InputError(f"windows={args.windows}: a median and a spread need at least {MIN_WINDOWS}.")
    on_gpu = pick_device().type == "cuda"
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (128, 128)
    batch_size = args.batch_size or (4 if args.quick else 16 if on_gpu else 8)
    arch = args.arch or ("unet" if on_gpu and not args.quick else "simple_unet")
    shape = (12, 64, 64) if args.quick else (32, 512, 512) if on_gpu else (24, 128, 128)
    width = 2 if args.quick else 12 if arch == "simple_unet" else 64
    with open_store(args.store, 8 if args.quick else 24, shape) as store, tempfile.TemporaryDirectory() as folder:
        config = Config(
            run=str(Path(folder) / "run"),
            data=DataConfig(store=str(store.path), size_px=size, batch_size=batch_size, backend="fixed"),
            model=ModelConfig(arch=arch, encoder_weights="none", width=width),
            optim=OptimConfig(epochs=10**6, patience=0),  # the turns end it
            train=TrainConfig(precision=args.precision),
            log=LogConfig(every_steps=2 if args.quick else 10, images=0),
        )
        runtime = start(config.train, 1, Path(folder), 0)
        turns = Turns(by_hand(store, config, runtime), config, runtime.accelerator.device, args.windows)
        with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(train, "Tracker", turns.tracker()):
            with contextlib.suppress(Done):
                train.main(config)
    common = {"device": pick_device().type, "precision": runtime.precision.mode, "model": plain(config.model)}
    common |= {**plain(config.data), "data": store.meta["data"], "log_every_steps": config.log.every_steps}
    ratios = [a / b for a, b in zip(turns.trainer, turns.bare, strict=True)]
    ceiling = Ceiling("bare (a loop written by hand)", statistics.median(turns.bare))
    none = Ceiling("none", None, "it is the ceiling of trainer")
    about = {"variant": "trainer", "ratio_spread": [min(ratios), max(ratios)]}
    about["ratio_quartiles"] = [round(value, 4) for value in statistics.quantiles(ratios, n=4)]
    warm = SKIPPED * config.log.every_steps
    rows = [
        line("overhead", turns.bare, "images/s", none, common | {"variant": "bare"}, args, warmup_steps=warm),
        line(
            *("overhead", turns.trainer, "images/s", ceiling, common | about, args),
            warmup_steps=warm,
            ratio=statistics.median(ratios),
            answer=True,
        ),
    ]
    for row in rows:
        record(row, args.out)


class Done(Exception):
    """Enough pairs: the training is left."""


class Turns:
    """The trainer's steps between two log lines, then as many by hand; a pair of rates each time, in images/s."""

    def __init__(self, step: Callable[[], None], config: Config, device: torch.device, windows: int):
        self.trainer: list[float] = []
        self.bare: list[float] = []
        self._step, self._device, self._windows = step, device, windows
        self._steps, self._images = config.log.every_steps, config.log.every_steps * config.data.batch_size
        self._lines, self._whole, self._began = 0, True, 0.0

    def tracker(self) -> type[Tracker]:
        """A Tracker that hands over after each of its lines."""
        turns = self

        class Alternating(Tracker):
            def log(self, step: int, scalars: dict[str, float]) -> None:
                super().log(step, scalars)
                turns.line_written("train/loss" in scalars)

        return Alternating

    def line_written(self, of_training: bool) -> None:
        """of_training: False after a validation, which spoils the pair that it falls into. Raises Done."""
        if not of_training:
            self._whole = False
            return
        drain(self._device)
        of_trainer = time.perf_counter() - self._began
        begin = time.perf_counter()
        for _ in range(self._steps):
            self._step()
        drain(self._device)
        if self._lines >= SKIPPED and self._whole:
            self.trainer.append(self._images / of_trainer)
            self.bare.append(self._images / (time.perf_counter() - begin))
        if len(self.bare) == self._windows:
            raise Done
        self._lines, self._whole, self._began = self._lines + 1, True, time.perf_counter()


def by_hand(store: Store, config: Config, runtime: Runtime) -> Callable[[], None]:
    """A training step as a reader of the network's documentation would write it."""
    loader, dataset = build_train_loader(
        store, config.data, AugmentConfig(), 0, runtime.ranks, device=runtime.device, dtype=runtime.image_dtype
    )
    model = build_model(config.model, dataset.frames, pretrained=False)
    model, batch = train.placed(model, config.train, runtime.accelerator.device).train(), next(iter(loader))
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
