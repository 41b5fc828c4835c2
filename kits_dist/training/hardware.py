"""What the hardware does while a run trains, read at log steps: this rank's GPU, or without one its CPU cores.

GPU utilisation is the share of time in which any kernel ran: it says that a GPU had something to do, not that it was
busy in all its parts; `perf/data_wait`, `perf/mfu` and the benchmarks say the latter.
A look, once a second, takes 0.05 ms of this process' CPU time, 0.005 % of a training (with PERIOD_S=0.001 and a
stand-in for NVML that answers in 0.1 ms: time.process_time over 3,650 looks, 2 cores of an AMD EPYC).
"""

import threading
import time

import torch

from kits_dist.utils.parallel import available_cores

PERIOD_S = 1.0


def monitor_of(device: torch.device, local_world: int) -> "GpuMonitor | CpuMonitor":
    """local_world: processes on this machine."""
    return GpuMonitor(device) if device.type == "cuda" else CpuMonitor(available_cores() / local_world)


class CpuMonitor:
    """CPU time that this process takes, by the kernel's own books: nothing is sampled."""

    def __init__(self, share: float):
        """share: cores of this process; those it may use, divided among the machine's processes."""
        self._share, self._began = share, _clocks()

    def read(self) -> dict[str, float]:
        """perf/cpu_util since the last call: 1 is all of its cores; more where it takes some of its neighbours'."""
        before, self._began = self._began, _clocks()
        wall_s, cpu_s = (now - then for now, then in zip(self._began, before, strict=True))
        return {"perf/cpu_util": cpu_s / (wall_s * self._share)} if wall_s else {}

    def energy(self, images: int) -> str:
        """Not counted."""
        return ""

    def close(self) -> None:
        """Nothing to end."""


def _clocks() -> tuple[float, float]:
    """Seconds: of the wall, of this process' threads together."""
    return time.perf_counter(), time.process_time()


class GpuMonitor:
    """Samples by a thread from its making until `close`. Does nothing, and returns nothing, where NVML fails."""

    def __init__(self, device: torch.device):
        self._nvml = self._handle = None
        self._samples: list[tuple[float, float]] = []  # utilisation in percent, watts
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._begun_j = self._joules() if self._open(device) else None
        if self._handle is not None:
            self._thread = threading.Thread(target=self._run, name="gpu-monitor", daemon=True)
            self._thread.start()

    def read(self) -> dict[str, float]:
        """Means since the last call: gpu/util in [0, 1], gpu/power_w; empty when there was no sample."""
        with self._lock:
            samples, self._samples = self._samples, []
        if not samples:
            return {}
        util, watts = (sum(column) / len(samples) for column in zip(*samples, strict=True))
        return {"gpu/util": util / 100, "gpu/power_w": watts}

    def energy(self, images: int) -> str:
        """A sentence on what these training images took since the start; "" where the GPU does not count energy."""
        now = self._joules()
        if now is None or self._begun_j is None or now <= self._begun_j:
            return ""
        joules = now - self._begun_j
        return (
            f"{images / joules:.3g} training images per joule of rank 0's GPU: {images} images, {joules / 1e3:.4g} kJ, "
            "validation and saving included"
        )

    def close(self) -> None:
        self._ended.set()
        if self._handle is not None:
            self._thread.join()

    def _open(self, device: torch.device) -> bool:
        """By UUID: CUDA_VISIBLE_DEVICES renumbers what torch sees, NVML counts what is there."""
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        except (ImportError, OSError, AttributeError):
            return False
        except pynvml.NVMLError:
            return False
        self._nvml = pynvml
        return True

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            try:
                util = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
                watts = self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
            except self._nvml.NVMLError:  # a look that fails is a sample less
                continue
            with self._lock:
                self._samples.append((util, watts))

    def _joules(self) -> float | None:
        if self._handle is None:
            return None
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
        except self._nvml.NVMLError:  # before Volta
            return None
