"""Utilisation and power of this rank's GPU while it trains, sampled by a thread once a second (NVML: 0.1 ms a look).

Utilisation is the share of time in which any kernel ran: it says that a GPU had something to do, not that it was busy
in all its parts; `perf/data_wait` and the benchmarks say the latter.
"""

import threading

import torch

PERIOD_S = 1.0


class GpuMonitor:
    """Samples from its making until `close`. Does nothing, and returns nothing, without a GPU or where NVML fails."""

    def __init__(self, device: torch.device):
        self._nvml = self._handle = None
        self._samples: list[tuple[float, float]] = []  # utilisation in percent, watts
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._begun_j = self._joules() if device.type == "cuda" and self._open(device) else None
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

    def joules(self) -> float | None:
        """Energy taken since the start; None where the GPU does not count it."""
        now = self._joules()
        return None if now is None or self._begun_j is None else now - self._begun_j

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
