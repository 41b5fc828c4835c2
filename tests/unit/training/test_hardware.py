"""What is sampled, averaged and left out, with stand-ins for NVML and for the clocks."""

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


class Gpu:
    """Answers as torch.cuda does: percent, then milliwatts. Its second sample fails."""

    def __init__(self):
        self.samples, self.devices = 0, set()

    def utilization(self, device):
        self.devices.add(device)
        self.samples += 1
        if self.samples == 2:
            raise NvmlError
        return 50 if self.samples == 1 else 100

    def power_draw(self, device):
        return 100_000 if self.samples == 1 else 300_000


@pytest.fixture
def gpu(monkeypatch):
    made = Gpu()
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NvmlError))
    monkeypatch.setattr(torch.cuda, "utilization", made.utilization)
    monkeypatch.setattr(torch.cuda, "power_draw", made.power_draw)
    monkeypatch.setattr(hardware, "PERIOD_S", 0.001)
    return made


def test_means_since_the_last_read_and_the_energy(gpu):
    begin = time.perf_counter()
    monitor = build_monitor(GPU, local_world=2)
    while gpu.samples < 4:
        time.sleep(0.001)
    monitor.close()
    elapsed_s = time.perf_counter() - begin
    found, count = monitor.read(), gpu.samples - 1  # the failed sample is left out

    assert isinstance(monitor, GpuMonitor) and gpu.devices == {GPU}
    assert found["gpu/util"] == pytest.approx((0.5 + (count - 1)) / count)
    assert found["gpu/power_w"] == pytest.approx((100 + 300 * (count - 1)) / count)
    assert monitor.read() == {}

    said = monitor.energy(3_000)
    joules = 3_000 / float(said.split()[0])
    assert 0 < joules < 300 * elapsed_s * 1.01 and "training images per joule of rank 0's GPU: 3000 images" in said


def test_a_gpu_that_does_not_answer_is_left_out(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: gpu.utilization(device) and raised(RuntimeError()))
    monitor = GpuMonitor(GPU)
    while gpu.samples < 3:
        time.sleep(0.001)
    monitor.close()
    assert monitor.read() == {} and monitor.energy(100) == ""


def test_without_nvml_nothing_is_sampled(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monitor = GpuMonitor(GPU)
    monitor.close()
    assert gpu.samples == 0 and monitor.read() == {}


def raised(error: Exception):
    raise error


def test_without_a_gpu_it_is_the_cpu_time_of_this_process(monkeypatch):
    """4 cores, 2 processes: in 10 s this one took 15 s of CPU time, 3/4 of its two cores."""
    clocks = iter([(100.0, 7.0), (110.0, 22.0), (110.0, 22.0)])
    monkeypatch.setattr(hardware, "_clocks", lambda: next(clocks))
    monkeypatch.setattr(hardware, "available_cores", lambda: 4)
    monitor = build_monitor(torch.device("cpu"), local_world=2)
    assert isinstance(monitor, CpuMonitor) and monitor.read() == {"perf/cpu_util": 0.75}
    assert monitor.read() == {}  # no time has passed
    assert monitor.energy(100) == ""
    monitor.close()


def test_time_asleep_is_not_cpu_time():
    monitor = CpuMonitor(1.0)
    time.sleep(0.1)
    assert 0 <= monitor.read()["perf/cpu_util"] < 0.5
