"""Read ahead, work, write behind: three stages at once, a bounded number of items in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    """Yields (item, write(work(read(item)))) in order. `work` runs here, `read` and `write` each in a thread.

    At most `ahead` items are read or waiting to be worked on, and as many being written, so memory does not grow with
    the number of items. An exception of any stage ends the iteration with that exception, after the item being written
    is finished; return it instead to go on with the others.
    """
    queue = iter(items)
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        coming = deque((item, reader.submit(read, item)) for item in islice(queue, ahead))
        going: deque = deque()
        while coming:
            item, future = coming.popleft()
            value = future.result()
            coming.extend((following, reader.submit(read, following)) for following in islice(queue, 1))
            worked = work(value)
            del value, future  # or they would stay while the next is worked on
            if len(going) == ahead:
                yield _finished(going)
            going.append((item, writer.submit(write, worked)))
            del worked
        while going:
            yield _finished(going)


def _finished(going: deque) -> tuple:
    item, future = going.popleft()
    return item, future.result()
