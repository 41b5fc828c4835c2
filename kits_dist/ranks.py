"""Independent items over the processes of a launcher: who I am among them, which items are mine, what all have found.

For work without gradients in common: torchrun and `accelerate launch` only have to start the processes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

from kits_dist import launcher
from kits_dist.errors import InputError

T = TypeVar("T")


class Ranks(NamedTuple):
    rank: int = 0  # global
    world: int = 1
    local_rank: int = 0
    local_world: int = 1  # processes on this machine, which share its cores

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Every `world`-th item: each is some rank's, none is two ranks'."""
        return items[self.rank :: self.world]


def launched() -> Ranks:
    """As the launcher's environment says; alone without one."""
    world = whole_number("WORLD_SIZE", 1)
    ranks = Ranks(
        whole_number("RANK", 0), world, whole_number("LOCAL_RANK", 0), whole_number("LOCAL_WORLD_SIZE", world)
    )
    if not ranks.rank < world:
        raise InputError(f"RANK={ranks.rank} and WORLD_SIZE={world} in the environment contradict each other.")
    return ranks


class Group:
    """The processes that found each other."""

    def __init__(self, ranks: Ranks, group=None):
        self.ranks, self._group = ranks, group

    def gathered(self, value: T) -> list[T]:
        """`value` of every rank, in their order. Waits for the slowest."""
        values: list = [value] * self.ranks.world
        if self._group is not None:
            import torch.distributed as dist

            dist.all_gather_object(values, value, group=self._group)
        return values


@contextmanager
def joined() -> Iterator[Group]:
    """Waits for all processes at the start, half an hour at most. Raises InputError when the launcher started others
    than it was asked for."""
    ranks = launched()
    launcher.refuse_other_world_size(launcher.asked(), ranks.world, ranks.world)
    if ranks.world == 1:
        yield Group(ranks)
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield Group(ranks, dist.new_group(timeout=timedelta(days=7)))  # one rank may have all the large scans
    finally:
        dist.destroy_process_group()


def whole_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise InputError(f"{name}={text} in the environment is no number; the launcher sets it.")
    return int(text)
