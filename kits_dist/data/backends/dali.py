"""The data path on DALI: one graph for GPU and CPU (`device_id=None` needs no GPU, so CI runs what the GPU runs).

`SliceDataset` decides (views and matrices, keyed by step), DALI does. The graph is endless and keyed by step, so the
pipeline
never drains at an epoch's end.
"""

import itertools
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from kits_dist.data.batch import Batch
from kits_dist.data.dataset import HostBatch, Plan, SliceDataset
from kits_dist.utils.errors import MissingPackage


class DaliLoader:
    """Iterates `Batch` on `device`. Endless for a training plan; for a validation plan each `iter` is one pass."""

    def __init__(
        self,
        dataset: SliceDataset,
        plan: Plan,
        batch_size: int,
        device: torch.device,
        threads: int,
        prefetch: int,
        dtype: torch.dtype,
    ):
        """Raises MissingPackage where DALI is not installed."""
        self.dataset, self.plan = dataset, plan
        # no_copy: DALI reads our arrays until a batch is done, so the small ones must outlive the queue.
        self._alive: deque[HostBatch] = deque(maxlen=2 * prefetch + 4)
        self._step, self._taken = -1, 0  # the batch that was made last; how many came out
        self._pipeline = _build(dataset, (self._pixels, self._drawn), batch_size, device, threads, prefetch, dtype)
        self._on_gpu = device.type == "cuda"

    def __iter__(self) -> Iterator[Batch]:
        if self.plan.num_batches is not None:
            while self._taken % self.plan.num_batches:  # what is left of a pass that nobody finished
                self._run()
        in_use: deque = deque()  # outputs whose kernels may still be running, with the event that ends their use
        try:
            for _ in itertools.count() if self.plan.num_batches is None else range(self.plan.num_batches):
                outputs = self._run()
                image, label, identity = (torch.from_dlpack(output.as_tensor()) for output in outputs)
                yield Batch(image, label, *identity.unbind(1))
                if self._on_gpu:  # by now the consumer has queued its work; the memory is DALI's again when it is done
                    done = torch.cuda.Event()
                    done.record()
                    in_use.append((outputs, done))
                    if len(in_use) > 2:
                        in_use.popleft()[1].synchronize()  # of two steps ago: the GPU still has a whole step queued
        finally:
            if self._on_gpu:
                torch.cuda.current_stream().synchronize()  # sync: a pass ends or is left, and `outputs` with it

    def _run(self) -> tuple:
        self._taken += 1
        return self._pipeline.run(torch.cuda.current_stream() if self._on_gpu else None)

    def _host_batch(self, info) -> HostBatch:
        """Of one step; asked for twice, as the pixels may lie elsewhere than the rest."""
        step = info.iteration if self.plan.num_batches is None else info.iteration % self.plan.num_batches
        if self._step != info.iteration:
            self._step = info.iteration
            self._alive.append(self.dataset.batch(self.plan.positions(step)))
        return self._alive[-1]

    def _pixels(self, info) -> tuple:
        host = self._host_batch(info)
        return host.slabs, host.labels

    def _drawn(self, info) -> tuple:
        host = self._host_batch(info)
        p = host.params
        steps = (p.blur, p.linear.astype(np.uint8), p.gain, p.bias, p.gamma, p.noise_sd)
        return p.matrix, *steps, host.normals, host.identity


def _build(
    dataset: SliceDataset,
    sources,
    batch_size: int,
    device: torch.device,
    threads: int,
    prefetch: int,
    dtype: torch.dtype,
):
    try:
        from nvidia.dali import fn, math, pipeline_def, types
    except ImportError as error:
        raise MissingPackage(
            "data.backend=dali needs NVIDIA DALI, which is not installed (it exists for Linux only). "
            "Install kits-dist[dali-cuda13], or [dali-cuda12] for a CUDA 12 build of PyTorch; or run with "
            "data.backend=opencv"
        ) from error

    on = "gpu" if device.type == "cuda" else "cpu"
    height, width = dataset.data.size_px
    levels = float(dataset.store.window.levels)
    out_type = {torch.float32: types.FLOAT, torch.float16: types.FLOAT16}[dtype]

    @pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if on == "gpu" else None,
        prefetch_queue_depth=prefetch,
        enable_conditionals=True,
    )
    def graph():
        # no_copy: copying mapped views blocked the training thread for 48 ms a batch of 128, this 2-7 ms
        common = {"batch": True, "batch_info": True, "no_copy": True}
        slab, label = fn.external_source(
            source=sources[0],
            num_outputs=2,
            device="cpu" if dataset.pixels.device.type == "cpu" else "gpu",
            dtype=types.UINT8,
            ndim=[4, 3],
            layout=["FHWC", "HWC"],
            **common,
        )
        matrix, blur, linear, gain, bias, gamma, noise_sd, normals, identity = fn.external_source(
            source=sources[1],
            num_outputs=9,
            dtype=[*[types.FLOAT] * 2, types.UINT8, *[types.FLOAT] * 5, types.INT32],
            ndim=[2, *[0] * 6, 3, 1],
            layout=[*[""] * 7, "CHW", ""],
            **common,
        )
        if on == "gpu":
            slab, label, normals, identity = slab.gpu(), label.gpu(), normals.gpu(), identity.gpu()
        image = fn.warp_affine(
            slab, matrix=matrix, size=(height, width), fill_value=0, dtype=types.FLOAT, interp_type=types.INTERP_LINEAR
        )
        image = fn.reshape(fn.squeeze(image, axes=[3]), layout="CHW")  # frames become channels
        label = fn.warp_affine(label, matrix=matrix, size=(height, width), fill_value=0, interp_type=types.INTERP_NN)
        # DALI conditionals: only the samples that drew a step pay for it
        if blur > 0:
            image = fn.gaussian_blur(image, sigma=blur)
        if linear > 0:
            image = math.clamp(image * gain + bias, 0.0, levels)
        if gamma != 1:
            image = levels * (image / levels) ** gamma
        if noise_sd > 0:
            image = math.clamp(image + normals * noise_sd, 0.0, levels)
        image = fn.cast((image - float(dataset.norm.mean)) * np.float32(1 / dataset.norm.sd).item(), dtype=out_type)
        return image, fn.squeeze(label, axes=[2]), identity

    pipeline = graph()
    pipeline.build()
    return pipeline
