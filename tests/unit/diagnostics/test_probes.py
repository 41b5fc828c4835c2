"""What is found out of a machine: files as a kernel, a driver or a cache writes them, and commands that fail."""

import os
import socket
import stat
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from kits_dist.diagnostics import look_devices, look_host
from kits_dist.diagnostics.facts import Gpu
from kits_dist.diagnostics.verdict import judge
from tests.unit.diagnostics.test_checks import LAPTOP


def group(root: Path, path: str, **contents: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


@pytest.fixture
def meminfo(tmp_path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 64000000 kB\nMemFree: 1 kB\nMemAvailable: 60000000 kB\n")
    return tmp_path


def test_memory_and_quota_of_a_plain_machine(meminfo):
    (meminfo / "proc/self/cgroup").write_text("0::/user.slice\n")
    group(meminfo, "sys/fs/cgroup/user.slice", memory__max="max", memory__current="5", cpu__max="max 100000")
    facts = look_host.memory_facts(meminfo)
    assert facts == {"memory_gb": 65.536, "available_gb": 61.44, "container_limit": False}  # kB are 1024 bytes
    assert look_host.core_facts(meminfo)["cpu_quota"] is None and not look_host.core_facts(meminfo)["bf16_cores"]
    (meminfo / "proc/cpuinfo").write_text("flags\t\t: fpu avx512bw avx512_bf16 avx512_vnni\n")
    assert look_host.core_facts(meminfo)["bf16_cores"]


def test_a_container_of_version_2_is_limited_by_the_group_around_its_own(meminfo):
    (meminfo / "proc/self/cgroup").write_text("0::/pod/inner\n")
    group(meminfo, "sys/fs/cgroup/pod/inner", memory__max="max", memory__current="1", cpu__max="max 100000")
    stat = "anon 1\ninactive_file 2000000000\nactive_file 1000000000"
    limits = {"memory__max": "8000000000", "memory__current": "6000000000", "memory__stat": stat}
    group(meminfo, "sys/fs/cgroup/pod", **limits, cpu__max="250000 100000")
    # 8 - 6 + 3 of files that can go
    assert look_host.memory_facts(meminfo) == {"memory_gb": 8.0, "available_gb": 5.0, "container_limit": True}
    assert look_host.core_facts(meminfo)["cpu_quota"] == 2.5


def test_a_container_of_version_1_that_sees_only_its_own_group(meminfo):
    (meminfo / "proc/self/cgroup").write_text("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n")
    limits = {"memory__limit_in_bytes": "4000000000", "memory__usage_in_bytes": "1000000000"}
    group(meminfo, "sys/fs/cgroup/memory", **limits, memory__stat="total_inactive_file 500000000")
    group(meminfo, "sys/fs/cgroup/cpu", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    assert look_host.memory_facts(meminfo) == {"memory_gb": 4.0, "available_gb": 3.5, "container_limit": True}
    assert look_host.core_facts(meminfo)["cpu_quota"] == 4.0
    group(meminfo, "sys/fs/cgroup/cpu", cpu__cfs_quota_us="-1")
    group(meminfo, "sys/fs/cgroup/memory", memory__limit_in_bytes="9223372036854771712")
    assert not look_host.memory_facts(meminfo)["container_limit"]
    assert look_host.core_facts(meminfo)["cpu_quota"] is None


def test_a_system_without_proc_is_left_open(tmp_path):
    assert look_host.memory_facts(tmp_path) == {}
    assert look_host.core_facts(tmp_path)["cpu_quota"] is None


def fake_smi(folder: Path, monkeypatch, answer: str, code: int = 0) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{answer}'\nexit {code}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_what_nvidia_smi_says(tmp_path, monkeypatch):
    fake_smi(tmp_path, monkeypatch, "550.54.14, 49140, 8.6, NVIDIA RTX A6000\n550.54.14, [N/A], [N/A], Other, new")
    facts = look_devices.driver_facts()
    assert facts["driver"] == "550.54.14"
    first, second = facts["smi_gpus"]
    assert (first.name, first.capability, round(first.total_gb, 1)) == ("NVIDIA RTX A6000", (8, 6), 51.5)
    assert (second.name, second.capability, second.total_gb) == ("Other, new", (0, 0), 0.0)
    assert "kernels" not in {check.topic for check in judge(replace(LAPTOP, smi_gpus=(second,)))}


def test_what_nvidia_smi_complains_of(tmp_path, monkeypatch):
    fake_smi(tmp_path, monkeypatch, "Failed to initialize NVML: Driver/library version mismatch\nmore", 18)
    complaint = look_devices.driver_facts()["smi_error"]
    assert complaint == "Failed to initialize NVML: Driver/library version mismatch"


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\nGCC version: 12\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@build) Tue Sep 23\n",
    ],
)
def test_the_kernel_names_its_driver(text):
    assert look_devices.kernel_driver(text) == "580.95.05"
    assert look_devices.kernel_driver("") == ""


def test_messages_lose_the_folders_that_name_users():
    assert look_devices.first_line("/home/ann/x/libc10.so: undefined symbol\nmore") == "libc10.so: undefined symbol"
    assert look_devices.first_line("cannot open 'C:\\Users\\ann\\a.dll'") == "cannot open 'a.dll'"
    assert look_devices.first_line("Driver/library mismatch, 1/2") == "Driver/library mismatch, 1/2"
    assert look_devices.first_line("see https://pytorch.org/a/b") == "see https://pytorch.org/a/b"
    assert look_devices.first_line(ValueError()) == "ValueError"
    assert look_devices.first_line("CUDA: x (Triggered internally at y)") == "CUDA: x"
    traceback = 'Traceback:\n  File "x.py", line 1\nImportError: no /opt/a/b.so\n'
    assert look_devices.cause(traceback) == "ImportError: no b.so"


def test_a_dali_that_does_not_run_is_told_from_one_that_does(monkeypatch):
    if not sys.platform.startswith("linux"):
        pytest.skip("DALI exists for Linux only")
    assert look_devices._pipeline_error("cpu") == ""
    monkeypatch.setattr(look_devices, "_PIPELINE", look_devices._PIPELINE.replace("found != 7", "found != 8"))
    assert look_devices._pipeline_error("cpu") == "Error: wrong pixels"


def test_a_dali_that_dies_takes_nobody_with_it(monkeypatch):
    wheel = "nvidia-dali-cuda130"
    monkeypatch.setattr(look_devices, "installed", lambda name: "2.4.0" if name == wheel else None)
    monkeypatch.setattr(look_devices, "_PIPELINE", "import os; os.kill(os.getpid(), 11)")
    facts = look_devices.dali_facts(on_gpu=True)
    assert facts == {"dali": {wheel: "2.4.0"}, "dali_ran": (), "dali_error": "it ended with code -11"}
    monkeypatch.setattr(look_devices, "installed", lambda name: "2.4.0")
    both = look_devices.dali_facts(on_gpu=False)  # two wheels in one folder: nothing to try
    assert len(both["dali"]) == 2 and both["dali_error"] == ""


@pytest.fixture
def two_gpus(monkeypatch):
    """torch.cuda as it answers on a machine with two GPUs of which the second cannot reach the first."""
    import torch

    about = SimpleNamespace(
        name="Fake", major=8, minor=6, total_memory=48 * 10**9, pci_domain_id=0, pci_bus_id=65, pci_device_id=0
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: about)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Fake")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (47 * 10**9, 48 * 10**9))
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda size, device: ones(size))
    return torch


def test_two_gpus_are_looked_at_one_by_one(two_gpus, monkeypatch, tmp_path):
    fake_smi(tmp_path, monkeypatch, "GPU 0: Fake\n  Link 0: 26.562 GB/s")
    facts = look_devices.torch_facts()
    assert facts["nvlink"] and facts["nccl"] and facts["gloo"]
    assert facts["gpus"] == (Gpu("Fake", (8, 6), 48.0, 47.0),) * 2
    assert facts["no_peer"] == ((0, 1),) and not facts["iommu"] and facts["precision"] == ("bf16", "Fake has it")

    def ones(size, device):
        if device == "cuda:1":
            raise RuntimeError("CUDA error: out of memory\nand advice")
        return SimpleNamespace(sum=lambda: SimpleNamespace(item=lambda: 8.0))

    monkeypatch.setattr(two_gpus, "ones", ones)
    facts = look_devices.torch_facts()
    assert facts["broken"] == {1: "CUDA error: out of memory"} and "no_peer" not in facts


@pytest.mark.filterwarnings("error")
def test_the_reason_why_torch_sees_no_gpu_is_kept(monkeypatch):
    import warnings

    import torch

    def too_old() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    assert look_devices.torch_facts()["gpu_error"].endswith("driver on your system is too old")


def test_a_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    facts = look_devices.torch_facts()
    assert facts["torch"] == "" and facts["torch_error"]


def test_an_iommu_that_translates(monkeypatch):
    answers = {"/sys/bus/pci/devices/0000:41:00.0/iommu_group/type": "DMA-FQ"}
    monkeypatch.setattr(look_devices, "text_of", lambda path: answers.get(str(path), ""))
    gpu = SimpleNamespace(pci_domain_id=0, pci_bus_id=65, pci_device_id=0)
    assert look_devices._behind_iommu(gpu)
    answers["/sys/bus/pci/devices/0000:41:00.0/iommu_group/type"] = "identity"
    assert not look_devices._behind_iommu(gpu)


def test_a_port_in_use_is_seen():
    with socket.socket() as one:
        one.bind(("", 0))
        one.listen()
        assert not look_host.can_bind(one.getsockname()[1])
    assert look_host.can_bind(0)
    assert "loopback_error" not in look_host.port_facts()


def test_disk_speed_is_measured_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(look_host, "PROBE_BYTES", 40_000_000)
    disk = look_host.disk_speed(tmp_path)
    assert disk.read_mb_s > 0 and disk.write_mb_s > 0 and list(tmp_path.iterdir()) == []
    small = tmp_path / "small"
    small.write_bytes(bytes(15 * look_host.BLOCK))
    assert look_host.read_speed([small])[0] is None
    small.write_bytes(bytes(16 * look_host.BLOCK))
    assert look_host.read_speed([small])[0] > 0
    monkeypatch.setattr(look_host, "PROBE_BYTES", 10**18)  # a full disk is not written to
    assert look_host.disk_speed(tmp_path)[1:] == (None, False, None)


def test_a_slow_disk_is_read_for_less_than_a_second(tmp_path, monkeypatch):
    clock = count()
    monkeypatch.setattr(look_host, "time", SimpleNamespace(perf_counter=lambda: 0.25 * next(clock)))
    forgotten = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *all_of_it: forgotten.append(all_of_it[3]), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    (tmp_path / "slices").write_bytes(bytes(20 * look_host.BLOCK))
    # starts at 0; the fourth block ends at 1.0 s, beyond 0.8; the clock's last answer is 1.25: 4 * 0.524288 MB / 1.25 s
    speed, cold = look_host.read_speed([tmp_path / "slices"])
    assert speed == pytest.approx(1.6777, rel=1e-4) and cold and forgotten == [4]
    # a question before each piece of 16 MB: at 0.25, 0.5 and 0.75 it goes on, at 1.0 it stops
    clock = count()
    written = look_host.disk_speed(tmp_path).write_mb_s
    assert written == pytest.approx(3 * 16 / 1.25)


@pytest.mark.parametrize(("code", "cuda"), [(0, (13, 2)), (100, None)])
def test_the_library_of_the_driver_names_its_cuda(code, cuda, monkeypatch):
    def answer(pointer) -> int:
        pointer._obj.value = 13020
        return code

    monkeypatch.setattr(look_devices.ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=answer))
    assert look_devices.driver_facts()["driver_cuda"] == cuda


def test_the_default_configuration_of_accelerate(tmp_path, monkeypatch):
    from accelerate.commands.config import config_args

    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "default_config.yaml"))
    assert look_host.launcher_config() == {}
    for content, config in (
        ("distributed_type: FSDP", {"distributed_type": "FSDP"}),
        ("a: [", {}),
        ("- 1", {}),
        ("", {}),
    ):
        (tmp_path / "default_config.yaml").write_text(content)
        assert look_host.launcher_config() == {"default_config": config}


def test_weights_in_the_cache_are_found_where_the_library_puts_them(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not look_host.encoder_cached("resnet34")
    folder = tmp_path / "models--smp-hub--resnet34.imagenet" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    assert look_host.encoder_cached("resnet34")
    # the name is a guess of ours: it must be the library's (read, not imported: that takes 6 s)
    table = Path(find_spec("segmentation_models_pytorch").origin).parent / "encoders" / "resnet.py"
    assert '"repo_id": "smp-hub/resnet34.imagenet"' in table.read_text()
