"""How fast training goes: step times, time spent waiting for data, and what to try about it."""

import time
from typing import NamedTuple

import numpy as np
import torch

from kits_dist.config import DataConfig

INPUT_BOUND = 0.05  # share of a step spent waiting, from which on the data path is named as the slow side
LAUNCH_BOUND = 0.1  # share without a kernel from which on the host is; a few percent lie between any two kernels


class Marks(NamedTuple):
    """Pairs of moments: of time.perf_counter, or events of a GPU that may lie in the future."""

    steps: list[tuple]  # (end of the step before, end of the step)
    gaps: list[tuple]  # (batch requested, batch ready), one or more per step


class StepTimer:
    """Step times, and the share of them spent waiting for data.

    On a GPU these are events on the compute stream, and reading them waits for the last step that is read. The wait for
    data is the gap on that stream between the end of the previous work and the moment the next batch is ready. On a CPU
    it is the time blocked in `next`.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks = Marks([], [])
        self._seconds: list[float] = []  # step times, read but not reported yet
        self._waits: list[float] = []
        self._epoch = (0.0, 0.0)  # seconds of steps and of waiting since the last `epoch_wait`
        self._ended = self._now()
        self._requested = self._ended

    def batch_requested(self) -> None:
        """Mark the moment before `next`."""
        self._requested = self._now()

    def batch_ready(self) -> None:
        """Mark the moment after `next`."""
        self._marks.gaps.append((self._requested, self._now()))

    def step_ended(self) -> None:
        """Mark the end of an optimizer step."""
        ended = self._now()
        self._marks.steps.append((self._ended, ended))
        self._ended = ended

    def resume(self) -> None:
        """Leave out what happened since the last step, such as validation or saving."""
        self._ended = self._now()

    def cut(self) -> Marks:
        """Return the marks since the last call, to be read later. Never waits for the device."""
        marks, self._marks = self._marks, Marks([], [])
        return marks

    def report(self, marks: Marks, images_per_step: int) -> dict[str, float]:
        """Return the figures of the steps since the last report, up to `marks`; empty when there was none."""
        self._read(marks)
        steps, waited = np.array(self._seconds), sum(self._waits)
        self._seconds, self._waits = [], []
        if not len(steps):
            return {}
        return {
            "perf/images_per_s": images_per_step * len(steps) / steps.sum(),
            "perf/step_ms_p50": float(np.percentile(steps, 50)) * 1e3,
            "perf/step_ms_p99": float(np.percentile(steps, 99)) * 1e3,
            "perf/data_wait": waited / steps.sum(),
        }

    def epoch_wait(self) -> float:
        """Return the share of time spent waiting for data since the last call; 0 when there was no step."""
        self._read(self.cut())
        seconds, waited = self._epoch
        self._epoch = (0.0, 0.0)
        return waited / seconds if seconds else 0.0

    def _read(self, marks: Marks) -> None:
        """Convert marks to seconds."""
        if self._cuda and marks.steps:
            marks.steps[-1][1].synchronize()  # sync: with the last step of these, after which others may be queued
        seconds, waits = ([self.between(*pair) for pair in pairs] for pairs in marks)
        self._seconds += seconds
        self._waits += waits
        self._epoch = (self._epoch[0] + sum(seconds), self._epoch[1] + sum(waits))

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, a, b) -> float:
        """Return the seconds between two marks that have been read."""
        return a.elapsed_time(b) / 1e3 if self._cuda else b - a


def bottleneck_hint(wait: float, data: DataConfig, on_gpu: bool, resident: bool, gpu_idle: float | None = None) -> str:
    """Return in words which side is slow, and which key to try.

    wait       share of time spent waiting for data
    on_gpu     whether training runs on a GPU
    resident   whether the slices are kept in GPU memory
    gpu_idle   share of time in which the GPU ran no kernel (train.profile=true); None: not known
    """
    if wait < INPUT_BOUND:
        if gpu_idle is not None and gpu_idle >= LAUNCH_BOUND:
            tip = "train.compile=true, or a larger data.batch_size"
            return f"launch-bound: GPU idle {gpu_idle:.0%}, data wait {wait:.1%}: try {tip}".replace("%", " %")
        return f"compute-bound: data wait {wait:.1%}".replace("%", " %")
    if not on_gpu:
        tip = "data.backend=opencv" if data.backend == "dali" else "a smaller data.size_px, or more CPU cores"
    elif data.backend == "opencv":
        tip = "data.backend=dali"
    elif resident:
        tip = "more CPU cores per process"
    elif data.residency == "auto":
        tip = "a smaller data.batch_size, so that the slices fit in GPU memory, too"
    else:
        tip = "data.residency=gpu"
    return f"input-bound {wait:.0%}: try {tip}".replace("%", " %")
