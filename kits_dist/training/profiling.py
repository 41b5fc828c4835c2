"""`train.profile=true`: a trace of a few steps, and torch's table of the operators that took the most time.

RUN/profile/trace_RANK.json opens in chrome://tracing or Perfetto. Loading, validation and saving are marked in both.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProfileKwargs
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile

WAIT, WARMUP, ACTIVE = 10, 2, 5  # steps: caches and memory settle, the profiler settles, steps that are recorded
ROWS = 12  # of the table
OUTSIDE_STEPS = "kits_dist/outside steps"


def outside_steps() -> torch.profiler.record_function:
    """Mark what is not part of a training step: validation, saving."""
    return torch.profiler.record_function(OUTSIDE_STEPS)


class StepProfile:
    """Records ACTIVE steps, WAIT + WARMUP steps after it was entered."""

    def __init__(self, accelerator: Accelerator, folder: Path):
        """folder: where the trace is written; created if needed."""
        self.gpu_idle: float | None = None  # share of the recorded steps; None before them, and without a GPU
        self._trace = folder / f"trace_{accelerator.process_index}.json"
        self._table = ""  # of the recorded steps, until `step` has returned it
        self._device = "cuda" if accelerator.device.type == "cuda" else "cpu"
        # accelerate takes names, whatever its annotation says
        settings = ProfileKwargs(
            activities=["cpu", "cuda"] if self._device == "cuda" else ["cpu"],  # pyright: ignore[reportArgumentType]
            schedule_option={"wait": WAIT, "warmup": WARMUP, "active": ACTIVE, "repeat": 1},
            on_trace_ready=self._recorded,
        )
        self._context = accelerator.profile(settings)

    def __enter__(self) -> "StepProfile":
        self._profiler = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def step(self) -> str:
        """Count a step. Returns the table for the user after the last recorded one, "" after all others."""
        self._profiler.step()
        table, self._table = self._table, ""
        return table

    def _recorded(self, profiler: profile) -> None:
        self._trace.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._trace.with_suffix(".part")
        profiler.export_chrome_trace(str(unfinished))
        os.replace(unfinished, self._trace)
        operators = profiler.key_averages().table(sort_by=f"self_{self._device}_time_total", row_limit=ROWS)
        self._table = f"profile of {ACTIVE} steps:\n{operators}"
        self.gpu_idle = gpu_idle(profiler.events() or [])
        if self.gpu_idle is not None:
            self._table += f"\nthe GPU ran no kernel for {100 * self.gpu_idle:.1f} % of that time"


def gpu_idle(events: Iterable[FunctionEvent]) -> float | None:
    """Return the share of time in which a GPU ran no kernel, from its first to its last one; None without kernels.

    Copies are not counted as work, so this is the time spent waiting for launches, copies and batches. What is marked
    as outside of the steps is left out.
    """
    kernels, pauses = [], []
    for event in events:
        span = event.time_range.start, event.time_range.end
        on_gpu = event.device_type == DeviceType.CUDA
        if event.name == OUTSIDE_STEPS and not on_gpu:
            pauses.append(span)
        elif on_gpu and not event.is_user_annotation and not event.name.startswith(("Memcpy", "Memset")):
            kernels.append(span)
    if not kernels:
        return None
    first, last = min(start for start, _ in kernels), max(end for _, end in kernels)
    pauses = [(max(start, first), min(end, last)) for start, end in pauses if start < last and end > first]
    paused = _length(pauses)
    wall = last - first - paused
    return 1 - (_length(kernels + pauses) - paused) / wall if wall else None


def _length(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
