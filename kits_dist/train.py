"""Train one model on 1..N processes.

accelerate launch --config_file launch/cpu.yaml -m kits_dist.train config=configs/demo.yaml data.store=DIR run=DIR

Works on 1..N processes, with or without GPUs, under `accelerate launch`, `torchrun` or plain `python -m`.
"""

import contextlib
import math
import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from kits_dist import checkpoint, cli, files, process_group
from kits_dist.batch import Batch
from kits_dist.config import Config, OptimConfig
from kits_dist.data import augment, build_train_loader, build_val_loader
from kits_dist.data.feed import Feed
from kits_dist.data.store import PLANES, Store
from kits_dist.drawing import Tile, panel
from kits_dist.errors import JobFailed, Preempted
from kits_dist.inference import denormalized, region_probabilities
from kits_dist.labels import regions_to_labels
from kits_dist.losses import RegionLoss
from kits_dist.models import build_model
from kits_dist.parallel import progress_bar
from kits_dist.run_folder import (
    REQUEUE,
    Progress,
    export_best,
    mend_export,
    open_run,
    same_everywhere,
    where_to_go_on,
    write_about,
)
from kits_dist.runtime import Runtime, environment, start
from kits_dist.schedule import lr_at
from kits_dist.scoring import Validation, broadcast_buffers, score
from kits_dist.signals import StopRequest
from kits_dist.tracking import Pace, Tracker


def main(config: Config) -> None:
    speaks = os.environ.get("RANK", "0") == "0"
    with files.exclusive(Path(config.run), "run") if speaks else contextlib.nullcontext():
        try:
            train(config)
        except RuntimeError as error:
            if lost := process_group.lost(error):
                raise JobFailed(f"{lost} {where_to_go_on(config)}") from error
            raise


def train(config: Config) -> None:
    # configure
    store = Store(config.data.store)
    train_cases, val_cases = store.splits.select(config.data.fold)
    progress, found, notes = open_run(config, store)

    # runtime
    runtime = start(config.train, config.optim.accumulate, Path(config.run), config.seed)
    process_group.refuse_differences(same_everywhere(config, store, progress))
    accelerator, shard = runtime.accelerator, runtime.shard
    global_batch = config.data.batch_size * shard.world * config.optim.accumulate

    # data
    batches, feed = build_train_loader(store, config.data, config.augment, config.seed, shard, progress.position)
    val_loader, val_feed = build_val_loader(store, config.data, val_cases, shard)
    num_samples = len(feed.rows)
    total = config.optim.epochs * num_samples
    total_steps = -(-total // global_batch)

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
    if found and accelerator.scaler and found.state["scaler"]:  # fp16
        accelerator.scaler.load_state_dict(found.state["scaler"])
    accelerator.wait_for_everyone()  # no rank may write before every rank has read
    if accelerator.is_main_process:
        about = environment()
        write_about(config, store, about)
        mend_export(config, store, plain_model)
        for line in _introduction(about, runtime, config, feed, train_cases, val_cases, total_steps):
            print(line)
        print(*notes, sep="\n", end="\n" if notes else "")
    if reason := finished(progress, num_samples, config.optim):
        accelerator.print(f"{config.run}: already finished ({reason}).")
        accelerator.end_training()
        return
    tracker = Tracker(accelerator, Path(config.run), config, store.meta["data"], progress.step)
    stops = Stops(config, store, val_cases, val_loader, val_feed, plain_model, plain_optimizer, loss_fn, runtime)

    # loop
    pace = Pace(accelerator.device)
    loss_sum, loss_steps = torch.zeros((), device=accelerator.device), 0
    stream = iter(batches)
    bar = progress_bar("train", "slice", total, progress.position, disable=not accelerator.is_main_process)
    with bar, StopRequest(shard.world) as request:
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
            stopping = request.agreed()
            saving = stopping or config.train.save_every_steps and step % config.train.save_every_steps == 0

            if logging or epoch_done or saving:  # before anything is saved: a checkpoint never holds a spoilt network
                mean_loss = accelerator.reduce(loss_sum / loss_steps, "mean").item()  # sync
                if not math.isfinite(mean_loss):
                    _stop_not_finite(config.run, step, -(-loss_steps // config.optim.accumulate), accelerator, batch)
                loss_sum.zero_()
                loss_steps = 0
            if logging:
                speed = pace.report(global_batch)
                scalars = {
                    "train/loss": mean_loss,
                    "train/lr": rate,
                    "train/grad_norm": float(norm),
                    "train/epoch": epoch,
                }
                tracker.log(step, scalars | speed)
                bar.set_postfix(epoch=f"{epoch + 1}/{config.optim.epochs}", loss=f"{mean_loss:.4f}", refresh=False)
            if epoch_done:
                validation = stops.validate()
                if not math.isfinite(validation.loss):
                    _stop_not_finite(config.run, step, 1, accelerator, batch)
                progress, is_best = judge(progress, validation, epoch, config.optim)
                tracker.log(
                    step, {"val/loss": validation.loss} | {f"val/dice_grid/{k}": v for k, v in validation.dice.items()}
                )
                if config.log.images and accelerator.is_main_process:
                    tracker.image(step, "val/panel", stops.panel())
                stops.save(progress, is_best)
                if accelerator.is_main_process:
                    dice = "  ".join(f"{name} {value:.3f}" for name, value in validation.dice.items())
                    best = "  best" if is_best else ""
                    bar.write(f"epoch {epoch + 1}: val loss {validation.loss:.4f}  dice_grid {dice}{best}")
            elif saving:
                stops.save(progress, False)
            if stopping and not finished(progress, num_samples, config.optim):
                stops.ask_for_more()
                break
            if epoch_done or saving:
                pace.resume()
    tracker.close()
    if not finished(progress, num_samples, config.optim):
        raise Preempted(f"stopped as asked, saved at step {progress.step}. The same command with resume=auto goes on.")
    accelerator.print(
        f"finished: {finished(progress, num_samples, config.optim)}; best epoch {progress.best_epoch + 1}; "
        f"run: {config.run}"
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


def judge(progress: Progress, validation: Validation, epoch: int, config: OptimConfig) -> tuple[Progress, bool]:
    """Progress after a validation, and whether it was the best; the same on all ranks, from the same counts."""
    value = validation.loss if config.best_by == "loss" else -float(np.mean(list(validation.dice.values())))
    is_best = progress.best is None or value < progress.best
    if is_best:
        return progress._replace(best=value, best_epoch=epoch, stale=0), True
    return progress._replace(stale=progress.stale + 1), False


class Stops:
    """What is done with the network between steps: validate, draw, save."""

    def __init__(
        self, config: Config, store: Store, val_cases: list[str], loader, feed: Feed, model, optimizer, loss_fn, runtime
    ):
        """model, optimizer: the unwrapped ones."""
        self.config, self.store, self.loader, self.feed = config, store, loader, feed
        self.model, self.optimizer, self.loss_fn, self.accelerator = model, optimizer, loss_fn, runtime.accelerator
        self.rows = [store.row[case] for case in val_cases]

    def validate(self) -> Validation:
        self.store.check_files()  # a file cut short meanwhile would kill every rank by SIGBUS
        return score(self.model, self.loss_fn, self.loader, self.rows, len(self.feed.rows), self.accelerator)

    def save(self, progress: Progress, best: bool) -> None:
        broadcast_buffers(self.model, self.accelerator)
        scaler = self.accelerator.scaler
        if self.accelerator.is_main_process:
            checkpoint.save(
                Path(self.config.run) / "checkpoint",
                progress.step,
                self.model,
                self.optimizer,
                {"progress": progress._asdict(), "scaler": scaler.state_dict() if scaler else None},
                best=best,
                keep=self.config.train.keep,
            )
            if best:
                export_best(self.config, self.store, progress.step, self.model)
        self.accelerator.wait_for_everyone()

    def ask_for_more(self) -> None:
        """RUN/requeue: no exit code survives a launcher, so a scheduler looks for this file."""
        if self.accelerator.is_main_process:
            files.write_bytes(Path(self.config.run) / REQUEUE, b"start the same command again with resume=auto\n")
        self.accelerator.wait_for_everyone()

    def panel(self) -> np.ndarray:
        """The same validation slices each time: evenly spaced among those with the most tumor, else foreground."""
        count, table, feed = self.config.log.images, self.store.slices, self.feed
        levels = self.store.window.levels
        rank = np.lexsort((table.foreground[feed.rows], table.tumor[feed.rows]))[::-1]
        chosen = np.sort(rank[: max(count, len(rank) // 10)][:: max(1, len(rank) // 10 // count)])
        host = feed.batch(chosen[:count])
        tiles = []
        for i, (case, index, plane) in enumerate(host.identity):
            slab, truth = host.slabs[i][..., 0], host.labels[i][..., 0]
            image, label = augment.apply(slab, truth, host.params, i, self.config.data.size_px, levels, feed.norm)
            with self.accelerator.autocast():
                seen = torch.from_numpy(image)[None].to(self.accelerator.device)
                inside = region_probabilities(self.model, seen)[0] >= 0.5
            grey = denormalized(image[feed.data.context], feed.norm, levels)
            predicted = regions_to_labels(inside.cpu().numpy(), self.config.model.regions)
            tiles.append(
                Tile(grey, label, predicted, f"{self.store.cases[case].case_id} {list(PLANES)[plane]} {index}")
            )
        return panel(tiles, f"data: {self.store.meta['data']}")


def _introduction(env: dict, runtime: Runtime, config: Config, feed: Feed, train_cases, val_cases, steps: int):
    """The first lines of a run: what runs where, on how much."""
    world, batch, accumulate = runtime.shard.world, config.data.batch_size, config.optim.accumulate
    where = f"{env['gpus']} x {env['gpu']}" if env["gpu"] else f"CPU ({env['cpu_cores']} cores)"
    yield f"commit {env['commit']}{' (dirty)' if env['dirty'] else ''}, torch {env['torch']}, {where}"
    yield f"{world} processes x batch {batch} x accumulate {accumulate} = {world * batch * accumulate} a step"
    yield f"precision {runtime.precision.mode}: {runtime.precision.reason}"
    yield f"data backend {config.data.backend}, slices from {feed.pixels.about}"
    yield (
        f"data: {feed.store.meta['data']}; {len(feed.rows)} training slices of {len(train_cases)} cases, "
        f"{len(val_cases)} validation cases; {config.optim.epochs} epochs = {steps} steps"
    )
    if config.data.sampler != "natural":
        groups = list(zip(feed.order.groups, feed.order.counts, strict=True))
        named = ", ".join(f"{count} {group.name} (of {len(group.members)})" for group, count in groups[:3])
        yield f"each epoch of sampler={config.data.sampler}: {named}" + (
            f", {len(groups)} in all" if groups[3:] else ""
        )
    if config.data.fold == "all":
        yield "data.fold=all: validation cases are training cases; the val scores say nothing about new patients"


def _stop_not_finite(run: str, step: int, steps: int, accelerator: Accelerator, batch: Batch) -> NoReturn:
    raise JobFailed(
        f"the loss is not finite in steps {max(1, step - steps + 1)}..{step} (rank {accelerator.process_index}; its "
        f"last batch: cases {batch.case.tolist()[:4]}..., slices {batch.index.tolist()[:4]}...). Lower optim.lr, set "
        f"optim.clip_norm=1, or use train.precision=fp32. The checkpoints in {run}/checkpoint are from before."
    )


if __name__ == "__main__":
    cli.run(main, Config)
