"""What is found out about a machine: files as a kernel or a cache writes them, libraries as they answer."""

import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kits_dist.diagnostics import probes
from kits_dist.diagnostics.facts import Gpu


def write(root: Path, path: str, content: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content + "\n")


@pytest.fixture
def linux(tmp_path) -> Path:
    write(tmp_path, "proc/meminfo", "MemTotal: 64000000 kB\nMemFree: 1 kB\nMemAvailable: 60000000 kB")
    write(tmp_path, "proc/self/cgroup", "0::/pod/inner")
    return tmp_path


def test_memory_cores_and_quota_of_a_plain_machine(linux):
    write(linux, "sys/fs/cgroup/pod/inner/memory.max", "max")
    write(linux, "sys/fs/cgroup/pod/inner/cpu.max", "max 100000")
    facts = probes.cpu_facts(linux)
    assert facts["memory_gb"] == 61.44  # kB are 1024 bytes
    assert facts["cpu_quota"] is None and not facts["bf16_cores"] and len(facts["core_ids"]) >= 1
    write(linux, "proc/cpuinfo", "flags\t\t: fpu avx512bw avx512_bf16 avx512_vnni")
    assert probes.cpu_facts(linux)["bf16_cores"]


def test_a_container_is_limited_by_the_group_around_its_own(linux):
    write(linux, "sys/fs/cgroup/pod/inner/memory.max", "max")
    write(linux, "sys/fs/cgroup/pod/memory.max", "8000000000")
    write(linux, "sys/fs/cgroup/cpu.max", "250000 100000")
    facts = probes.cpu_facts(linux)
    assert facts["memory_gb"] == 8.0 and facts["cpu_quota"] == 2.5


def test_a_system_without_proc_is_left_open(tmp_path):
    facts = probes.cpu_facts(tmp_path)
    assert "memory_gb" not in facts and facts["cpu_quota"] is None


@pytest.mark.parametrize(("code", "cuda"), [(0, (13, 2)), (100, None)])
def test_the_driver_names_its_gpus_and_its_cuda(code, cuda, monkeypatch, tmp_path):
    def answer(pointer) -> int:
        pointer._obj.value = 13020
        return code

    monkeypatch.setattr(probes.ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=answer))
    write(tmp_path, "proc/driver/nvidia/gpus/0000:41:00.0/information", "Model: A")
    facts = probes.driver_facts(tmp_path)
    assert facts["driver_gpus"] == 1 and facts.get("driver_cuda") == cuda


@pytest.fixture
def two_gpus(monkeypatch):
    """torch.cuda as it answers on a machine with two GPUs of which the second cannot compute."""

    def ones(size, device):
        if device == "cuda:1":
            raise RuntimeError("CUDA error: out of memory\nand advice")
        return plain_ones(size)

    plain_ones = torch.ones
    about = SimpleNamespace(name="Fake", major=8, minor=6, total_memory=48 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: about)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Fake")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (47 * 10**9, 48 * 10**9))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch, "ones", ones)


@pytest.mark.usefixtures("two_gpus")
def test_each_gpu_computes_or_says_why_not():
    facts = probes.torch_facts()
    assert facts["gpus"] == (Gpu("Fake", (8, 6), 47.0), Gpu("Fake", (8, 6), 48.0, "CUDA error: out of memory"))
    assert facts["precision"] == ("bf16", "Fake has it")


@pytest.mark.filterwarnings("error")
def test_the_reason_why_torch_sees_no_gpu_is_kept(monkeypatch):
    def too_old() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    def broken() -> bool:
        raise RuntimeError("CUDA driver initialization failed\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    assert probes.torch_facts()["gpu_error"].endswith("driver on your system is too old")
    monkeypatch.setattr(torch.cuda, "is_available", broken)
    assert probes.torch_facts()["gpu_error"] == "CUDA driver initialization failed"


def test_a_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert list(probes.torch_facts()) == ["torch_error"]


def test_dali_is_tried_unless_two_wheels_share_the_folder(monkeypatch):
    wheels = [SimpleNamespace(name="nvidia-dali-cuda130", version="2.4.0"), SimpleNamespace(name="numpy", version="2")]
    monkeypatch.setattr(probes.metadata, "distributions", lambda: wheels)
    monkeypatch.setattr(probes, "pipeline_error", {"CPU": "", "GPU": "GPU: boom"}.get)
    facts = probes.dali_facts(on_gpu=True)
    assert facts == {"dali": {"nvidia-dali-cuda130": "2.4.0"}, "dali_ran": ("CPU",), "dali_error": "GPU: boom"}
    assert probes.dali_facts(on_gpu=False)["dali_error"] == ""
    wheels.append(SimpleNamespace(name="nvidia-dali-cuda120", version="2.4.0"))
    both = probes.dali_facts(on_gpu=True)
    assert len(both["dali"]) == 2 and both["dali_ran"] == () and both["dali_error"] == ""


@pytest.mark.parametrize(
    ("code", "stderr", "error"),
    [
        (0, "warning", ""),
        (-11, "", "CPU: exit code -11"),
        (1, "Traceback:\nImportError: no b.so\n", "CPU: ImportError: no b.so"),
    ],
)
def test_a_pipeline_that_fails_says_why(code, stderr, error, monkeypatch):
    done = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(probes.subprocess, "run", lambda *args, **kwargs: done)
    assert probes.pipeline_error("CPU") == error


def test_a_port_in_use_is_seen():
    with socket.socket() as one:
        one.bind(("", 0))
        one.listen()
        assert not probes.is_free(one.getsockname()[1])
    assert probes.is_free(0)
