"""`train.profile=true`: a trace of a few steps, and where their time went, in words.

RUN/profile/trace_RANK.json opens in chrome://tracing or Perfetto. The table counts kernels on a GPU (communication in
full, also where it hides behind computing), and on a CPU the operators of the training thread and the time in which it
waits for other processes. What none of these fills is idle: a GPU that waits for the host, Python between operators, a
core that another process has. Validation and saving are left out.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import ProfileKwargs
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile

WAIT, WARMUP, ACTIVE = 10, 2, 5  # steps: memory and kernels settle, the profiler itself settles, what is recorded
# The first group with one of its words in the name of an operator, or of what it was called by, takes its time.
GROUPS = {
    "communication": ("nccl", "gloo", "c10d", "all_reduce", "allreduce"),
    "data": ("kits_dist/data",),
    "optimiser": ("optimizer.step", "optimizer.zero_grad", "_fused_adam", "clip_grad"),
    "convolution": ("conv",),
    "normalisation": ("batch_norm", "batchnorm"),
}
REST = "activations, loss, copies"
IDLE = "idle"
BETWEEN = "kits_dist/between steps"  # the caller's mark on what is none: validation, saving


class StepProfile:
    """Records steps WAIT + WARMUP .. + ACTIVE after it was entered; `step` is called after each."""

    def __init__(self, accelerator: Accelerator, folder: Path):
        """folder: where the trace goes; it is made."""
        self.table: dict[str, float] = {}  # group -> share of the time of the recorded steps; empty until it is known
        self._trace = folder / f"trace_{accelerator.process_index}.json"
        activities = ["cpu", "cuda"] if accelerator.device.type == "cuda" else ["cpu"]
        schedule = {"wait": WAIT, "warmup": WARMUP, "active": ACTIVE, "repeat": 1}
        settings = ProfileKwargs(activities=activities, schedule_option=schedule, on_trace_ready=self._recorded)
        self._context = accelerator.profile(settings)

    def __enter__(self) -> "StepProfile":
        self._profiler = self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)

    def step(self) -> str:
        """What to tell the user, once: after the last recorded step."""
        known = bool(self.table)
        self._profiler.step()
        return "" if known or not self.table else in_words(self.table)

    def _recorded(self, profiler: profile) -> None:
        self._trace.parent.mkdir(parents=True, exist_ok=True)
        beside = self._trace.with_suffix(".part")
        profiler.export_chrome_trace(str(beside))
        os.replace(beside, self._trace)
        self.table = shares(profiler.events())


def shares(events: Iterable[FunctionEvent]) -> dict[str, float]:
    """Group -> share of the steps' time, the largest first, idle last."""
    events = list(events)
    steps = [event for event in events if event.name.startswith("ProfilerStep")]
    breaks = _within([_range(event) for event in events if event.name == BETWEEN], steps)
    wall_us = sum(event.cpu_time_total for event in steps) - _length(breaks)
    marks = {id(event) for event in steps} | {id(event) for event in events if event.name == BETWEEN}
    inside = [e for e in events if id(e) not in marks and not any(a <= _range(e)[0] < b for a, b in breaks)]
    spent = dict.fromkeys((*GROUPS, REST), 0.0)
    if any(event.kernels for event in inside):
        for event in inside:
            spent[group_of(event)] += sum(kernel.duration for kernel in event.kernels)
    else:
        here = [event for event in inside if event.thread == steps[0].thread]
        for event in here:
            spent[group_of(event)] += event.self_cpu_time_total
        beside = [e for e in inside if e.thread != steps[0].thread and group_of(e) == "communication"]
        busy = [_range(event) for event in here]
        spent["communication"] += _length([*busy, *_within(map(_range, beside), steps)]) - _length(busy)
    found = {name: us / wall_us for name, us in sorted(spent.items(), key=lambda item: -item[1])}
    return found | {IDLE: max(0.0, 1 - sum(found.values()))}


def _range(event: FunctionEvent) -> tuple[float, float]:
    return event.time_range.start, event.time_range.end


def _within(ranges: Iterable[tuple[float, float]], steps: list[FunctionEvent]) -> list[tuple[float, float]]:
    """The parts of the ranges that lie in the steps."""
    cut = [(max(a, c), min(b, d)) for a, b in ranges for c, d in map(_range, steps)]
    return [(a, b) for a, b in cut if a < b]


def _length(ranges: list[tuple[float, float]]) -> float:
    """Of their union."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def group_of(event: FunctionEvent) -> str:
    names, at = [], event
    while at is not None:
        names.append(at.name.lower())
        at = at.cpu_parent
    called = " ".join(names)
    return next((group for group, words in GROUPS.items() if any(word in called for word in words)), REST)


def in_words(table: dict[str, float]) -> str:
    parts = [f"{name} {share:.0%}".replace("%", " %") for name, share in table.items() if share >= 0.005]
    return f"profile of {ACTIVE} steps: {', '.join(parts)}"
