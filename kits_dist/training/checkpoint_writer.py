"""Write checkpoints while training goes on: copy the state to host memory, then hash and write it in a thread.

The same division of work as in torch.distributed.checkpoint.async_save, whose format is another.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from kits_dist.training.checkpoint import Contents


class CheckpointWriter:
    """One thread that writes what `start` copied; a save begins when the one before is on disk.

    Holds one copy of the state in host memory, made at the first save and used again: 293 MB for the default network
    with Adam, up to twice as much with a GPU, because torch rounds each pinned tensor up to a power of two.
    """

    def __init__(self, device: torch.device):
        """device: that the process trains on."""
        self._device = device
        self.step = 0  # of the last save that was begun
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._host: dict[tuple[str, str], Tensor] = {}
        self._writing: Future | None = None

    def start(self, contents: Contents, write: Callable[[Contents], None]) -> None:
        """Copy the tensors, and let the thread call `write` with the copy. Raises what ended the save before."""
        self.join()
        copy = contents._replace(
            tensors={
                file: {name: self._copied((file, name), tensor) for name, tensor in tensors.items()}
                for file, tensors in contents.tensors.items()
            }
        )
        # On a GPU the copies are only queued, before whatever the next step changes: the thread waits for them.
        copied = torch.cuda.Event(blocking=True) if self._device.type == "cuda" else None
        if copied:
            copied.record()
        self.step = contents.step
        self._writing = self._thread.submit(_write_when, copied, copy, write)

    def join(self) -> None:
        """Wait until what was begun is on disk. Raises what ended it, once."""
        writing = self._writing
        self._writing = None
        if writing:
            writing.result()

    @torch.no_grad()
    def _copied(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        if key not in self._host:
            self._host[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return self._host[key].copy_(tensor, non_blocking=True)


def _write_when(copied: torch.cuda.Event | None, contents: Contents, write: Callable[[Contents], None]) -> None:
    if copied:
        copied.synchronize()
    write(contents)
