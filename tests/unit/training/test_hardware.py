"""Against a stand-in for NVML and for the clocks: what is read, averaged, and left out."""

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from kits_dist.training import hardware
from kits_dist.training.hardware import CpuMonitor, GpuMonitor, monitor_of

GPU = torch.device("cuda", 0)


class Nvml(SimpleNamespace):
    class NVMLError(Exception):
        pass

    def __init__(self):
        self.looks, self.energy_mj, self.asked = 0, 5_000, []

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle):
        self.looks += 1
        if self.looks == 2:
            raise self.NVMLError
        return SimpleNamespace(gpu=50 if self.looks == 1 else 100)

    def nvmlDeviceGetPowerUsage(self, handle):
        return 100_000 if self.looks == 1 else 300_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.energy_mj += 1_000
        return self.energy_mj


@pytest.fixture
def nvml(monkeypatch):
    made = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc-1"))
    monkeypatch.setattr(hardware, "PERIOD_S", 0.001)
    return made


def test_means_since_the_last_look_and_the_energy(nvml):
    monitor = GpuMonitor(GPU)
    while nvml.looks < 4:
        time.sleep(0.001)
    monitor.close()
    found = monitor.read()
    assert nvml.asked == ["GPU-abc-1"]
    assert 0.5 < found["gpu/util"] < 1 and 100 < found["gpu/power_w"] < 300  # the failed look is left out
    count = nvml.looks - 1
    assert found["gpu/util"] == pytest.approx((0.5 + (count - 1)) / count)
    assert monitor.read() == {}
    nvml.energy_mj += 1_499_000  # with the look itself 1.5 MJ since the start
    assert monitor.energy(3_000).startswith("2 training images per joule of rank 0's GPU: 3000 images, 1.5 kJ, ")


def test_the_energy_of_a_gpu_that_does_not_count_it_is_not_told(nvml, monkeypatch):
    monkeypatch.setattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: raised(Nvml.NVMLError()))
    monitor = GpuMonitor(GPU)
    monitor.close()
    assert monitor.energy(100) == ""


def test_where_nvml_fails_there_is_nothing(nvml, monkeypatch):
    monkeypatch.setattr(nvml, "nvmlInit", lambda: raised(Nvml.NVMLError()))
    monitor = GpuMonitor(GPU)
    assert monitor.read() == {} and monitor.energy(100) == ""
    monitor.close()
    assert nvml.looks == 0


def raised(error: Exception):
    raise error


def test_without_a_gpu_it_is_the_cpu_time_of_this_process(monkeypatch):
    """Clock by hand: 4 cores, 2 processes; in 10 s this one took 15 s of CPU: 3/4 of its two cores."""
    clocks = iter([(100.0, 7.0), (110.0, 22.0), (110.0, 22.0)])
    monkeypatch.setattr(hardware, "_clocks", lambda: next(clocks))
    monkeypatch.setattr(hardware, "available_cores", lambda: 4)
    monitor = monitor_of(torch.device("cpu"), local_world=2)
    assert isinstance(monitor, CpuMonitor) and monitor.read() == {"perf/cpu_util": 0.75}
    assert monitor.read() == {}  # no time has passed
    assert monitor.energy(100) == ""
    monitor.close()


def test_time_asleep_is_not_time_at_work():
    monitor = CpuMonitor(1.0)
    time.sleep(0.2)
    assert 0 <= monitor.read()["perf/cpu_util"] < 0.5
