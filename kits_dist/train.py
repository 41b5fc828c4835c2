"""Train one model on 1..N processes.

accelerate launch --config_file launch/cpu.yaml -m kits_dist.train config=configs/demo.yaml data.store=DIR run=DIR

Works on 1..N processes, with or without GPUs, under `accelerate launch`, `torchrun` or plain `python -m`.
"""

import contextlib
import json
import math
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from kits_dist import checkpoint, cli, files
from kits_dist.batch import Batch
from kits_dist.config import Config, OptimConfig, as_plain, save_config
from kits_dist.data import augment, build_train_loader, build_val_loader
from kits_dist.data.feed import Feed
from kits_dist.data.store import Store
from kits_dist.drawing import Tile, panel
from kits_dist.errors import InputError, JobFailed
from kits_dist.inference import denormalized, region_probabilities
from kits_dist.labels import regions_to_labels
from kits_dist.losses import RegionLoss
from kits_dist.models import build_model
from kits_dist.parallel import progress_bar
from kits_dist.runtime import Runtime, environment, start
from kits_dist.schedule import lr_at
from kits_dist.scoring import Validation, broadcast_buffers, score
from kits_dist.tracking import Pace, Tracker


class Progress(NamedTuple):
    """All that a run must remember beside weights and optimiser: batches are a pure function of `position`."""

    position: int = 0  # samples consumed by all ranks together
    step: int = 0  # optimiser steps taken, the x of every curve; grows whatever the number of ranks
    best: float | None = None  # validation loss, or minus mean Dice; none before the first validation
    best_epoch: int = -1
    stale: int = 0  # validations since the best


def main(config: Config) -> None:
    # configure
    run = Path(config.run)
    store = Store(config.data.store)
    train_cases, val_cases = store.splits.select(config.data.fold)
    progress, found, notes = _open_run(run, config, store)

    # runtime
    runtime = start(config.train, run, config.seed)
    accelerator, shard = runtime.accelerator, runtime.shard
    global_batch = config.data.batch_size * shard.world * config.optim.accumulate

    # data
    batches, feed = build_train_loader(store, config.data, config.augment, config.seed, shard, progress.position)
    val_loader, val_feed = build_val_loader(store, config.data, val_cases, shard)
    num_samples = len(feed.rows)

    # model
    with accelerator.main_process_first():  # one process downloads pretrained weights, the others find them
        model = build_model(config.model, feed.frames, pretrained=found is None)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model.to(accelerator.device)
    optimizer = build_optimizer(model, config.optim, accelerator.device)
    loss_fn = RegionLoss(config.optim.loss, config.model.regions, config.optim.pos_weight).to(accelerator.device)

    # resume
    if found:
        checkpoint.restore(found, model, optimizer)
        for group in optimizer.param_groups:
            group["weight_decay"] = config.optim.weight_decay  # the rate is set at each step
    plain_model, plain_optimizer = model, optimizer
    if config.train.compile:
        model = torch.compile(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.wait_for_everyone()  # no rank may write before every rank has read
    if accelerator.is_main_process:
        _write_run(run, config, store)
    _introduce(accelerator, runtime, config, feed, train_cases, val_cases, global_batch, progress, notes)
    if reason := finished(progress, num_samples, config.optim):
        accelerator.print(f"{run}: already finished ({reason}).")
        accelerator.end_training()
        return
    tracker = Tracker(accelerator, run, config, store.meta["data"])

    # loop
    total = config.optim.epochs * num_samples
    total_steps = -(-total // global_batch)
    pace = Pace(accelerator.device)
    loss_sum, loss_steps = torch.zeros((), device=accelerator.device), 0
    stream = iter(batches)
    bar = progress_bar("train", "slice", total, progress.position, disable=not accelerator.is_main_process)
    model.train()
    pace.resume()
    while not finished(progress, num_samples, config.optim):
        rate = lr_at(progress.position // global_batch, total_steps, config.optim, shard.world)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for micro in range(config.optim.accumulate):
            pace.batch_requested()
            batch = next(stream)
            pace.batch_ready()
            last = micro == config.optim.accumulate - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                with accelerator.autocast():
                    logits = model(batch.image)  # (B, C, H, W) -> (B, R, H, W)
                loss = loss_fn(logits, batch.label)
                accelerator.backward(loss / config.optim.accumulate)
            loss_sum += loss.detach()
            loss_steps += 1
        logging = progress.step % config.log.every_steps == 0
        norm = None
        if config.optim.clip_norm or logging:
            norm = accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pace.step_ended()
        epoch = progress.position // num_samples
        progress = progress._replace(position=progress.position + global_batch, step=progress.step + 1)
        step = progress.step
        bar.update(global_batch)
        epoch_done = progress.position // num_samples > epoch
        saving = config.train.save_every_steps and step % config.train.save_every_steps == 0

        if logging or epoch_done or saving:  # before anything is saved: a checkpoint never holds a spoilt network
            mean_loss = accelerator.reduce(loss_sum / loss_steps, "mean").item()  # sync
            if not math.isfinite(mean_loss):
                _stop_not_finite(run, step, -(-loss_steps // config.optim.accumulate), accelerator, batch)
            loss_sum.zero_()
            loss_steps = 0
        if logging:
            speed = pace.report(config.data.batch_size * shard.world * config.optim.accumulate)
            scalars = {"train/loss": mean_loss, "train/lr": rate, "train/grad_norm": float(norm), "train/epoch": epoch}
            tracker.log(step, scalars | speed)
            bar.set_postfix(epoch=f"{epoch + 1}/{config.optim.epochs}", loss=f"{mean_loss:.4f}", refresh=False)
        if epoch_done:
            store.check_files()  # a file cut short meanwhile would kill every rank by SIGBUS
            validation = score(plain_model, loss_fn, val_loader, len(store.cases), len(val_feed.rows), accelerator)
            if not math.isfinite(validation.loss):
                _stop_not_finite(run, step, 1, accelerator, batch)
            dice_grid = validation.dice_grid([store.row[case] for case in val_cases])
            progress, is_best = _judge(progress, validation, dice_grid, epoch, config.optim)
            scalars = {
                f"val/dice_grid/{name}": value
                for name, value in zip(config.model.regions, dice_grid.tolist(), strict=True)
            }
            tracker.log(step, {"val/loss": validation.loss} | scalars)
            if config.log.images and accelerator.is_main_process:
                tracker.image(step, "val/panel", _panel(plain_model, val_feed, config, accelerator))
            _save(run, step, plain_model, plain_optimizer, progress, config, store, is_best, accelerator)
            named = "  ".join(
                f"{name} {value:.3f}" for name, value in zip(config.model.regions, dice_grid, strict=True)
            )
            best = "  best" if is_best else ""
            if accelerator.is_main_process:
                bar.write(f"epoch {epoch + 1}: val loss {validation.loss:.4f}  dice_grid {named}{best}")
            pace.resume()
        elif saving:
            _save(run, step, plain_model, plain_optimizer, progress, config, store, False, accelerator)
            pace.resume()
    bar.close()
    tracker.close()
    accelerator.print(
        f"finished: {finished(progress, num_samples, config.optim)}; best epoch {progress.best_epoch + 1}; run: {run}"
    )


def finished(progress: Progress, num_samples: int, config: OptimConfig) -> str:
    """Why there is nothing left to do, or "". Derived, not stored: a run may be resumed with more epochs."""
    if config.patience and progress.stale >= config.patience:
        return f"no improvement in {progress.stale} epochs"
    if progress.position >= config.epochs * num_samples:
        return f"{config.epochs} epochs done"
    return ""


def build_optimizer(model: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    fused = {"fused": True} if device.type == "cuda" else {}
    if config.name == "sgd":
        return torch.optim.SGD(
            model.parameters(), config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay, **fused
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(model.parameters(), config.lr, weight_decay=config.weight_decay, **fused)


def _open_run(run: Path, config: Config, store: Store) -> tuple[Progress, checkpoint.Checkpoint | None, list[str]]:
    """Where this run stands. Raises InputError rather than mixing two runs in one folder."""
    if run.exists() and not run.is_dir():
        raise InputError(f"run={run} is a file. Name a folder.")
    written = run / "config.yaml"
    if not written.exists():
        return Progress(), None, []
    if config.resume == "none":
        raise InputError(f"run={run} already holds a run. Continue it with resume=auto, or name another folder.")
    before, now = as_plain(cli.load(Config, [f"config={written}"])), as_plain(config)
    changed = [
        f"{group}.{key}: {before[group][key]} there, {now[group][key]} asked"
        for group, keys in (
            ("data", set(now["data"]) - {"store", "threads", "prefetch", "batch_size"}),
            ("augment", set(now["augment"])),
            ("model", set(now["model"]) - {"encoder_weights"}),
            ("optim", {"name", "loss", "pos_weight", "best_by"}),
        )
        for key in now[group]
        if key in keys and before[group][key] != now[group][key]
    ]
    changed += [f"seed: {before['seed']} there, {config.seed} asked"] if before["seed"] != config.seed else []
    if changed:
        raise InputError(f"run={run} was made with another configuration ({'; '.join(changed)}). Name another folder.")
    environment_file = run / "environment.json"
    if environment_file.is_file() and json.loads(environment_file.read_text())["store_sha256"] != store.fingerprint():
        raise InputError(
            f"data.store={config.data.store} is not the store that run={run} was trained on: its cases, window or "
            f"splits differ, and test cases could be trained on. Use that store, or name another run folder."
        )
    found, damaged = checkpoint.find(run / "checkpoint")
    notes = [f"not used: {sentence}" for sentence in damaged]
    notes.append(
        f"continuing from {found.folder.name}" if found else "no whole checkpoint found, starting from the beginning"
    )
    return (Progress(**found.state) if found else Progress()), found, notes


def _write_run(run: Path, config: Config, store: Store) -> None:
    run.mkdir(parents=True, exist_ok=True)
    save_config(config, run / "config.yaml")
    about = {"data": store.meta["data"], "store_sha256": store.fingerprint()}
    files.write_json(run / "environment.json", environment() | about)


def _introduce(
    accelerator, runtime: Runtime, config, feed, train_cases, val_cases, global_batch, progress, notes
) -> None:
    env = environment()
    where = f"{env['gpus']} x {env['gpu']}" if env["gpu"] else f"CPU ({env['cpu_cores']} cores)"
    steps = -(-config.optim.epochs * len(feed.rows) // global_batch)
    print_ = accelerator.print
    print_(f"commit {env['commit']}{' (dirty)' if env['dirty'] else ''}, torch {env['torch']}, {where}")
    print_(
        f"{runtime.shard.world} processes x batch {config.data.batch_size} x accumulate {config.optim.accumulate} = "
        f"{global_batch} a step"
    )
    print_(f"precision {runtime.precision.mode}: {runtime.precision.reason}; data backend {config.data.backend}")
    print_(
        f"data: {feed.store.meta['data']}; {len(feed.rows)} training slices of {len(train_cases)} cases, "
        f"{len(val_cases)} validation cases; {config.optim.epochs} epochs = {steps} steps"
    )
    if config.data.fold == "all":
        print_("data.fold=all: validation cases are training cases; the val scores say nothing about new patients")
    for note in notes:
        print_(note)


def _judge(
    progress: Progress, validation: Validation, dice_grid: np.ndarray, epoch: int, config: OptimConfig
) -> tuple[Progress, bool]:
    """Progress after a validation, and whether it was the best; the same on all ranks, from the same counts."""
    value = validation.loss if config.best_by == "loss" else -float(dice_grid.mean())
    is_best = progress.best is None or value < progress.best
    if is_best:
        return progress._replace(best=value, best_epoch=epoch, stale=0), True
    return progress._replace(stale=progress.stale + 1), False


def _save(
    run, step, model, optimizer, progress: Progress, config: Config, store: Store, best: bool, accelerator: Accelerator
):
    broadcast_buffers(model, accelerator)
    if accelerator.is_main_process:
        state = progress._asdict()
        checkpoint.save(run / "checkpoint", step, model, optimizer, state, best=best, keep=config.train.keep)
        if best:
            norm, trained_on = store.normalization(config.data.fold), store.splits.select(config.data.fold)[0]
            about = {
                "config": as_plain(config),
                "window_hu": list(store.window),
                "normalization": norm._asdict(),
                "data": store.meta["data"],
                "trained_on": [store.cases[store.row[case_id]].source["image_sha256"] for case_id in trained_on],
                "step": step,
            }
            checkpoint.export(run / "model.safetensors", model, about)
    accelerator.wait_for_everyone()


def _panel(model: nn.Module, feed: Feed, config: Config, accelerator: Accelerator) -> np.ndarray:
    """The same validation slices each time: evenly spaced among those with the most tumor, else the most foreground."""
    table, norm = feed.store.slices, feed.norm
    rank = np.lexsort((table.foreground[feed.rows], table.tumor[feed.rows]))[::-1]
    chosen = np.sort(rank[: max(config.log.images, len(rank) // 10)][:: max(1, len(rank) // 10 // config.log.images)])
    host = feed.batch(chosen[: config.log.images])
    tiles = []
    for i, (case, index) in enumerate(host.identity):
        image, label = augment.apply(
            host.slabs[i][..., 0],
            host.labels[i][..., 0],
            host.params,
            i,
            config.data.size_px,
            feed.store.window.levels,
            norm,
        )
        with accelerator.autocast():
            inside = region_probabilities(model, torch.from_numpy(image)[None].to(accelerator.device))[0] >= 0.5
        grey = denormalized(image[feed.data.context], norm, feed.store.window.levels)
        predicted = regions_to_labels(inside.cpu().numpy(), config.model.regions)
        tiles.append(Tile(grey, label, predicted, f"{feed.store.cases[case].case_id} slice {index}"))
    return panel(tiles, f"data: {feed.store.meta['data']}")


def _stop_not_finite(run: Path, step: int, steps: int, accelerator: Accelerator, batch: Batch) -> NoReturn:
    raise JobFailed(
        f"the loss is not finite in steps {max(1, step - steps + 1)}..{step} (rank {accelerator.process_index}; its "
        f"last batch: cases {batch.case.tolist()[:4]}..., slices {batch.index.tolist()[:4]}...). Lower optim.lr, set "
        f"optim.clip_norm=1, or use train.precision=fp32. The checkpoints in {run}/checkpoint are from before."
    )


if __name__ == "__main__":
    cli.run(main, Config)
