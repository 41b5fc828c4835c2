"""Cores and memory as control groups of both versions write them."""

import os
from pathlib import Path

import pytest

from kits_dist.utils import limits


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(group, **files) -> root of a system with 16 cores and 64 GB; double underscores in names are slashes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)

    def build(group: str, files: dict[str, str]) -> Path:
        texts = {"proc/meminfo": "MemTotal: 70000000 kB\nMemAvailable: 62500000 kB", "proc/self/cgroup": group}
        for name, text in (texts | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        return tmp_path

    return build


VERSION_1 = "9:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/docker/a"


@pytest.mark.parametrize(
    ("group", "files", "cores", "memory", "workers"),
    [
        ("0::/", {}, 16, 64 * 10**9, 16),
        ("0::/a/b", {"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}, 2, 64 * 10**9, 2),
        ("0::/", {"cpu.max": "50000 100000", "memory.max": "6000000000"}, 1, 6 * 10**9, 1),
        ("0::/a", {"a/memory.max": "6000000000", "memory.max": "max"}, 16, 6 * 10**9, 3),
        ("0::/a", {"a/memory.max": "100000000"}, 16, 10**8, 1),
        # in a container with the host's path, the limits are at the top
        (VERSION_1, {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 4, None, 4),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16, None, 16),
        (VERSION_1, {"memory/docker/a/memory.limit_in_bytes": "8000000000"}, 16, 8 * 10**9, 4),
        (VERSION_1, {"memory/memory.limit_in_bytes": "9223372036854771712"}, 16, None, 16),
        ("", {}, 16, None, 16),
    ],
)
def test_workers_fit_what_the_groups_allow(machine, group, files, cores, memory, workers):
    root = machine(group, files)
    assert limits.available_cores(root) == cores
    assert limits.available_memory(root) == (memory or 64 * 10**9)
    assert limits.affordable_workers(root=root) == workers
    assert limits.affordable_workers(2, root) == max(1, workers // 2)


def test_a_system_without_proc_is_not_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 1}, raising=False)
    assert limits.core_ids() == (1, 3) and limits.affordable_workers(root=tmp_path) == 2
