"""Place of a process among all of a launch: its share of the work, and results gathered on rank 0."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from kits_dist.distributed import launcher
from kits_dist.utils.errors import InputError
from kits_dist.utils.limits import available_cores

Item = TypeVar("Item")

JOIN_TIMEOUT_S = 600
# A process with large cases may be hours behind the others; one that died is noticed by the launcher.
GATHER_TIMEOUT_S = 24 * 3600


class Ranks(NamedTuple):
    """Place of a process among all of the launch. A process without a launcher is the only one."""

    rank: int = 0  # global: two machines would otherwise work on the same items
    world: int = 1
    local_rank: int = 0
    local_world: int = 1  # processes on this machine, which share its cores

    @property
    def cores(self) -> int:
        """Cores of this machine for each of its processes, at least 1."""
        return max(1, available_cores() // self.local_world)

    def take_device(self) -> None:
        """Make this process's own GPU, or its share of the cores, what torch uses from here on."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
        elif self.world > 1 or torch.get_num_threads() > self.cores:
            torch.set_num_threads(self.cores)  # torchrun sets OMP_NUM_THREADS=1, and torch knows of no quota

    def share(self, items: list[Item]) -> list[Item]:
        """Return every world-th item: neighbors, which may be alike in size, go to different processes."""
        return items[self.rank :: self.world]

    def gather(self, mine: list[Item]) -> list[Item] | None:
        """Return the items of all processes on rank 0, None on the others. All processes must call it."""
        if self.world == 1:
            return mine
        import torch.distributed

        parts: list | None = [None] * self.world if self.rank == 0 else None
        torch.distributed.gather_object(mine, parts)
        return None if parts is None else [item for part in parts for item in part]


def launched_ranks() -> Ranks:
    """Return the place that the launcher's environment names. Raises InputError when it contradicts itself."""
    world = launcher.environ_int("WORLD_SIZE", 1)
    ranks = Ranks(
        launcher.environ_int("RANK", 0),
        world,
        launcher.environ_int("LOCAL_RANK", 0),
        launcher.environ_int("LOCAL_WORLD_SIZE", world),
    )
    for (name, number), (total_name, total) in (
        (("RANK", ranks.rank), ("WORLD_SIZE", world)),
        (("LOCAL_RANK", ranks.local_rank), ("LOCAL_WORLD_SIZE", ranks.local_world)),
    ):
        if number >= total:
            raise InputError(f"{name}={number} and {total_name}={total} in the environment contradict each other.")
    return ranks


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes of the launch, if there are any, over gloo: no GPU is needed.

    Raises InputError when the launcher started another number of processes than asked for, JobFailed naming the ranks
    that do not come.
    """
    ranks = launched_ranks()
    launcher.refuse_other_world_size(launcher.launcher_options(), ranks.world, ranks.world)
    if ranks.world == 1:
        yield ranks
        return

    import torch.distributed

    from kits_dist.distributed import rendezvous  # imports torch, which one process alone does not need

    rendezvous.join("gloo", JOIN_TIMEOUT_S, GATHER_TIMEOUT_S, timeout_name="timeout_s")
    try:
        yield ranks
    finally:
        torch.distributed.destroy_process_group()
