"""What this process may use of its machine: cores and memory within the control groups of a container or a job."""

import os
from pathlib import Path

# Estimate for a worker process: its libraries, and the largest case of KiTS21 (278 million voxels) with copies.
WORKER_BYTES = 2 * 10**9


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may keep busy, at least 1. A quota of 2.5 cores counts as 2."""
    quota = cpu_quota(root)
    allowed = len(core_ids())
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def affordable_workers(processes: int = 1, root: Path = Path("/")) -> int:
    """Return how many worker processes may run at once: one per core as far as the memory goes, at least 1.

    processes   on this machine that start as many
    """
    memory = available_memory(root)
    cores = available_cores(root) // processes
    return max(1, cores if memory is None else min(cores, memory // processes // WORKER_BYTES))


def core_ids() -> tuple[int, ...]:
    """Return the cores that this process may run on."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return tuple(sorted(os.sched_getaffinity(0)) if has_affinity else range(os.cpu_count() or 1))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the cores' worth of time that the control groups allow; None without a limit."""
    shares = [text.split() for text in _group_texts(root, "", "cpu.max")]  # `QUOTA PERIOD` or `max PERIOD`
    quotas = _group_texts(root, "cpu", "cpu.cfs_quota_us")  # -1: no limit
    periods = _group_texts(root, "cpu", "cpu.cfs_period_us")
    shares += [[quota, period] for quota, period in zip(quotas, periods, strict=False)]
    found = [int(share[0]) / int(share[1]) for share in shares if len(share) == 2 and share[0].isdigit()]
    return min((cores for cores in found if cores > 0), default=None)


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that are free, or that the control groups allow where that is less; None where not known."""
    memory = dict(line.split(":", 1) for line in text_of(root / "proc/meminfo").splitlines())
    if "MemAvailable" not in memory:
        return None
    limits = [*_group_texts(root, "", "memory.max"), *_group_texts(root, "memory", "memory.limit_in_bytes")]
    free = int(memory["MemAvailable"].split()[0]) * 1024
    return min([free, *(int(limit) for limit in limits if limit.isdigit())])


def text_of(path: Path) -> str:
    """Return the text of a file; empty when it does not exist or cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _group_texts(root: Path, controller: str, name: str) -> list[str]:
    """Read a file of this process's control group and of every group around it: any of them may set a limit.

    controller   cpu or memory for version 1, empty for version 2
    """
    texts = []
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, group = ([*line.split(":", 2), "", ""])[:3]
        if controller not in controllers.split(","):  # version 2 names none
            continue
        path = Path(group.lstrip("/"))
        mounts = [root / "sys/fs/cgroup" / mount for mount in dict.fromkeys((controllers, controller))]
        mount = next((mount for mount in mounts if mount.is_dir()), mounts[0])
        # in a container the path may be the host's, and the limits are then at the top
        found = [text_of(mount / part / name) for part in dict.fromkeys((path, *path.parents, Path()))]
        texts += [text for text in found if text]
    return texts
