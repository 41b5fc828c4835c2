"""Make batches ahead of the training thread, in a thread of their own."""

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Iterate make(0), make(1), ..., each computed in one background thread up to `depth` ahead of what was taken.

    An exception in `make` is raised where its result is taken. The thread ends when this object is closed or forgotten,
    and with the process.
    """

    def __init__(
        self, make: Callable[[int], T], depth: int, num_steps: int | None = None, device: torch.device | None = None
    ):
        """Start nothing yet.

        num_steps   how many results there are; None: endless
        device      a GPU becomes the current one of the thread, so that it allocates nothing on another
        """
        self._make = make
        self._depth = depth
        self._steps = iter(count() if num_steps is None else range(num_steps))
        if device is not None and device.type == "cuda" and device.index is None:
            # Accelerate names no index where there is one process, and torch.cuda.set_device takes none without
            device = torch.device("cuda", torch.cuda.current_device())
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch", initializer=_use, initargs=(device,))
        self._waiting: deque[Future[T]] = deque()
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        missing = self._depth + 1 - len(self._waiting)
        self._waiting.extend(self._pool.submit(self._make, step) for step in islice(self._steps, missing))
        if not self._waiting:
            raise StopIteration
        return self._waiting.popleft().result()

    def close(self) -> None:
        """Drop what was not taken, and wait for the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _use(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)
