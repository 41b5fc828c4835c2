"""What does the trainer cost beside the work itself? `python -m benchmarks.overhead`.

`kits_dist.train` as a user starts it (Accelerate, log lines, TensorBoard, early-stopping books, stop requests) on one
batch repeated, against a loop written by hand for the same network, batch and precision: forward, BCE, backward, Adam,
nothing else. Rounds of both alternate; the answer is the median of their ratios. 1: the trainer costs nothing.

Validation, checkpoints and start-up are outside: of each training only the steps between two log lines of its one epoch
count, and a log line is written when the device has finished the step.
"""

import contextlib
import io
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.harness import MIN_WINDOWS, Ceiling, drain, line, pick_device, plain, record
from benchmarks.harness import store_or_phantoms as open_store
from kits_dist import cli, train
from kits_dist.batch import Batch
from kits_dist.config import AugmentConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data import build_train_loader
from kits_dist.data.store import Store
from kits_dist.errors import InputError
from kits_dist.learner import build_optimizer
from kits_dist.models import build_model
from kits_dist.runtime import Runtime, start
from kits_dist.tracking import log_lines

SKIPPED = 1  # log intervals at the start: memory, kernels, caches


@dataclass(frozen=True)
class Args:
    store: str = ""  # folder written by kits_dist.prepare; empty: phantoms, 24 of 32x512x512 on a GPU, else 24x128x128
    size_px: tuple[int, int] = (0, 0)  # (height, width) of the images; 0x0: 512x512 on a GPU, 128x128 without
    batch_size: int = 0  # images a step; 0: 16 on a GPU, 8 without. Small ones make overhead show
    arch: str = ""  # as model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 12 without
    precision: str = "auto"  # as train.precision
    windows: int = 5  # rounds of both, at least 5
    out: str = ""  # folder for the line; empty: benchmarks/results
    quick: bool = False  # tiny images: proves that it runs


def main(args: Args) -> None:
    if args.windows < MIN_WINDOWS:
        raise InputError(f"windows={args.windows}: a median and a spread need at least {MIN_WINDOWS}.")
    on_gpu = pick_device().type == "cuda"
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (128, 128)
    batch_size = args.batch_size or (4 if args.quick else 16 if on_gpu else 8)
    arch = args.arch or ("unet" if on_gpu and not args.quick else "simple_unet")
    shape = (12, 64, 64) if args.quick else (32, 512, 512) if on_gpu else (24, 128, 128)
    width = 2 if args.quick else 12 if arch == "simple_unet" else 64
    rounds: dict[str, list[float]] = {"trainer": [], "bare": []}
    with open_store(args.store, 8 if args.quick else 24, shape) as store, tempfile.TemporaryDirectory() as folder:
        config = Config(
            run=folder,
            data=DataConfig(store=str(store.path), size_px=size, batch_size=batch_size, backend="fixed"),
            model=ModelConfig(arch=arch, encoder_weights="none", width=width),
            optim=OptimConfig(epochs=1),
            train=TrainConfig(precision=args.precision),
            log=LogConfig(every_steps=2 if args.quick else 10, images=0),
        )
        steps = counted_steps(store, config)
        for number in range(args.windows):
            rounds["trainer"].append(trainer_rate(config, Path(folder) / f"run_{number}"))
            rounds["bare"].append(bare_rate(store, config, Path(folder), steps))
        precision = start(config.train, 1, Path(folder), 0).precision.mode
    common = {"device": pick_device().type, "precision": precision, "model": plain(config.model), **plain(config.data)}
    common |= {"data": store.meta["data"], "steps": steps, "log_every_steps": config.log.every_steps}
    ratios = [a / b for a, b in zip(rounds["trainer"], rounds["bare"], strict=True)]
    ceiling = Ceiling("bare (a loop written by hand)", statistics.median(rounds["bare"]))
    none = Ceiling("none", None, "it is the ceiling of trainer")
    about = {"variant": "trainer", "ratio_spread": [min(ratios), max(ratios)]}
    first = config.log.every_steps * SKIPPED + 1
    rows = [
        line("overhead", rounds["bare"], "images/s", none, common | {"variant": "bare"}, args, warmup_steps=first),
        line(
            *("overhead", rounds["trainer"], "images/s", ceiling, common | about, args),
            warmup_steps=first,
            ratio=statistics.median(ratios),
            answer=True,
        ),
    ]
    for row in rows:
        record(row, args.out)


def counted_steps(store: Store, config: Config) -> int:
    """Steps between the first log line that counts and the last of an epoch. Raises InputError when there are none."""
    slices = sum(case.shape[0] for case in store.cases if case.case_id in store.splits.select(config.data.fold)[0])
    every = config.log.every_steps
    last = (-(-slices // config.data.batch_size) - 1) // every * every
    if last <= SKIPPED * every:
        raise InputError(
            f"{slices} training slices are {last} steps of {config.data.batch_size}: too few. Lower batch_size, or "
            "name a larger store."
        )
    return last - SKIPPED * every


def trainer_rate(config: Config, run: Path) -> float:
    """Images/s of kits_dist.train, from the times of its own log lines."""
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(replace(config, run=str(run)))
    logged = [entry for entry in log_lines(run / "log.jsonl") if "train/loss" in entry][SKIPPED:]
    seconds = logged[-1]["time_s"] - logged[0]["time_s"]
    return config.data.batch_size * (logged[-1]["step"] - logged[0]["step"]) / seconds


def bare_rate(store: Store, config: Config, folder: Path, steps: int) -> float:
    """Images/s of a loop written by hand: what a reader of the network's documentation would write."""
    runtime = start(config.train, 1, folder, 0)
    model, batch = network_and_batch(store, config, runtime)
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

    for _ in range(SKIPPED * config.log.every_steps + 1):
        step()
    drain(batch.image.device)
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    drain(batch.image.device)
    return config.data.batch_size * steps / (time.perf_counter() - begin)


def network_and_batch(store: Store, config: Config, runtime: Runtime) -> tuple[torch.nn.Module, Batch]:
    loader, feed = build_train_loader(store, config.data, AugmentConfig(), 0, runtime.shard)
    model = build_model(config.model, feed.frames, pretrained=False)
    return train.placed(model, config.train, runtime.accelerator.device).train(), next(iter(loader))


if __name__ == "__main__":
    cli.run(main, Args)
