"""What the hardware does, read at log steps: this rank's GPU, or its CPU cores where it has no GPU."""

import time

import torch

from kits_dist.utils.limits import available_cores


def build_monitor(device: torch.device, local_world: int) -> "GpuMonitor | CpuMonitor":
    """Return the monitor of `device`. local_world: processes on this machine, which share its cores."""
    return GpuMonitor(device) if device.type == "cuda" else CpuMonitor(available_cores() / local_world)


class CpuMonitor:
    """CPU time of this process by the kernel's own accounting: nothing is sampled."""

    def __init__(self, cores: float):
        """cores: how many this process may use."""
        self._cores = cores
        self._last = _clocks()

    def read(self) -> dict[str, float]:
        """Return perf/cpu_util since the last call: 1 is all of its cores, more where it takes its neighbors'."""
        last, self._last = self._last, _clocks()
        wall_s = self._last[0] - last[0]
        cpu_s = self._last[1] - last[1]
        return {"perf/cpu_util": cpu_s / (wall_s * self._cores)} if wall_s else {}


def _clocks() -> tuple[float, float]:
    """Seconds of wall time, and of CPU time of all threads of this process."""
    return time.perf_counter(), time.process_time()


class GpuMonitor:
    """Utilization and power of a GPU by NVML, which averages over up to its last second.

    Utilization is the share of time in which any kernel ran. It says that the GPU had something to do, not that all of
    it was busy: see `perf/data_wait`, `perf/mfu` and the benchmarks for that.
    """

    def __init__(self, device: torch.device):
        self._device = device

    def read(self) -> dict[str, float]:
        """Return gpu/util in [0, 1] and gpu/power_w; empty where NVML does not answer."""
        try:
            from pynvml import NVMLError  # which torch.cuda reads through, and does not wrap
        except (ImportError, OSError):
            return {}
        try:
            return {
                "gpu/util": torch.cuda.utilization(self._device) / 100,
                "gpu/power_w": torch.cuda.power_draw(self._device) / 1000,
            }
        except (NVMLError, RuntimeError):
            return {}
