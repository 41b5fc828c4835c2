"""Read ahead, work, write behind: three stages at once, with a bounded number of items in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Worked = TypeVar("Worked")
Done = TypeVar("Done")


def run_pipeline(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    work: Callable[[Read], Worked],
    write: Callable[[Worked], Done],
    ahead: int = 1,
) -> Iterator[tuple[Item, Done]]:
    """Yield (item, write(work(read(item)))) in order; `work` runs here, `read` and `write` in one thread each.

    At most `ahead` items are read or wait to be worked on, and as many are being written, so memory does not grow with
    the number of items. An exception in any stage ends the iteration once the item being written is finished; return
    the exception instead to continue with the other items.
    """
    queue = iter(items)
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        reading = deque((item, reader.submit(read, item)) for item in islice(queue, ahead))
        writing: deque[tuple[Item, Future[Done]]] = deque()
        while reading:
            item, future = reading.popleft()
            value = future.result()
            reading.extend((following, reader.submit(read, following)) for following in islice(queue, 1))
            worked = work(value)
            del value, future  # free them before the next item is worked on

            if len(writing) == ahead:
                yield _finished(writing)
            writing.append((item, writer.submit(write, worked)))
            del worked
        while writing:
            yield _finished(writing)


def _finished(writing: deque[tuple[Item, Future[Done]]]) -> tuple[Item, Done]:
    item, future = writing.popleft()
    return item, future.result()
