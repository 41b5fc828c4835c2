"""Against a stand-in for NVML: what is read, averaged, and left out."""

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from kits_dist import gpu_monitor
from kits_dist.gpu_monitor import GpuMonitor

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
    monkeypatch.setattr(gpu_monitor, "PERIOD_S", 0.001)
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
    assert monitor.joules() == 1.0


def test_without_a_gpu_or_nvml_there_is_nothing(nvml, monkeypatch):
    for device, broken in ((torch.device("cpu"), False), (GPU, True)):
        if broken:
            monkeypatch.setattr(nvml, "nvmlInit", lambda: (_ for _ in ()).throw(Nvml.NVMLError()))
        monitor = GpuMonitor(device)
        assert monitor.read() == {} and monitor.joules() is None
        monitor.close()
    assert nvml.looks == 0
