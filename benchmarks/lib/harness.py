"""How every benchmark measures: warm up, then time whole windows with an idle device at both ends.

Candidates take turns (A B C A B C ...), so that a machine that slows down affects all of them alike.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from kits_dist.utils.errors import InputError, JobFailed

MIN_WINDOWS = 5  # a median of fewer says little
MIN_STOPPED = 3  # of a run that is stopped early: better than nothing, and its lines say how many they are


def _nothing() -> None:
    pass


class Candidate(NamedTuple):
    """Work that is timed in turns with other work."""

    step: Callable[[], object]  # one unit of work; may return before the device has finished it
    before: Callable[[], object] = _nothing  # called just before the clock of a window starts
    after: Callable[[], object] = _nothing  # called just after it has stopped


class Windows(NamedTuple):
    """The timed windows of a candidate, each of `steps` steps."""

    seconds: list[float]
    steps: int

    def rates(self, items_per_step: float) -> list[float]:
        """Return items per second, one value for each window."""
        return [items_per_step * self.steps / s for s in self.seconds]


def drain(device: torch.device) -> None:
    """Wait until the device has finished its work; called at the two ends of a window and nowhere inside."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # sync


def settle(limit_s: float = 120) -> None:
    """Wait until this process and its children are idle, so that no prefetched batch falls into the next window.

    Raises RuntimeError when something still computes after `limit_s` seconds.
    """
    deadline, used = time.perf_counter() + limit_s, cpu_seconds()
    while True:
        time.sleep(0.05)
        before, used = used, cpu_seconds()
        if used - before < 0.015:  # a third of a core; children's clocks tick every 10 ms
            return
        if time.perf_counter() > deadline:
            raise RuntimeError(f"after {limit_s:g} s this process or one of its workers still computes")


def cpu_seconds() -> float:
    """Return the CPU time of the threads of this process and of its children so far."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def time_window(candidate: Candidate, steps: int, device: torch.device, lead_in: int = 0) -> float:
    """Return the seconds of `steps` steps, after `lead_in` untimed ones that fill queues as in a long run."""
    for _ in range(lead_in):
        candidate.step()
    drain(device)
    candidate.before()

    begin = time.perf_counter()
    for _ in range(steps):
        candidate.step()
    drain(device)
    seconds = time.perf_counter() - begin

    candidate.after()
    return seconds


def interleave(
    candidates: dict[str, Candidate],
    device: torch.device,
    *,
    windows: int,
    window_s: float,
    warmup_steps: int,
    lead_in: int = 0,
    agree: Callable[[int], int] = lambda steps: steps,
) -> dict[str, Windows]:
    """Warm up every candidate, then time one window of each in turn, `windows` times over.

    window_s   approximate duration of a window; all windows of a candidate have the same number of steps. 0: one step
    lead_in    untimed steps before each window
    agree      turns a number of this process into that of all processes that step together

    After SIGTERM no further round of windows begins, and those that were timed are returned.

    Raises InputError for fewer windows than a median needs, JobFailed for fewer than MIN_STOPPED before SIGTERM.
    """
    if windows < MIN_WINDOWS:
        raise InputError(f"windows={windows}: a median and a spread need at least {MIN_WINDOWS}.")

    steps = {}
    for name, candidate in candidates.items():
        for _ in range(warmup_steps):
            candidate.step()
        once = time_window(candidate, 2, device, lead_in) / 2 if window_s else 0.0
        steps[name] = agree(max(1, math.ceil(window_s / max(once, 1e-9))))

    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    rounds = 0
    with until_sigterm() as stopped:
        while rounds < windows and not agree(int(stopped())):
            for name, candidate in candidates.items():
                seconds[name].append(time_window(candidate, steps[name], device, lead_in))
            rounds += 1
    if rounds < min(windows, MIN_STOPPED):
        raise JobFailed(f"stopped after {rounds} of {windows} rounds of windows: too few for a line")
    return {name: Windows(seconds[name], steps[name]) for name in candidates}


@contextlib.contextmanager
def until_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield whether SIGTERM has come, which ends the process as always before and afterwards."""
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def checked(batches: Iterator[Any], name: str) -> Iterator[Any]:
    """Return `batches` from the third one on, after a check of two. They need a field `image`, or the image first.

    Raises JobFailed for a batch that holds a single value, or for the same batch twice: a broken loader is fast.
    """
    first, second = (_pixels(next(batches)).clone() for _ in range(2))
    if first.min() == first.max():
        raise JobFailed(f"{name}: every pixel of a batch is {first.flatten()[0].item():g}. Nothing real was measured.")
    if torch.equal(first, second):
        raise JobFailed(f"{name}: two batches in a row are the same. Nothing real was measured.")
    return batches


def _pixels(batch: Any) -> Tensor:
    return batch.image if hasattr(batch, "image") else batch[0]


def pick_device() -> torch.device:
    """Return the first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
