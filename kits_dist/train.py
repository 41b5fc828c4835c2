"""Train one model on 1..N processes.

accelerate launch --config_file launch/cpu.yaml -m kits_dist.train config=configs/demo.yaml data.store=DIR run=DIR

Works on 1..N processes, with or without GPUs, under `accelerate launch`, `torchrun` or plain `python -m`.
"""

import contextlib
import os
from functools import partial
from pathlib import Path

import torch
from torch import nn

from kits_dist import cli
from kits_dist.config import Config, OptimConfig, TrainConfig
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.loaders import build_train_loader, build_val_loader
from kits_dist.data.slice_cache import GpuSlices
from kits_dist.data.store import Store
from kits_dist.distributed import rendezvous
from kits_dist.distributed.precision import launched_precision
from kits_dist.distributed.preemption import StopRequest
from kits_dist.distributed.runtime import Runtime, seed_step, start, unrepeatable
from kits_dist.models import build_model
from kits_dist.training.epoch_end import EpochEnd
from kits_dist.training.hardware import monitor_of
from kits_dist.training.lr_schedule import lr_at
from kits_dist.training.mfu import images_per_s_at_peak
from kits_dist.training.nan_guard import NonFiniteGuard
from kits_dist.training.profiling import BETWEEN, StepProfile
from kits_dist.training.run_folder import Progress, mend, open_run, same_everywhere, where_to_go_on, write_about
from kits_dist.training.step_timer import StepTimer, bottleneck_hint
from kits_dist.training.tracker import Tracker
from kits_dist.training.train_step import TrainStep
from kits_dist.utils import files
from kits_dist.utils.environment import environment
from kits_dist.utils.errors import InputError, JobFailed, Preempted
from kits_dist.utils.parallel import progress_bar


def main(config: Config) -> None:
    speaks = os.environ.get("RANK", "0") == "0"
    held = files.exclusive(Path(config.run), "run") if speaks else contextlib.nullcontext()
    with held, StopRequest() as request:
        try:
            train(config, request)
        except torch.OutOfMemoryError as error:
            raise JobFailed(out_of_memory(config, error)) from error
        except RuntimeError as error:
            if lost := rendezvous.lost(error):
                raise JobFailed(f"{lost} {where_to_go_on(config)}") from error
            raise


def out_of_memory(config: Config, error: Exception) -> str:
    """What did not fit, and what to try next; the checkpoints are whole, so the run can go on with it."""
    data, mode, advice = config.data, launched_precision(config.train).mode, []
    if parts := next((n for n in range(2, data.batch_size + 1) if data.batch_size % n == 0), 0):
        accumulate = parts * config.optim.accumulate
        advice.append(
            f"data.batch_size={data.batch_size // parts} optim.accumulate={accumulate} (as many samples a step)"
        )
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
    request.listen(runtime.ranks.world, config.train.timeout_s)
    rendezvous.refuse_differences(same_everywhere(config, store, progress, runtime.precision.mode))
    accelerator, ranks = runtime.accelerator, runtime.ranks
    global_batch = config.data.batch_size * ranks.world * config.optim.accumulate

    # model
    frames = 1 + 2 * config.data.context
    with accelerator.main_process_first():  # one process downloads pretrained weights, the others find them
        model = build_model(config.model, frames, pretrained=found is None)
    at_peak, facts, name = None, {}, ""  # of the process that speaks
    if accelerator.is_main_process:
        size_px, mode = config.data.size_px, runtime.precision.mode
        at_peak = images_per_s_at_peak(model, frames, size_px, accelerator.device, mode)
    train_step = TrainStep(
        placed(model, config.train, accelerator.device), config.model.regions, config.optim, accelerator
    )

    # data
    step_bytes = partial(train_step.step_bytes, config.data.batch_size, frames, config.data.size_px)
    place = {"device": runtime.device, "dtype": runtime.image_dtype}
    batches, dataset = build_train_loader(
        store,
        config.data,
        config.augment,
        config.seed,
        ranks,
        **place,
        start=progress.position,
        step_bytes=step_bytes,
    )
    val_loader, val_dataset = build_val_loader(store, config.data, val_cases, ranks, **place)
    num_samples = len(dataset.rows)
    total_steps = -(-config.optim.epochs * num_samples // global_batch)

    # resume
    if found:
        train_step.restore(found, config.optim.weight_decay)
    train_step.wrap(config.train)
    accelerator.wait_for_everyone()  # no rank may write before every rank has read
    if accelerator.is_main_process:
        about = environment()
        facts = _facts(about, runtime, config, dataset, val_cases, total_steps)
        name = write_about(config, store, about)
        if config.data.sampler != "natural":
            files.write_json(Path(config.run) / "sampler.json", dataset.order.shares())
        if found:
            mend(config, store, name, found, train_step.plain_model)
        for line in _introduction(facts, runtime, config, dataset, train_cases, val_cases):
            print(line)
        print(*notes, sep="\n", end="\n" if notes else "")
    if reason := finished(progress, num_samples, config.optim):
        accelerator.print(f"{config.run}: already finished ({reason}).")
        accelerator.end_training()
        return
    tracker = Tracker(accelerator, Path(config.run), progress.step)
    tracker.introduce(facts, config)
    epoch_end = EpochEnd(config, store, name, val_loader, val_dataset, train_step, tracker)
    watch = NonFiniteGuard(Path(config.run), dataset, ranks, config.data.batch_size, progress.position, progress.step)

    # loop
    timer, monitor = StepTimer(accelerator.device), monitor_of(accelerator.device, ranks.local_world)
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
        train_step.model.train()
        timer.resume()
        while not reason:
            number, epoch = progress.step, progress.position // num_samples
            logging = number % config.log.every_steps == 0
            taken, seen = number - train_step.skipped, progress.position // global_batch - train_step.skipped
            rate = lr_at(taken, seen, total_steps, config.optim, ranks.world)
            seed_step(config.seed, number, ranks.rank)
            result = train_step.step(stream, rate, number, timer, want_norm=logging)
            watch.saw(result.losses)
            if profile and (sentence := profile.step()) and accelerator.is_main_process:
                bar.write(sentence)
            progress = progress._replace(position=progress.position + global_batch, step=number + 1)
            bar.update(global_batch)
            epoch_done = progress.position // num_samples > epoch
            stopping = request.agreed()
            saving = stopping or config.train.save_every_steps and progress.step % config.train.save_every_steps == 0

            if logging or epoch_done or saving:  # before anything is saved: a checkpoint never holds a spoilt network
                mean_loss = watch.mean(accelerator)  # sync
                train_step.read_skipped()
            if logging:
                scalars = {"train/loss": mean_loss, "train/lr": rate, "train/grad_norm": float(result.grad_norm)}
                memory = {"gpu/mem_gb": torch.cuda.max_memory_reserved() / 1e9} if torch.cuda.is_available() else {}
                scalars |= {"train/epoch": epoch} | timer.report(global_batch) | memory | monitor.read()
                if at_peak:
                    scalars["perf/mfu"] = scalars["perf/images_per_s"] / ranks.world / at_peak
                tracker.log(progress.step, scalars)
                bar.set_postfix(epoch=f"{epoch + 1}/{config.optim.epochs}", loss=f"{mean_loss:.4f}", refresh=False)
            with torch.profiler.record_function(BETWEEN):
                if epoch_done:
                    on_gpu, resident = accelerator.device.type == "cuda", isinstance(dataset.slice_source, GpuSlices)
                    slow_side = bottleneck_hint(timer.epoch_wait(), config.data, on_gpu, resident)
                    progress, sentence = epoch_end.end_epoch(progress, epoch)
                    tracker.log(progress.step, {"perf/verdict": slow_side})
                    if accelerator.is_main_process:
                        bar.write(f"{sentence}  {slow_side}")
                elif saving:
                    epoch_end.save(progress, False)
            reason = finished(progress, num_samples, config.optim)
            if stopping and not reason:
                epoch_end.ask_for_more()
                break
            if epoch_done or saving:
                timer.resume()
    tracker.close(done=bool(reason))
    monitor.close()
    if sentence := monitor.energy((progress.position - first) // ranks.world):
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


def _facts(
    env: dict, runtime: Runtime, config: Config, dataset: SliceDataset, val_cases: list[str], steps: int
) -> dict:
    """Name -> value of what the configuration does not say: on what the run is, where, and by which code."""
    return {
        "data": dataset.store.meta["data"],
        "commit": f"{env['commit']}{' (dirty)' if env['dirty'] else ''}",
        "torch": env["torch"],
        "device": f"{env['gpus']} x {env['gpu']}" if env["gpu"] else f"CPU ({env['cpu_cores']} cores)",
        "processes": runtime.ranks.world,
        "global batch": runtime.ranks.world * config.data.batch_size * config.optim.accumulate,
        "precision": runtime.precision.mode,
        "training slices": len(dataset.rows),
        "validation cases": len(val_cases),
        "steps": steps,
    }


def _introduction(facts: dict, runtime: Runtime, config: Config, dataset: SliceDataset, train_cases, val_cases):
    """The first lines of a run: what runs where, on how much."""
    yield f"commit {facts['commit']}, torch {facts['torch']}, {facts['device']}"
    yield (
        f"{facts['processes']} processes x batch {config.data.batch_size} x accumulate {config.optim.accumulate} = "
        f"{facts['global batch']} a step"
    )
    yield f"precision {runtime.precision.mode}: {runtime.precision.reason}"
    yield f"data backend {config.data.backend}, slices from {dataset.slice_source.description}"
    yield (
        f"data: {facts['data']}; {len(dataset.rows)} training slices of {len(train_cases)} cases, "
        f"{len(val_cases)} validation cases; {config.optim.epochs} epochs = {facts['steps']} steps"
    )
    if config.data.sampler != "natural":
        shares = dataset.order.shares()
        named = [f"{of['an_epoch']} {name} (of {of['members']})" for name, of in shares.items()]
        more = f", ... {len(shares)} in all, in sampler.json" if named[3:] else ""
        yield f"each epoch of sampler={config.data.sampler}: {', '.join(named[:3])}{more}"
    if config.data.fold == "all":
        yield "data.fold=all: validation cases are training cases; the val scores say nothing about new patients"


if __name__ == "__main__":
    cli.run(main, Config)
