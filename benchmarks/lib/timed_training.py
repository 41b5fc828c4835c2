"""Trainings timed in turns: their rate, the time of each step, and the share of it that waits for data."""

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.lib.harness import Candidate, Windows, checked, drain, interleave, settle, until_sigterm
from benchmarks.lib.training import Training
from kits_dist.config import LogConfig
from kits_dist.training.profiling import gpu_idle
from kits_dist.training.step_timer import StepTimer

EVERY_STEPS = LogConfig().every_steps
PROFILED_STEPS = 5


class TimedTraining:
    """A training as a candidate of the harness: takes its steps and keeps their times."""

    def __init__(self, training: Training, name: str, batch_size: int, device: torch.device):
        self._step, self._batch_size, self._device = training.step, batch_size, device
        self._batches: Iterator[Any] = training.batches if name == "fixed" else checked(training.batches, name)
        self._timer, self._count = StepTimer(device), 0
        self.waits: list[float] = []  # share of each window spent waiting for data
        self.step_ms: list[float] = []  # every timed step

    def step(self) -> None:
        """Take the next batch and train on it."""
        self._timer.batch_requested()
        batch = next(self._batches)
        self._timer.batch_ready()
        self._count += 1
        self._step(batch, self._count % EVERY_STEPS == 0)
        self._timer.step_ended()

    def before(self) -> None:
        """Discard the untimed steps."""
        self._timer.cut()
        self._timer.resume()

    def after(self) -> None:
        """Keep the times of the window, and wait until its workers are idle."""
        marks = self._timer.cut()
        self.waits.append(self._timer.report(marks, self._batch_size)["perf/data_wait"])
        self.step_ms += [1e3 * self._timer.between(*pair) for pair in marks.steps]
        settle()  # batches that its workers prefetch would fall into the window of the next training

    def summary(self, timed: Windows) -> dict[str, Any]:
        """Return waits and step times of the timed windows, without the one that chose the number of steps."""
        windows = len(timed.seconds)
        steps = self.step_ms[-windows * timed.steps :]
        p50, p90, p99 = (round(float(ms), 3) for ms in np.percentile(steps, [50, 90, 99]))
        return {
            "data_wait": round(statistics.median(self.waits[-windows:]), 5),
            "step_ms": {"p50": p50, "p90": p90, "p99": p99, "steps": len(steps)},
            "steps_per_window": timed.steps,
        }

    def gpu_idle(self, lead_in: int) -> float | None:
        """Return the share of a few steps, after `lead_in` others, in which the GPU ran no kernel.

        To be called after the windows, since a profiler may slow down what follows it. None where it sees no kernel.
        """
        for _ in range(lead_in):
            self.step()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:  # host operators would slow the launches down
            for _ in range(PROFILED_STEPS):
                self.step()
            drain(self._device)
        idle = gpu_idle(profiler.events() or [])
        return None if idle is None else round(idle, 4)

    @staticmethod
    def describe(summary: dict[str, Any]) -> str:
        """Return the summary for a reader at the terminal."""
        ms = summary["step_ms"]
        return (
            f"step p50 {ms['p50']:.1f} p90 {ms['p90']:.1f} p99 {ms['p99']:.1f} ms, waiting for data "
            f"{100 * summary['data_wait']:.2f} % of the time"
            + ("" if summary.get("gpu_idle") is None else f", GPU without a kernel {100 * summary['gpu_idle']:.1f} %")
        )


def time_trainings(
    trainings: dict[str, "TimedTraining"], device: torch.device, timing: dict[str, Any], lead_in: int
) -> dict[str, Windows]:
    """Time trainings in turns; `timing` is `TimedArgs.timing`.

    lead_in   untimed steps before each window: a pipeline that was idle has a full queue, which is not its rate
    """
    candidates = {name: Candidate(one.step, one.before, one.after) for name, one in trainings.items()}
    return interleave(candidates, device, lead_in=lead_in, **timing)


def profile_trainings(
    trainings: dict[str, TimedTraining],
    timed: dict[str, Windows],
    device: torch.device,
    timing: dict[str, Any],
    lead_in: int,
) -> dict[str, float | None]:
    """Return `gpu_idle` of each training; nothing without a GPU, or as soon as the process was asked to stop."""
    found = {}
    if device.type != "cuda" or any(len(one.seconds) < timing["windows"] for one in timed.values()):
        return found
    with until_sigterm() as stopped:
        for name, one in trainings.items():
            if stopped():
                break
            try:
                found[name] = one.gpu_idle(lead_in)
            except RuntimeError as error:  # the windows, whose lines are not written yet, are worth more
                print(f"  {name} was not profiled: {error}")
    return found
