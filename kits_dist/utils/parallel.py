"""Run one function over many items in worker processes, bounded in number, with a progress bar."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from kits_dist.utils.errors import InputError, JobFailed

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(
    title: str, unit: str, total: int | None = None, initial: int = 0, items: list | None = None, disable: bool = False
) -> tqdm:
    """A bar that moves every second on a terminal, and prints a line every ten seconds into a log file.

    Of the processes of a launcher the first alone shows one.
    """
    pause_s = 1 if sys.stderr.isatty() else 10
    return tqdm(
        items,
        desc=title,
        total=total,
        initial=initial,
        unit=unit,
        mininterval=pause_s,
        maxinterval=pause_s,
        disable=disable or os.environ.get("RANK", "0") != "0",
    )


def run_all(
    function: Callable[[Item], Result], items: Iterable[Item], title: str, workers: int = 0
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, result) as they finish; at most `workers` items are in memory at once (0: one per core).

    An exception in `function` ends the iteration with that exception; return it instead to go on with the others.
    """
    if workers < 0:
        raise InputError(f"workers={workers} must be 0 (one per core) or more.")
    items = list(items)
    workers = min(workers or available_cores(), len(items)) or 1
    with progress_bar(title, "case", len(items)) as bar:
        if workers == 1:
            for item in items:
                yield item, function(item)
                bar.update()
            return
        # spawn: a forked child of a process that has used threads can hang
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            queue, running = iter(items), {}
            while True:
                while len(running) < workers and (item := next(queue, None)) is not None:
                    running[pool.submit(function, item)] = item
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    try:
                        result = future.result()
                    except BrokenProcessPool as error:
                        raise JobFailed(
                            f"{title}: a worker process died, most likely for lack of memory. What was finished is "
                            f"kept; run again with fewer: workers={max(1, workers // 2)}"
                        ) from error
                    yield running.pop(future), result
                    bar.update()
