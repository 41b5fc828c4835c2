"""What watches a training and tells the user: tracker, step timer, hardware monitor, profiler and progress bar."""

import contextlib
from dataclasses import replace

import torch

from kits_dist.data.backends import real_backend
from kits_dist.data.slice_cache import GpuSlices
from kits_dist.distributed.runtime import report_nondeterminism
from kits_dist.training.hardware import build_monitor
from kits_dist.training.profiling import StepProfile
from kits_dist.training.progress import Progress
from kits_dist.training.setup import Run
from kits_dist.training.step_timer import Marks, StepTimer, bottleneck_hint
from kits_dist.training.tracker import Tracker
from kits_dist.utils.parallel import progress_bar


class Instruments:
    """One object for all of them. A context manager; created by every rank, but only rank 0 prints and logs."""

    def __init__(self, run: Run):
        accelerator = run.accelerator
        self._run = run
        self._is_main = accelerator.is_main_process
        self._step = run.start.step
        self.timer = StepTimer(run.runtime.device)
        self.tracker = Tracker(accelerator, run.folder, run.start.step)
        self.tracker.introduce(run.facts, run.config)
        self._monitor = build_monitor(run.runtime.device, run.ranks.local_world)
        self._profile = StepProfile(accelerator, run.folder / "profile") if run.config.train.profile else None
        self._bar = progress_bar(
            "train",
            "slice",
            run.config.optim.epochs * run.num_samples,
            run.start.position,
        )
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Instruments":
        self._stack.enter_context(self._bar)
        if self._profile:
            self._stack.enter_context(self._profile)
        self._stack.enter_context(
            report_nondeterminism(lambda kernel: self.tracker.log(self._step, {"train/unrepeatable": kernel}))
        )
        self.timer.resume()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def step_done(self, progress: Progress) -> None:
        """Count one optimizer step. Never waits for the device."""
        self._step = progress.step
        if self._profile:
            sentence = self._profile.step()
            if sentence:
                self._print(sentence)
                if self._profile.gpu_idle is not None:
                    self.tracker.log(progress.step, {"perf/gpu_idle": self._profile.gpu_idle})
        self._bar.update(self._run.global_batch)

    def log(self, progress: Progress, mean_loss: float, rate: float, grad_norm: float, marks: Marks) -> None:
        """Log the step before `progress`, which has ended.

        mean_loss   of all ranks since the last look
        rate        learning rate of that step
        grad_norm   before clipping
        marks       of `timer`, up to that step
        """
        run = self._run
        epoch = run.epoch_before(progress)
        scalars = {"train/loss": mean_loss, "train/lr": rate, "train/grad_norm": grad_norm, "train/epoch": epoch}
        scalars |= self.timer.report(marks, run.global_batch)
        if torch.cuda.is_available():
            scalars["gpu/mem_gb"] = torch.cuda.max_memory_reserved() / 1e9
        scalars |= self._monitor.read()
        if run.images_per_s_at_peak:
            scalars["perf/mfu"] = scalars["perf/images_per_s"] / run.ranks.world / run.images_per_s_at_peak

        self.tracker.log(progress.step, scalars)
        position = f"{epoch + 1}/{run.config.optim.epochs}"
        self._bar.set_postfix(epoch=position, loss=f"{mean_loss:.4f}", refresh=False)

    def epoch_done(self, progress: Progress, sentence: str) -> None:
        """Say in words how the epoch went (`sentence`) and which side of training is slow."""
        in_gpu_memory = isinstance(self._run.dataset.slice_source, GpuSlices)
        data = self._run.config.data
        data = replace(data, backend=real_backend(data.backend, self._run.runtime.device))
        gpu_idle = self._profile.gpu_idle if self._profile else None
        hint = bottleneck_hint(self.timer.epoch_wait(), data, self._run.on_gpu, in_gpu_memory, gpu_idle)
        self.tracker.log(progress.step, {"perf/verdict": hint})
        self._print(f"{sentence}  {hint}")

    def finish(self, done: bool) -> None:
        """Close the logs. done: nothing is left to train, which HPARAMS calls a success."""
        self.tracker.close(done)

    def _print(self, sentence: str) -> None:
        if self._is_main:
            self._bar.write(sentence)
