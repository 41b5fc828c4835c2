"""How every benchmark here measures: warm up, time whole windows with the device drained at both ends.

Variants are interleaved round by round (A B C A B C ...), so that a machine that slows down meets all of them alike.
What a benchmark writes is in `lines.py`; its names are handed on from here, so that one import is enough.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from benchmarks.lib.lines import A_RATIO, RESULTS, Ceiling, Line, command, line, machine, median, read, record
from kits_dist import phantom, prepare
from kits_dist.config import as_plain
from kits_dist.data.store import Store
from kits_dist.utils.errors import InputError, JobFailed

__all__ = ["A_RATIO", "RESULTS", "Ceiling", "Line", "command", "line", "machine", "median", "read", "record"]

MIN_WINDOWS = 5  # a median of fewer says little


def _nothing() -> None:
    pass


class Variant(NamedTuple):
    """One way of doing the work."""

    step: Callable[[], object]  # one unit of work; may return before the device has finished it
    before: Callable[[], object] = _nothing  # just before a window's clock starts
    after: Callable[[], object] = _nothing  # just after it has stopped


class Windows(NamedTuple):
    """What was timed of one variant: each window is `steps` steps, from a drained device to a drained device."""

    seconds: list[float]
    steps: int

    def rates(self, items_per_step: float) -> list[float]:
        """Items per second, a figure a window."""
        return [items_per_step * self.steps / s for s in self.seconds]


def drain(device: torch.device) -> None:
    """Wait until the device has done all it was given; called at the two ends of a window and nowhere inside."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # sync


def settle(limit_s: float = 120) -> None:
    """Wait until this process and its children rest: what one variant prepares ahead is not made under the clock of the
    next. Raises RuntimeError when something goes on computing."""
    deadline, used = time.perf_counter() + limit_s, cpu_seconds()
    while True:
        time.sleep(0.05)
        before, used = used, cpu_seconds()
        if used - before < 0.015:  # a third of a core; children's clocks tick every 10 ms
            return
        if time.perf_counter() > deadline:
            raise RuntimeError(f"after {limit_s:g} s this process or one of its workers still computes")


def cpu_seconds() -> float:
    """CPU time of this process' threads and of its children so far."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def time_window(variant: Variant, steps: int, device: torch.device, lead_in: int = 0) -> float:
    """Seconds of `steps` steps. `lead_in` untimed ones go first: they bring queues to where a long run has them."""
    for _ in range(lead_in):
        variant.step()
    drain(device)
    variant.before()
    begin = time.perf_counter()
    for _ in range(steps):
        variant.step()
    drain(device)
    seconds = time.perf_counter() - begin
    variant.after()
    return seconds


def interleave(
    variants: dict[str, Variant],
    device: torch.device,
    *,
    windows: int,
    window_s: float,
    warmup_steps: int,
    lead_in: int = 0,
    agree: Callable[[int], int] = lambda steps: steps,
) -> dict[str, Windows]:
    """Warm every variant up, then time one window of each, `windows` times over.

    A window of each variant has the same number of steps each time, chosen so that it lasts about `window_s`; with 0
    it is one step.
    agree   turns this process' number of steps into that of all processes that step together
    Raises InputError for fewer windows than a median needs.
    """
    if windows < MIN_WINDOWS:
        raise InputError(f"windows={windows}: a median and a spread need at least {MIN_WINDOWS}.")
    steps = {}
    for name, variant in variants.items():
        for _ in range(warmup_steps):
            variant.step()
        once = time_window(variant, 2, device, lead_in) / 2 if window_s else 0.0
        steps[name] = agree(max(1, math.ceil(window_s / max(once, 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(windows):
        for name, variant in variants.items():
            seconds[name].append(time_window(variant, steps[name], device, lead_in))
    return {name: Windows(seconds[name], steps[name]) for name in variants}


def rounds(mine: list[float], theirs: list[float]) -> list[float]:
    """Ratios of neighbouring windows: what slows the machine down for a while slows both."""
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def checked(batches: Iterator[Any], name: str) -> Iterator[Any]:
    """`batches` from its third on, after a look at two that must be alive. They need a tensor or a field `image`.

    Raises JobFailed for a batch that holds one value only, or for the same batch twice: a broken loader is fast.
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
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def plain(config: Any) -> dict[str, Any]:
    """A configuration for a line, without its folders."""
    return {key: value for key, value in as_plain(config).items() if key != "store"}


@contextlib.contextmanager
def store_or_phantoms(store: str, cases: int, size: tuple[int, int, int]) -> Iterator[Store]:
    """The store named, or one of phantoms in a folder that vanishes. size: (slices, rows, columns)."""
    if store:
        yield Store(store)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield make_store(Path(folder), cases, size)


def make_store(folder: Path, cases: int, size: tuple[int, int, int], planes: tuple[str, ...] = ("axial",)) -> Store:
    """Phantoms in FOLDER/raw, prepared into FOLDER/store."""
    workers = 1 if cases * math.prod(size) < 2e6 else 0  # starting a process costs more than a small case
    raw, path = folder / "raw", folder / "store"
    phantom.main(phantom.Args(output=str(raw), cases=cases, size=size, workers=workers))
    prepare.main(prepare.Args(source=str(raw), store=str(path), planes=planes, workers=workers))
    return Store(path)
