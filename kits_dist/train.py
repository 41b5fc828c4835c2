"""Train one model on 1..N processes.

accelerate launch --config_file launch/cpu.yaml -m kits_dist.train config=configs/demo.yaml data.store=DIR run=DIR

Works on 1..N processes, with or without GPUs, under `accelerate launch`, `torchrun` or plain `python -m`.
"""

import contextlib
import math
import os
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kits_dist import checkpoint, cli, files, process_group
from kits_dist.config import Config, OptimConfig, TrainConfig
from kits_dist.data import augment, build_train_loader, build_val_loader
from kits_dist.data.feed import Feed
from kits_dist.data.pixels import Resident
from kits_dist.data.selection import Samples, worth_seeing
from kits_dist.data.store import PLANE_NAMES, Store
from kits_dist.drawing import Tile, panel
from kits_dist.environment import environment
from kits_dist.errors import InputError, JobFailed, Preempted
from kits_dist.inference.predictor import denormalized
from kits_dist.inference.region_models import region_probabilities
from kits_dist.labels import regions_to_labels
from kits_dist.learner import Learner
from kits_dist.loss_watch import LossWatch
from kits_dist.mfu import images_per_s_at_peak
from kits_dist.models import build_model
from kits_dist.monitors import monitor_of
from kits_dist.parallel import progress_bar
from kits_dist.profiling import BETWEEN, StepProfile
from kits_dist.run_folder import (
    REQUEUE,
    Progress,
    export_best,
    mend_best,
    name_of,
    open_run,
    same_everywhere,
    where_to_go_on,
    write_about,
)
from kits_dist.runtime import Runtime, launched_precision, seed_step, start, unrepeatable
from kits_dist.schedule import lr_at
from kits_dist.scoring import Validation, broadcast_buffers, score
from kits_dist.signals import StopRequest
from kits_dist.tracking import Pace, Tracker, verdict


def main(config: Config) -> None:
    speaks = os.environ.get("RANK", "0") == "0"
    held = files.exclusive(Path(config.run), "run") if speaks else contextlib.nullcontext()
    with held, StopRequest() as request:
        try:
            train(config, request)
        except torch.OutOfMemoryError as error:
            raise JobFailed(out_of_memory(config, error)) from error
        except RuntimeError as error:
            if lost := process_group.lost(error):
                raise JobFailed(f"{lost} {where_to_go_on(config)}") from error
            raise


def out_of_memory(config: Config, error: Exception) -> str:
    """What did not fit, and what to try next; the checkpoints are whole, so the run can go on with it."""
    data, mode, advice = config.data, launched_precision(config.train).mode, []
    if parts := next((n for n in range(2, data.batch_size + 1) if data.batch_size % n == 0), 0):
        accumulate = parts * config.optim.accumulate
        advice.append(f"data.batch_size={data.batch_size // parts} optim.accumulate={accumulate} (the same step)")
    if mode in ("fp32", "tf32"):
        advice.append("train.precision=bf16")
    if data.residency != "mmap":
        advice.append("data.residency=mmap")
    return (
        f"out of GPU memory with data.batch_size={data.batch_size}, data.size_px={data.size_px[0]}x{data.size_px[1]}, "
        f"precision {mode}, data.residency={data.residency} ({str(error).splitlines()[0]}). "
        f"Go on with resume=auto and {', or '.join([*advice, 'smaller data.size_px in a folder of its own'])}"
    )


def train(config: Config, request: StopRequest) -> None:
    # configure
    store = Store(config.data.store)
    train_cases, val_cases = store.splits.select(config.data.fold)
    progress, found, notes = open_run(config, store)

    # runtime
    runtime = start(config.train, config.optim.accumulate, Path(config.run), config.seed)
    request.listen(runtime.shard.world, config.train.timeout_s)
    process_group.refuse_differences(same_everywhere(config, store, progress))
    accelerator, shard = runtime.accelerator, runtime.shard
    global_batch = config.data.batch_size * shard.world * config.optim.accumulate

    # model
    frames = 1 + 2 * config.data.context
    with accelerator.main_process_first():  # one process downloads pretrained weights, the others find them
        model = build_model(config.model, frames, pretrained=found is None)
    at_peak, facts = None, {}  # of the process that speaks
    if accelerator.is_main_process:
        size_px, mode = config.data.size_px, runtime.precision.mode
        at_peak = images_per_s_at_peak(model, frames, size_px, accelerator.device, mode)
    learner = Learner(placed(model, config.train, accelerator.device), config.model.regions, config.optim, accelerator)

    # data
    step_bytes = partial(learner.step_bytes, config.data.batch_size, frames, config.data.size_px)
    batches, feed = build_train_loader(
        store, config.data, config.augment, config.seed, shard, progress.position, step_bytes
    )
    val_loader, val_feed = build_val_loader(store, config.data, val_cases, shard)
    num_samples = len(feed.rows)
    total_steps = -(-config.optim.epochs * num_samples // global_batch)

    # resume
    if found:
        learner.restore(found, config.optim.weight_decay)
    learner.wrap(config.train)
    accelerator.wait_for_everyone()  # no rank may write before every rank has read
    if accelerator.is_main_process:
        about = environment()
        facts = _facts(about, runtime, config, feed, val_cases, total_steps)
        write_about(config, store, about)
        if config.data.sampler != "natural":
            files.write_json(Path(config.run) / "sampler.json", feed.order.shares())
        if found:
            mend_best(config, store, found, learner.plain_model)
        for line in _introduction(facts, runtime, config, feed, train_cases, val_cases):
            print(line)
        print(*notes, sep="\n", end="\n" if notes else "")
    if reason := finished(progress, num_samples, config.optim):
        accelerator.print(f"{config.run}: already finished ({reason}).")
        accelerator.end_training()
        return
    tracker = Tracker(accelerator, Path(config.run), progress.step)
    tracker.introduce(facts, config)
    stops = Stops(config, store, val_cases, val_loader, val_feed, learner, tracker)
    watch = LossWatch(Path(config.run), feed, shard, config.data.batch_size, progress.position, progress.step)

    # loop
    pace, monitor = Pace(accelerator.device), monitor_of(accelerator.device, shard.local_world)
    first = progress.position
    stream = iter(batches)
    bar = progress_bar(
        "train", "slice", config.optim.epochs * num_samples, progress.position, disable=not accelerator.is_main_process
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        profile = StepProfile(accelerator, Path(config.run) / "profile") if config.train.profile else None
        stack.enter_context(profile or contextlib.nullcontext())
        stack.enter_context(unrepeatable(lambda words: tracker.log(progress.step, {"train/unrepeatable": words})))
        learner.model.train()
        pace.resume()
        while not reason:
            number, epoch = progress.step, progress.position // num_samples
            logging = number % config.log.every_steps == 0
            taken, seen = number - learner.skipped, progress.position // global_batch - learner.skipped
            rate = lr_at(taken, seen, total_steps, config.optim, shard.world)
            seed_step(config.seed, number, shard.rank)
            outcome = learner.step(stream, rate, number, pace, want_norm=logging)
            watch.saw(outcome.losses)
            if profile and (sentence := profile.step()) and accelerator.is_main_process:
                bar.write(sentence)
            progress = progress._replace(position=progress.position + global_batch, step=number + 1)
            bar.update(global_batch)
            epoch_done = progress.position // num_samples > epoch
            stopping = request.agreed()
            saving = stopping or config.train.save_every_steps and progress.step % config.train.save_every_steps == 0

            if logging or epoch_done or saving:  # before anything is saved: a checkpoint never holds a spoilt network
                mean_loss = watch.mean(accelerator)  # sync
                learner.read_skipped()
            if logging:
                scalars = {"train/loss": mean_loss, "train/lr": rate, "train/grad_norm": float(outcome.grad_norm)}
                memory = {"gpu/mem_gb": torch.cuda.max_memory_reserved() / 1e9} if torch.cuda.is_available() else {}
                scalars |= {"train/epoch": epoch} | pace.report(global_batch) | memory | monitor.read()
                if at_peak:
                    scalars["perf/mfu"] = scalars["perf/images_per_s"] / shard.world / at_peak
                tracker.log(progress.step, scalars)
                bar.set_postfix(epoch=f"{epoch + 1}/{config.optim.epochs}", loss=f"{mean_loss:.4f}", refresh=False)
            with torch.profiler.record_function(BETWEEN):
                if epoch_done:
                    on_gpu, resident = accelerator.device.type == "cuda", isinstance(feed.pixels, Resident)
                    slow_side = verdict(pace.epoch_wait(), config.data, on_gpu, resident)
                    progress, sentence = stops.end_epoch(progress, epoch)
                    tracker.log(progress.step, {"perf/verdict": slow_side})
                    if accelerator.is_main_process:
                        bar.write(f"{sentence}  {slow_side}")
                elif saving:
                    stops.save(progress, False)
            reason = finished(progress, num_samples, config.optim)
            if stopping and not reason:
                stops.ask_for_more()
                break
            if epoch_done or saving:
                pace.resume()
    tracker.close(done=bool(reason))
    monitor.close()
    if sentence := monitor.energy((progress.position - first) // shard.world):
        accelerator.print(sentence)
    if not reason:
        raise Preempted(f"stopped as asked, saved at step {progress.step}. The same command with resume=auto goes on.")
    accelerator.print(f"finished: {reason}; best epoch {progress.best_epoch + 1}; run: {config.run}")


def placed(model: nn.Module, train: TrainConfig, device: torch.device) -> nn.Module:
    """On the device, in the memory order and with the batch norm that it trains with. Raises InputError."""
    if train.sync_bn:
        if device.type != "cuda":
            raise InputError("train.sync_bn=true needs GPUs. Leave it out on a CPU.")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model.to(device)


def finished(progress: Progress, num_samples: int, config: OptimConfig) -> str:
    """Why there is nothing left to do, or "". Derived, not stored: a run may be resumed with more epochs."""
    if config.patience and progress.stale >= config.patience:
        return f"no improvement in {progress.stale} epochs"
    if progress.position >= config.epochs * num_samples:
        return f"{config.epochs} epochs done"
    return ""


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
        self, config: Config, store: Store, val_cases: list[str], loader, feed: Feed, learner: Learner, tracker: Tracker
    ):
        """loader, feed: of the validation slices."""
        self.config, self.store, self.loader, self.feed = config, store, loader, feed
        self.learner, self.tracker, self.accelerator = learner, tracker, learner.accelerator
        self.rows = np.unique(store.slices.case[feed.rows]).tolist()  # of cases that have samples

    def end_epoch(self, progress: Progress, epoch: int) -> tuple[Progress, str]:
        """Validate, judge, log and save. Returns what the run remembers, and a sentence for the user."""
        validation = self.validate()
        if not math.isfinite(validation.loss):
            raise JobFailed(
                f"the validation loss is {validation.loss} after step {progress.step}. Lower optim.lr, or use "
                f"train.precision=fp32. The checkpoints in {self.config.run}/checkpoint are from before."
            )
        progress, is_best = judge(progress, validation, epoch, self.config.optim)
        scores = {"val/loss": validation.loss}
        scores |= {f"val/dice_grid/{name}": value for name, value in validation.dice.items()}
        best_so_far = {f"best/{name}": value for name, value in scores.items()} if is_best else {}
        self.tracker.log(progress.step, scores | best_so_far)
        if self.config.log.images and self.accelerator.is_main_process:
            title = f"data: {self.store.meta['data']}"
            self.tracker.image(progress.step, "val/panel", partial(panel, self.tiles(), title))
        self.save(progress, is_best)
        words = "  ".join(f"{name} {value:.3f}" for name, value in validation.dice.items())
        best = "  best" if is_best else ""
        return progress, f"epoch {epoch + 1}: val loss {validation.loss:.4f}  dice_grid {words}{best}"

    def validate(self) -> Validation:
        judged, loss_fn = self.learner.judged, self.learner.loss_fn
        return score(judged, loss_fn, self.loader, self.rows, len(self.feed.rows), self.accelerator)

    def save(self, progress: Progress, best: bool) -> None:
        learner = self.learner
        average = learner.average and learner.average.model
        for model in filter(None, (learner.plain_model, average)):
            broadcast_buffers(model, self.accelerator)
        self.refuse_spoilt(progress.step)
        if self.accelerator.is_main_process:
            checkpoint.save(
                Path(self.config.run) / "checkpoint",
                progress.step,
                learner.plain_model,
                learner.plain_optimizer,
                {"run": name_of(self.config), "progress": progress._asdict()} | learner.state(),
                best=best,
                keep=self.config.train.keep,
                average=average,
            )
            if best:
                export_best(self.config, self.store, progress.step, learner.judged)
        self.accelerator.wait_for_everyone()

    def refuse_spoilt(self, step: int) -> None:
        """The last loss was finite, but it is older than the last update. Raises JobFailed, on all ranks alike."""
        spoilt = torch.tensor(int(not self.learner.is_finite()), device=self.accelerator.device)
        if int(self.accelerator.reduce(spoilt, "sum")):  # sync
            raise JobFailed(
                f"the weights are not finite after step {step}, which is not saved. Lower optim.lr, set "
                f"optim.clip_norm=1, or use train.precision=fp32. The checkpoints in {self.config.run}/checkpoint are "
                "from before."
            )

    def ask_for_more(self) -> None:
        """RUN/requeue: no exit code survives a launcher, so a scheduler looks for this file."""
        if self.accelerator.is_main_process:
            files.write_bytes(Path(self.config.run) / REQUEUE, b"start the same command again with resume=auto\n")
        self.accelerator.wait_for_everyone()

    def tiles(self) -> list[Tile]:
        """The same validation slices each time, with expected and predicted labels."""
        tiles = []
        for image, grey, label, caption in self.shown:
            with self.accelerator.autocast():
                seen = image[None].to(self.accelerator.device)
                inside = region_probabilities(self.learner.judged, seen)[0] >= 0.5
            predicted = regions_to_labels(inside.cpu().numpy(), self.config.model.regions)
            tiles.append(Tile(grey, label, predicted, caption))
        return tiles

    @cached_property
    def shown(self) -> list[tuple[torch.Tensor, np.ndarray, np.ndarray, str]]:
        """(C, H, W) image, (H, W) uint8 grey and label, and caption of the slices that the panels show."""
        feed, levels = self.feed, self.store.window.levels
        host, found = feed.batch(worth_seeing(self.store, Samples(feed.rows, feed.kidneys), self.config.log.images)), []
        for i, (case, index, plane) in enumerate(host.identity):
            slab, truth = host.slabs[i][..., 0], host.labels[i][..., 0]
            image, label = augment.apply(slab, truth, host.params, i, self.config.data.size_px, levels, feed.norm)
            grey = denormalized(image[feed.data.context], feed.norm, levels)
            caption = f"{self.store.cases[case].case_id} {PLANE_NAMES[plane]} {index}"
            found.append((torch.from_numpy(image), grey, label, caption))
        return found


def _facts(env: dict, runtime: Runtime, config: Config, feed: Feed, val_cases: list[str], steps: int) -> dict:
    """Name -> value of what the configuration does not say: on what the run is, where, and by which code."""
    return {
        "data": feed.store.meta["data"],
        "commit": f"{env['commit']}{' (dirty)' if env['dirty'] else ''}",
        "torch": env["torch"],
        "device": f"{env['gpus']} x {env['gpu']}" if env["gpu"] else f"CPU ({env['cpu_cores']} cores)",
        "processes": runtime.shard.world,
        "global batch": runtime.shard.world * config.data.batch_size * config.optim.accumulate,
        "precision": runtime.precision.mode,
        "training slices": len(feed.rows),
        "validation cases": len(val_cases),
        "steps": steps,
    }


def _introduction(facts: dict, runtime: Runtime, config: Config, feed: Feed, train_cases, val_cases):
    """The first lines of a run: what runs where, on how much."""
    yield f"commit {facts['commit']}, torch {facts['torch']}, {facts['device']}"
    yield (
        f"{facts['processes']} processes x batch {config.data.batch_size} x accumulate {config.optim.accumulate} = "
        f"{facts['global batch']} a step"
    )
    yield f"precision {runtime.precision.mode}: {runtime.precision.reason}"
    yield f"data backend {config.data.backend}, slices from {feed.pixels.about}"
    yield (
        f"data: {facts['data']}; {len(feed.rows)} training slices of {len(train_cases)} cases, "
        f"{len(val_cases)} validation cases; {config.optim.epochs} epochs = {facts['steps']} steps"
    )
    if config.data.sampler != "natural":
        shares = feed.order.shares()
        named = [f"{of['an_epoch']} {name} (of {of['members']})" for name, of in shares.items()]
        more = f", ... {len(shares)} in all, in sampler.json" if named[3:] else ""
        yield f"each epoch of sampler={config.data.sampler}: {', '.join(named[:3])}{more}"
    if config.data.fold == "all":
        yield "data.fold=all: validation cases are training cases; the val scores say nothing about new patients"


if __name__ == "__main__":
    cli.run(main, Config)
