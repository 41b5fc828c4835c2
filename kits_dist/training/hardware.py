"""What the hardware does while a run trains, read at log steps: this rank's GPU, or its CPU cores where it has no GPU.

GPU utilization is the share of time in which any kernel ran. It says that the GPU had something to do, not that all of
it was busy: see `perf/data_wait`, `perf/mfu` and the benchmarks for that.
"""

import threading
import time

import torch

from kits_dist.utils.parallel import available_cores

PERIOD_S = 1.0  # between two samples of the GPU, each of which takes 0.05 ms of this process's CPU time


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

    def energy(self, images: int) -> str:
        """Return "": CPUs do not count the energy of one process."""
        return ""

    def close(self) -> None:
        """Do nothing: there is no thread."""


def _clocks() -> tuple[float, float]:
    """Seconds of wall time, and of CPU time of all threads of this process."""
    return time.perf_counter(), time.process_time()


class GpuMonitor:
    """Samples utilization and power in a thread until `close`. Measures nothing where NVML does not answer."""

    def __init__(self, device: torch.device):
        self._device = device
        self._samples: list[tuple[float, float]] = []  # percent, watts
        self._joules = 0.0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="gpu-monitor", daemon=True)
        self._thread.start()

    def read(self) -> dict[str, float]:
        """Return the means since the last call: gpu/util in [0, 1] and gpu/power_w; empty without a sample."""
        with self._lock:
            samples, self._samples = self._samples, []
        if not samples:
            return {}
        util, watts = (sum(column) / len(samples) for column in zip(*samples, strict=True))
        return {"gpu/util": util / 100, "gpu/power_w": watts}

    def energy(self, images: int) -> str:
        """Return a sentence on the energy of `images` training images since the start; "" where it is not known."""
        if not self._joules:
            return ""
        return (
            f"{images / self._joules:.3g} training images per joule of rank 0's GPU: {images} images, "
            f"{self._joules / 1e3:.4g} kJ, validation and saving included"
        )

    def close(self) -> None:
        """Stop sampling."""
        self._closed.set()
        self._thread.join()

    def _sample(self) -> None:
        try:
            from pynvml import NVMLError  # which torch.cuda reads through, and does not wrap
        except ImportError:
            return
        last = time.perf_counter()
        while not self._closed.wait(PERIOD_S):
            try:
                util = torch.cuda.utilization(self._device)
                watts = torch.cuda.power_draw(self._device) / 1000
            except (NVMLError, RuntimeError):  # one sample less
                continue
            now = time.perf_counter()
            with self._lock:
                self._samples.append((util, watts))
            self._joules += watts * (now - last)
            last = now
