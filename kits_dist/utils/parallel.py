"""Run one function on many items in worker processes, with a progress bar."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.limits import affordable_workers

Item = TypeVar("Item")
Result = TypeVar("Result")


def progress_bar(
    title: str, unit: str, total: int | None = None, initial: int = 0, items: list | None = None, disable: bool = False
) -> tqdm:
    """Return a tqdm bar that moves every second on a terminal and prints a line every ten seconds to a log file.

    Under a launcher only rank 0 shows it.
    """
    interval_s = 1 if sys.stderr.isatty() else 10
    return tqdm(
        items,
        desc=title,
        total=total,
        initial=initial,
        unit=unit,
        mininterval=interval_s,
        maxinterval=interval_s,
        disable=disable or os.environ.get("RANK", "0") != "0",
    )


def run_all(
    function: Callable[[Item], Result], items: Iterable[Item], title: str, workers: int = 0
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, function(item)) as they finish, computed by `workers` processes.

    workers   0: one per core, as far as the memory goes; without shared memory (/dev/shm) there is only this process

    An exception in `function` ends the iteration; return the exception instead to continue with the other items.
    Raises JobFailed when a worker process dies, or cannot be started.
    """
    if workers < 0:
        raise InputError(f"workers={workers} must be 0 (one per core) or more.")
    items = list(items)
    workers = min(workers or affordable_workers(), len(items)) or 1
    pool = _pool(workers) if workers > 1 else None

    with progress_bar(title, "case", len(items)) as bar:
        if pool is None:
            for item in items:
                yield item, function(item)
                bar.update()
            return

        futures = _submitted(pool, function, items)
        with pool:
            try:
                for future in as_completed(futures):
                    yield futures.pop(future), future.result()
                    bar.update()
            except BrokenProcessPool as error:
                raise JobFailed(
                    f"{title}: a worker process died, most likely for lack of memory. Finished items are kept; run "
                    f"again with fewer workers: workers={max(1, workers // 2)}"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, function: Callable, items: list) -> dict[Future, Any]:
    try:
        return {pool.submit(function, item): item for item in items}
    except (RuntimeError, OSError) as error:  # the first one starts processes and a thread
        for child in multiprocessing.active_children():
            child.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise JobFailed(
            f"no further process or thread can be started ({error}). Run with workers=1, or allow more: ulimit -u, or "
            "the container's limit of processes."
        ) from error


def _pool(workers: int) -> ProcessPoolExecutor | None:
    """Return a pool, or None where the system has no locks for it: those of `multiprocessing` lie in /dev/shm."""
    context = multiprocessing.get_context("spawn")  # a forked child of a process that has used threads can hang
    try:
        context.Lock()
        return ProcessPoolExecutor(workers, mp_context=context)
    except (OSError, ImportError) as error:
        print(
            f"note     /dev/shm cannot be used ({error}), so one process does all the work, as with workers=1. In a "
            "container: docker run --shm-size=1g ...",
            file=sys.stderr,
        )
        return None
