"""What is read and left out, with stand-ins for NVML and for the clocks."""

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from kits_dist.training import hardware
from kits_dist.training.hardware import CpuMonitor, GpuMonitor, build_monitor

GPU = torch.device("cuda", 1)


class NvmlError(Exception):
    pass


@pytest.fixture
def gpu(monkeypatch):
    """Answers as torch.cuda does: percent, and milliwatts."""
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NvmlError))
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: {GPU: 50}[device])
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: {GPU: 300_000}[device])


def test_a_gpu_is_read_in_shares_and_watts(gpu):
    monitor = build_monitor(GPU, local_world=2)
    assert isinstance(monitor, GpuMonitor) and monitor.read() == {"gpu/util": 0.5, "gpu/power_w": 300.0}


@pytest.mark.parametrize("error", [NvmlError(), RuntimeError()])
def test_a_gpu_that_does_not_answer_is_left_out(gpu, monkeypatch, error):
    def silent(device):
        raise error

    monkeypatch.setattr(torch.cuda, "power_draw", silent)
    assert GpuMonitor(GPU).read() == {}


def test_without_nvml_nothing_is_read(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuMonitor(GPU).read() == {}


def test_without_a_gpu_it_is_the_cpu_time_of_this_process(monkeypatch):
    """4 cores, 2 processes: in 10 s this one took 15 s of CPU time, 3/4 of its two cores."""
    clocks = iter([(100.0, 7.0), (110.0, 22.0), (110.0, 22.0)])
    monkeypatch.setattr(hardware, "_clocks", lambda: next(clocks))
    monkeypatch.setattr(hardware, "available_cores", lambda: 4)
    monitor = build_monitor(torch.device("cpu"), local_world=2)
    assert isinstance(monitor, CpuMonitor) and monitor.read() == {"perf/cpu_util": 0.75}
    assert monitor.read() == {}  # no time has passed


def test_time_asleep_is_not_cpu_time():
    monitor = CpuMonitor(1.0)
    time.sleep(0.1)
    assert 0 <= monitor.read()["perf/cpu_util"] < 0.5
