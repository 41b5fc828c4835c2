"""Bring results from the device to the host without waiting for the device."""

import torch
from torch import Tensor


class HostCopy:
    """Tensors on their way to host memory."""

    def __init__(self, *tensors: Tensor):
        """Queue the copies behind the work that computes the tensors, without waiting for it."""
        # non_blocking: into page-locked memory, from which nothing is read before `wait`
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._done = None
        if any(tensor.device.type == "cuda" for tensor in tensors):
            self._done = torch.cuda.Event()
            self._done.record()

    def wait(self) -> list[Tensor]:
        """Return the tensors on the host. Waits for the work that was queued before them, and for nothing after it."""
        if self._done:
            self._done.synchronize()  # sync: with an earlier step
        return self._tensors
