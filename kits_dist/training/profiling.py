"""`train.profile=true`: a trace of a few steps, and a sentence on where their time went.

RUN/profile/trace_RANK.json opens in chrome://tracing or Perfetto. On a GPU the shares count kernels (communication in
full, even where it overlaps with computation); on a CPU they count the operators of the training thread and the time
it waits for other processes. The rest is idle: a GPU that waits for the host, Python between operators, a core that
another process uses. Validation and saving are left out.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProfileKwargs
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile

WAIT, WARMUP, ACTIVE = 10, 2, 5  # steps: caches and memory settle, the profiler settles, steps that are recorded
# An operator counts for the first group one of whose words is in its name or in the name of one of its callers.
GROUPS = {
    "communication": ("nccl", "gloo", "c10d", "all_reduce", "allreduce"),
    "data": ("kits_dist/data",),
    "optimizer": ("optimizer.step", "optimizer.zero_grad", "_fused_adam", "clip_grad"),
    "convolution": ("conv",),
    "normalization": ("batch_norm", "batchnorm"),
}
REST = "activations, loss, copies"
IDLE = "idle"
OUTSIDE_STEPS = "kits_dist/outside steps"


def outside_steps() -> torch.profiler.record_function:
    """Mark what is not part of a training step: validation, saving."""
    return torch.profiler.record_function(OUTSIDE_STEPS)


class StepProfile:
    """Records ACTIVE steps, WAIT + WARMUP steps after it was entered."""

    def __init__(self, accelerator: Accelerator, folder: Path):
        """folder: where the trace is written; created if needed."""
        self.table: dict[str, float] = {}  # group -> share of the recorded steps; empty before they are recorded
        self._trace = folder / f"trace_{accelerator.process_index}.json"
        activities = ["cpu", "cuda"] if accelerator.device.type == "cuda" else ["cpu"]
        schedule = {"wait": WAIT, "warmup": WARMUP, "active": ACTIVE, "repeat": 1}
        # accelerate takes names, whatever its annotation says
        settings = ProfileKwargs(
            activities=activities,  # pyright: ignore[reportArgumentType]
            schedule_option=schedule,
            on_trace_ready=self._recorded,
        )
        self._context = accelerator.profile(settings)

    def __enter__(self) -> "StepProfile":
        self._profiler = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def step(self) -> str:
        """Count a step. Returns a sentence for the user after the last recorded one, "" after all others."""
        recorded_before = bool(self.table)
        self._profiler.step()
        return as_sentence(self.table) if self.table and not recorded_before else ""

    def _recorded(self, profiler: profile) -> None:
        self._trace.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._trace.with_suffix(".part")
        profiler.export_chrome_trace(str(unfinished))
        os.replace(unfinished, self._trace)
        self.table = shares(profiler.events() or [])


def shares(events: Iterable[FunctionEvent]) -> dict[str, float]:
    """Return {group: share of the steps' time}, the largest first, idle last."""
    events = list(events)
    steps = [event for event in events if event.name.startswith("ProfilerStep")]
    pauses = _within([_range(event) for event in events if event.name == OUTSIDE_STEPS], steps)
    wall_us = sum(event.cpu_time_total for event in steps) - _length(pauses)

    marks = {id(event) for event in events if event.name == OUTSIDE_STEPS} | {id(event) for event in steps}
    inside = [e for e in events if id(e) not in marks and not any(a <= _range(e)[0] < b for a, b in pauses)]
    spent = dict.fromkeys((*GROUPS, REST), 0.0)
    if any(event.kernels for event in inside):
        for event in inside:
            spent[group_of(event)] += sum(kernel.duration for kernel in event.kernels)
    else:
        here = [event for event in inside if event.thread == steps[0].thread]
        for event in here:
            spent[group_of(event)] += event.self_cpu_time_total
        # gloo works in a thread of its own: it counts where the training thread does nothing else
        gloo = [e for e in inside if e.thread != steps[0].thread and group_of(e) == "communication"]
        busy = [_range(event) for event in here]
        spent["communication"] += _length([*busy, *_within(map(_range, gloo), steps)]) - _length(busy)

    found = {name: us / wall_us for name, us in sorted(spent.items(), key=lambda item: -item[1])}
    return found | {IDLE: max(0.0, 1 - sum(found.values()))}


def _range(event: FunctionEvent) -> tuple[float, float]:
    return event.time_range.start, event.time_range.end


def _within(ranges: Iterable[tuple[float, float]], steps: list[FunctionEvent]) -> list[tuple[float, float]]:
    """Return the parts of the ranges that are inside the steps."""
    cut = [(max(a, c), min(b, d)) for a, b in ranges for c, d in map(_range, steps)]
    return [(a, b) for a, b in cut if a < b]


def _length(ranges: list[tuple[float, float]]) -> float:
    """Return the length of the union of the ranges."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def group_of(event: FunctionEvent) -> str:
    """Return the group that the time of an operator counts for."""
    names = []
    caller = event
    while caller is not None:
        names.append(caller.name.lower())
        caller = caller.cpu_parent
    called = " ".join(names)
    return next((group for group, words in GROUPS.items() if any(word in called for word in words)), REST)


def as_sentence(table: dict[str, float]) -> str:
    """Return the shares of half a percent and more as one line."""
    parts = [f"{name} {share:.0%}".replace("%", " %") for name, share in table.items() if share >= 0.005]
    return f"profile of {ACTIVE} steps: {', '.join(parts)}"
