"""The data path on threads of this process, with OpenCV and our own kernels: no GPU, no DALI. The same meaning as
`augment.apply`.

Both release Python's lock while they work, so threads are enough and nothing is copied between processes.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from kits_dist.data.batch import Batch
from kits_dist.data.dataset import HostBatch, Plan, SliceDataset
from kits_dist.utils.errors import MissingPackage


class OpenCVLoader:
    """Iterates `Batch` on `device`. Endless for a training plan; for a validation plan each `iter` is one pass."""

    def __init__(
        self, dataset: SliceDataset, plan: Plan, device: torch.device, threads: int, prefetch: int, dtype: torch.dtype
    ):
        """Raises MissingPackage where OpenCV or Numba is not installed."""
        try:
            import cv2

            from kits_dist.data.backends import cpu_kernels  # noqa: F401  here, so that no batch waits for its machine code
        except ImportError as error:
            raise MissingPackage(
                f"data.backend=opencv needs OpenCV and Numba, and {error.name} is not installed: "
                "pip install opencv-python-headless numba"
            ) from error
        cv2.setNumThreads(0)  # threads over images instead of inside one
        self.dataset, self.plan, self.device = dataset, plan, device
        self.threads, self.prefetch, self.dtype = threads, prefetch, dtype

    def __iter__(self) -> Iterator[Batch]:
        steps = itertools.count() if self.plan.num_batches is None else iter(range(self.plan.num_batches))
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="opencv")
        waiting: deque[tuple[Batch, list[Future]]] = deque()
        try:
            while True:
                while len(waiting) <= self.prefetch and (step := next(steps, None)) is not None:
                    waiting.append(self._begin(pool, self.dataset.batch(self.plan.positions(step))))
                if not waiting:
                    return
                batch, parts = waiting.popleft()
                for part in parts:
                    part.result()
                yield Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, host: HostBatch) -> tuple[Batch, list[Future]]:
        """A batch whose pixels are being made, one share of its samples per thread."""
        size, (height, width) = len(host.labels), self.dataset.data.size_px
        pinned = self.device.type == "cuda"
        image = _blank((size, self.dataset.frames, height, width), self.dtype, pinned)
        label = _blank((size, height, width), torch.uint8, pinned)
        pixels, labels = image.numpy(), label.numpy()
        shares = [range(first, size, self.threads) for first in range(min(self.threads, size))]
        parts = [pool.submit(self._make, host, share, pixels, labels) for share in shares]
        identity = torch.from_numpy(host.identity)
        return Batch(image, label, *identity.unbind(1)), parts

    def _make(self, host: HostBatch, samples: range, pixels: np.ndarray, labels: np.ndarray) -> None:
        import cv2

        from kits_dist.data.backends import cpu_kernels

        params, norm, levels = host.params, self.dataset.norm, self.dataset.store.window.levels
        stretched, direct = params.linear, pixels.dtype == np.float32
        for i in samples:
            matrix, slab, label = params.matrix[i], host.slabs[i][..., 0], host.labels[i][..., 0]
            made = pixels[i] if direct else np.empty(pixels.shape[1:], np.float32)
            if window := _whole_pixels(matrix, label.shape, made.shape[1:]):
                labels[i] = _cut(label, window)
                for frame, image in zip(slab, made, strict=True):
                    image[:] = _cut(frame, window)
            else:
                cpu_kernels.warp_nearest(label, matrix, labels[i])
                cpu_kernels.warp_linear(slab, matrix, made)
            noisy = params.noise_sd[i] > 0
            for frame, image in enumerate(made):
                if params.blur[i] > 0:
                    side = 2 * int(np.ceil(3 * params.blur[i])) + 1
                    cv2.GaussianBlur(
                        image, (side, side), float(params.blur[i]), dst=image, borderType=cv2.BORDER_REFLECT_101
                    )
                if stretched[i]:
                    image *= params.gain[i]
                    image += params.bias[i]
                    np.clip(image, 0, levels, out=image)
                if params.gamma[i] != 1:
                    cv2.pow(image / levels, float(params.gamma[i]), dst=image)
                    image *= levels
                normals = host.normals[i][frame] if noisy else image  # where nothing is drawn, nothing is read
                cpu_kernels.finish(image, normals, params.noise_sd[i], levels, norm.mean, 1 / norm.sd)
            if not direct:
                pixels[i] = made


class _Window(NamedTuple):
    """Pixels of a slice that are an output as they stand."""

    rows: slice
    columns: slice
    mirrored: bool


def _whole_pixels(matrix: np.ndarray, shape: tuple[int, int], size_px: tuple[int, int]) -> _Window | None:
    """What a matrix cuts out that moves by whole pixels, mirrors or not, and stays inside; None: it takes a warp.

    A third of the poster's samples draw neither rotation nor scale; without a warp they take less than half the time.
    """
    (a, b, left), (c, d, top) = matrix.tolist()
    height, width = size_px
    if a < 0:
        left -= width
    if b or c or abs(a) != 1 or d != 1 or left % 1 or top % 1:
        return None
    if not (0 <= left <= shape[1] - width and 0 <= top <= shape[0] - height):
        return None
    return _Window(slice(int(top), int(top) + height), slice(int(left), int(left) + width), a < 0)


def _cut(levels: np.ndarray, window: _Window) -> np.ndarray:
    import cv2

    part = levels[window.rows, window.columns]
    return cv2.flip(part, 1) if window.mirrored else part


def _blank(shape: tuple[int, ...], dtype: torch.dtype, pinned: bool) -> torch.Tensor:
    """Uninitialised. NumPy asks Linux for huge pages and torch does not: without them a batch of 128 at 352x448 means
    20,000 page faults, three tenths of its CPU time."""
    if pinned:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))
