"""`train.profile=true`: a trace of a few steps, and where their time went, in words.

RUN/profile/trace_RANK.json opens in chrome://tracing or Perfetto. The table counts kernels on a GPU, and on a CPU the
operators of the training thread; what neither fills is idle (a GPU that waits for the host, a host that waits). A
validation that falls among the steps is counted with them.
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
    wall_us = sum(event.cpu_time_total for event in events if event.name.startswith("ProfilerStep"))
    on_gpu = any(event.kernels for event in events)
    spent = dict.fromkeys((*GROUPS, REST), 0.0)
    for event in events:
        if event.is_async or event.name.startswith("ProfilerStep"):
            continue
        time_us = sum(kernel.duration for kernel in event.kernels) if on_gpu else event.self_cpu_time_total
        spent[group_of(event)] += time_us
    found = {name: us / wall_us for name, us in sorted(spent.items(), key=lambda item: -item[1])}
    return found | {IDLE: max(0.0, 1 - sum(found.values()))}


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
