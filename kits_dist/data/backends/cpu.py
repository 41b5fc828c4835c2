"""Backend opencv: augmentation on threads of this process by OpenCV and our Numba kernels, without GPU or DALI.

Both release Python's global interpreter lock while they work, so threads are enough and no array is copied between
processes.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch

from kits_dist.data import augment_reference
from kits_dist.data.augment_params import AugmentParams
from kits_dist.data.backends import cpu_kernels
from kits_dist.data.batch import Batch
from kits_dist.data.dataset import BatchPlan, HostBatch, SliceDataset
from kits_dist.data.prefetcher import Prefetcher


class CpuLoader:
    """Iterate `Batch` on `device`: endlessly for a training plan; for a validation plan each `iter` is one pass."""

    def __init__(self, dataset: SliceDataset, plan: BatchPlan, device: torch.device, dtype: torch.dtype, threads: int):
        """Start nothing yet: each `iter` has its own threads."""
        cv2.setNumThreads(0)  # our threads share out the images; OpenCV's would share out one image
        self.dataset = dataset
        self.plan = plan
        self.device = device
        self.dtype = dtype
        self.threads = threads

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="opencv")
        begun = Prefetcher(partial(self._begin, pool), self.dataset.data.prefetch, self.plan.num_batches, self.device)
        try:
            for batch, parts in begun:
                for part in parts:
                    part.result()
                yield Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))
        finally:
            begun.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, step: int) -> tuple[Batch, list[Future]]:
        """Return a batch that the pool's threads are filling, each a share of its samples, and their futures."""
        host = self.dataset.planned(self.plan, step)
        size, (height, width) = len(host.labels), self.dataset.data.size_px
        pinned = self.device.type == "cuda"
        image = _uninitialized((size, self.dataset.frames, height, width), self.dtype, pinned)
        label = _uninitialized((size, height, width), torch.uint8, pinned)

        shares = [range(first, size, self.threads) for first in range(min(self.threads, size))]
        parts = [pool.submit(self._fill, host, share, image.numpy(), label.numpy()) for share in shares]
        return Batch(image, label, *torch.from_numpy(host.identity).unbind(1)), parts

    def _fill(self, host: HostBatch, samples: range, images: np.ndarray, labels: np.ndarray) -> None:
        """Write the augmented samples to images (B, F, h, w) and labels (B, h, w)."""
        for i in samples:
            # Half precision is rounded once, at the end.
            image = images[i] if images.dtype == np.float32 else np.empty(images.shape[1:], np.float32)
            self._warp(host, i, image, labels[i])
            self._change_levels(host, i, image)
            if images.dtype != np.float32:
                images[i] = image

    def _warp(self, host: HostBatch, i: int, image: np.ndarray, out_label: np.ndarray) -> None:
        """Write the warped sample i to image (F, h, w) and out_label (h, w)."""
        matrix, slab, label = host.params.matrix[i], host.slabs[i][..., 0], host.labels[i][..., 0]
        crop = _crop_of(matrix, label.shape, out_label.shape)
        if crop is None:
            cpu_kernels.warp_nearest(label, matrix, out_label)
            cpu_kernels.warp_linear(slab, matrix, image)
            return
        out_label[:] = _cut(label, crop)
        for source, out in zip(slab, image, strict=True):
            out[:] = _cut(source, crop)

    def _change_levels(self, host: HostBatch, i: int, image: np.ndarray) -> None:
        """Apply blur, contrast, brightness, gamma and noise of sample i, then normalize, in place."""
        params = host.params
        blur = float(params.blur[i])
        gamma = float(params.gamma[i])
        noise_sd = params.noise_sd[i]
        norm = self.dataset.norm
        levels = self.dataset.store.window.levels
        stretched = params.gain[i] != 1 or params.bias[i] != 0
        for number, frame in enumerate(image):
            if blur > 0:
                side = 2 * int(np.ceil(3 * blur)) + 1
                cv2.GaussianBlur(frame, (side, side), blur, dst=frame, borderType=cv2.BORDER_REFLECT_101)
            if stretched:
                frame *= params.gain[i]
                frame += params.bias[i]
                np.clip(frame, 0, levels, out=frame)
            if gamma != 1:
                cv2.pow(frame / levels, gamma, dst=frame)
                frame *= levels
            noise = self._noise(params, i)[number] if noise_sd > 0 else frame  # not read where noise_sd is 0
            cpu_kernels.finish(frame, noise, noise_sd, levels, norm.mean, 1 / norm.sd)

    def _noise(self, params: AugmentParams, i: int) -> np.ndarray:
        """Return the (F, h, w) float32 standard normals of sample i, a view of the bank."""
        size = self.dataset.noise_size
        bank = augment_reference.noise_bank(size)
        return bank[params.noise_offset[i] :][:size].reshape(-1, *self.dataset.data.size_px)


class _Crop(NamedTuple):
    """A window of whole pixels of a slice."""

    rows: slice
    columns: slice
    flip: int | None  # code of cv2.flip: 0 up and down, 1 left and right, -1 both; None: neither


_FLIPS = {(False, False): None, (True, False): 1, (False, True): 0, (True, True): -1}  # left and right, up and down


def _crop_of(matrix: np.ndarray, shape: tuple[int, ...], size_px: tuple[int, ...]) -> _Crop | None:
    """Return the crop that a matrix describes; None where it takes a warp, or reaches beyond the slice.

    A third of samples with the default augmentation draw neither rotation nor scale. Cropping takes less than half the
    time of a warp.
    """
    (a, b, left), (c, d, top) = matrix.tolist()
    height, width = size_px
    if a < 0:
        left -= width
    if d < 0:
        top -= height
    if b or c or abs(a) != 1 or abs(d) != 1 or left % 1 or top % 1:
        return None
    if not (0 <= left <= shape[1] - width and 0 <= top <= shape[0] - height):
        return None
    return _Crop(slice(int(top), int(top) + height), slice(int(left), int(left) + width), _FLIPS[a < 0, d < 0])


def _cut(levels: np.ndarray, crop: _Crop) -> np.ndarray:
    part = levels[crop.rows, crop.columns]
    return part if crop.flip is None else cv2.flip(part, crop.flip)


def _uninitialized(shape: tuple[int, ...], dtype: torch.dtype, pinned: bool) -> torch.Tensor:
    # NumPy asks Linux for huge pages and torch does not: without them a batch of 128 at 352x448 takes 20,000 page
    # faults, three tenths of its CPU time.
    if pinned:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.from_numpy(np.empty(shape, torch.empty(0, dtype=dtype).numpy().dtype))
