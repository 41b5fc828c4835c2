"""Look at cores, memory, disks, ports and caches. What is not there is left out of the facts, never an error."""

import contextlib
import os
import random
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from kits_dist.diagnostics.facts import Disk
from kits_dist.diagnostics.host import PORT

BLOCK = 2 * 512 * 512  # bytes: a slice and its label
PROBE_BYTES = 256_000_000  # read or written at most
PROBE_S = 0.8  # and no longer than this, where the disk is slow


def core_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Cores, and a container's quota of their time: `docker run --cpus=4` leaves the affinity as it was."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if has_affinity else range(os.cpu_count() or 1)
    quotas = []
    for group in _control_groups(root, "cpu"):
        v1 = [text_of(group / "cpu.cfs_quota_us"), text_of(group / "cpu.cfs_period_us")]
        quota = text_of(group / "cpu.max").split() or v1
        if len(quota) == 2 and all(part.isdigit() for part in quota):  # `max` (version 2) and -1 are none
            quotas.append(int(quota[0]) / int(quota[1]))
    flags = text_of(root / "proc/cpuinfo").split()
    bf16 = not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
    return {"core_ids": tuple(cores), "cpu_quota": min(quotas, default=None), "bf16_cores": bf16}


def memory_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Size and what is left: of the machine or, where that has less, of the container."""
    rows = dict(row.split(":", 1) for row in text_of(root / "proc/meminfo").splitlines() if ":" in row)
    if not {"MemTotal", "MemAvailable"} <= rows.keys():
        return {}
    total, available = (int(rows[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limited = False
    for group in _control_groups(root, "memory"):
        limit = text_of(group / "memory.max") or text_of(group / "memory.limit_in_bytes")
        used = text_of(group / "memory.current") or text_of(group / "memory.usage_in_bytes")
        if not limit.isdigit() or not used.isdigit() or int(limit) >= total:  # `max`, or 2^63 in version 1, is none
            continue
        total, limited = int(limit), True
        rows = dict(row.split() for row in text_of(group / "memory.stat").splitlines() if len(row.split()) == 2)
        files = sum(int(rows.get(f"total_{name}", rows.get(name, 0))) for name in ("active_file", "inactive_file"))
        available = min(available, total - int(used) + files)  # pages of files go when others need them
    return {"memory_gb": total / 1e9, "available_gb": max(0, available) / 1e9, "container_limit": limited}


def _control_groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control groups, innermost first: a limit may stand at any of them.

    Version 2 has one tree, version 1 one for each controller. Inside a container a tree often begins at its own group.
    """
    found = []
    for row in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = row.split(":", 2)
        if not controllers or controller in controllers.split(","):
            tree = root / "sys/fs/cgroup" / (controller if controllers else "")
            inner = Path(path.lstrip("/"))
            found += [tree / part for part in (inner, *inner.parents)]
    return [folder for folder in found if folder.is_dir()]


def shm_facts() -> dict[str, Any]:
    return {"shm_gb": shutil.disk_usage("/dev/shm").total / 1e9} if Path("/dev/shm").is_dir() else {}


def port_facts() -> dict[str, Any]:
    try:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            one.listen()
    except OSError as error:
        return {"loopback_error": error.strerror or type(error).__name__}
    return {"port_free": can_bind(PORT)}


def can_bind(port: int) -> bool:
    with socket.socket() as one:
        if os.name == "posix":  # as torch's rendezvous does: a port whose last user has just gone is free
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
        except OSError:
            return False
    return True


def read_speed(paths: list[Path]) -> tuple[float | None, bool]:
    """(MB/s, page cache emptied first) of blocks as large as a slice, at random; None when there is too little.

    Only pages that no process has mapped leave the cache: beside a training on the same store it measures too much.
    """
    cold = hasattr(os, "posix_fadvise")
    chance = random.Random(0)
    paths = chance.sample(paths, min(len(paths), 100))  # files open at once
    places = [(path, at) for path in paths for at in range(0, path.stat().st_size - BLOCK + 1, BLOCK)]
    if len(places) < 16:
        return None, cold
    chance.shuffle(places)
    with contextlib.ExitStack() as stack:
        opened = {path: stack.enter_context(open(path, "rb", buffering=0)) for path in paths}
        if cold:
            for file in opened.values():
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start, total = time.perf_counter(), 0
        for path, at in places[: PROBE_BYTES // BLOCK]:
            opened[path].seek(at)
            total += len(opened[path].read(BLOCK))
            if time.perf_counter() - start > PROBE_S:
                break
        return total / (time.perf_counter() - start) / 1e6, cold


def disk_speed(folder: Path) -> Disk:
    """Room, and the speed of a temporary file; each piece of it is on the disk before the next is written."""
    free = shutil.disk_usage(folder).free
    if free < 4 * PROBE_BYTES:
        return Disk(free / 1e9, None, False)
    piece = os.urandom(16_000_000)  # nothing that a file system could compress
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        path = Path(beside) / "probe"
        start, total = time.perf_counter(), 0
        with open(path, "wb", buffering=0) as file:
            while total < PROBE_BYTES and time.perf_counter() - start < PROBE_S:
                total += file.write(piece)
                os.fsync(file.fileno())
        write_mb_s = total / (time.perf_counter() - start) / 1e6
        return Disk(free / 1e9, *read_speed([path]), write_mb_s)


def launcher_config() -> dict[str, Any]:
    """Accelerate's default configuration of this user, which a launch without --config_file follows."""
    with contextlib.suppress(ImportError):
        from accelerate.commands.config.config_args import default_config_file

        if Path(default_config_file).is_file():
            config: Any = {}
            with contextlib.suppress(yaml.YAMLError):
                config = yaml.safe_load(text_of(Path(default_config_file)))  # JSON is yaml
            return {"default_config": config if isinstance(config, dict) else {}}
    return {}


def encoder_cached(name: str) -> bool:
    """Are its weights in the hub's cache? The repository's name is guessed: the table of them takes 6 s to import."""
    with contextlib.suppress(ImportError):
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / f"models--smp-hub--{name}.imagenet" / "snapshots"
        return any(folder.glob("*/model.safetensors"))
    return False


def text_of(path: Path) -> str:
    """Empty where it is not there or not ours to read."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""
