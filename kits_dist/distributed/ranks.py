"""Work shared among the processes of a launcher (`accelerate launch`, torchrun), its results gathered on rank 0."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

from kits_dist.distributed import launcher
from kits_dist.utils.errors import InputError
from kits_dist.utils.parallel import available_cores

Item = TypeVar("Item")


class Ranks(NamedTuple):
    """This process among all of the launch; a process without a launcher is the only one."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def cores(self) -> int:
        """Of this machine, for each of its processes."""
        return max(1, available_cores() // self.local_world)

    def take_device(self) -> None:
        """This process' own GPU, or its part of the cores, for what torch does from here on."""
        if self.world > 1:
            import torch

            if torch.cuda.is_available():
                torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
            else:
                torch.set_num_threads(self.cores)  # torchrun sets OMP_NUM_THREADS=1

    def share(self, items: list[Item]) -> list[Item]:
        """Every world-th item: neighbours, which may be alike in size, go to different processes."""
        return items[self.rank :: self.world]

    def gather(self, mine: list[Item]) -> list[Item] | None:
        """The items of all processes on rank 0, None on the others. All must call it."""
        if self.world == 1:
            return mine
        import torch.distributed

        everyone = [None] * self.world if self.rank == 0 else None
        torch.distributed.gather_object(mine, everyone)
        return None if everyone is None else [item for part in everyone for item in part]


def launched() -> Ranks:
    """This process as the launcher's environment names it. Raises InputError for an environment that is not whole."""
    number = launcher.whole_number
    world = number("WORLD_SIZE", 1)
    ranks = Ranks(number("RANK", 0), world, number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", world))
    if ranks.rank >= world:
        raise InputError(f"RANK={ranks.rank} and WORLD_SIZE={world} in the environment contradict each other.")
    return ranks


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes of the launch, if there are any (gloo: CPUs alone are needed).

    Raises InputError when the launcher was asked for another number of processes than it started.
    """
    ranks = launched()
    launcher.refuse_other_world_size(launcher.asked(), ranks.world, ranks.world)
    if ranks.world == 1:
        yield ranks
        return
    import torch.distributed

    # A process with large cases may come hours after the others; one that died is noticed by the launcher.
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=1))
    try:
        yield ranks
    finally:
        torch.distributed.destroy_process_group()
