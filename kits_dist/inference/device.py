"""Where networks run when they predict: the device, its precision, and the time they take on it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kits_dist.config import PrecisionName
from kits_dist.distributed.precision import Precision, choose_precision
from kits_dist.distributed.ranks import launched_ranks
from kits_dist.utils.errors import InputError


def local_device() -> torch.device:
    """Return the GPU that belongs to this process (by the launcher's LOCAL_RANK), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", launched_ranks().local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)  # events and pinned memory follow the current device
    return device


def inference_precision(requested: PrecisionName, trained: PrecisionName, device: torch.device) -> Precision:
    """Choose the precision of the forward pass, and switch TF32 on or off for this process accordingly.

    requested   auto: fp32 on a CPU; on a GPU half precision where the run trained in it, else TF32. The launcher's
                mixed_precision is ignored, so that one process and many predict the same labels.
    trained     train.precision of the run
    Raises InputError for a precision that a CPU does not have.
    """
    if device.type == "cpu":
        if requested in ("fp16", "tf32"):
            raise InputError(f"precision={requested} needs an NVIDIA GPU. Use precision=auto, which is fp32 on a CPU.")
        return Precision("fp32", "no GPU") if requested == "auto" else Precision(requested, "as asked")

    if requested != "auto":
        precision = Precision(requested, "as asked")
    elif trained in ("fp32", "tf32"):
        precision = Precision("tf32", f"trained with train.precision={trained}")
    else:
        precision = choose_precision(trained, "no")

    # cudnn.benchmark stays off: it may choose another algorithm on each rank, and their label maps would differ
    allow_tf32 = precision.mode != "fp32"
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    return precision


class DeviceTimer:
    """Sum the time that a device spends inside `running()`, without making the host wait for a GPU."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is launched within this context."""
        if self._on_gpu:
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    @property
    def seconds(self) -> float:
        """Return the sum so far; waits until the GPU has finished."""
        for start, end in self._events:
            end.synchronize()  # sync
            self._seconds += start.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds
