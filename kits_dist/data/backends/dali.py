"""Backend dali: augmentation by NVIDIA DALI, one graph for GPU and CPU, so that a machine without GPU tests it.

`SliceDataset` chooses slices and draws parameters, DALI applies them. The graph is endless and keyed by step, so its
queues do not drain at the end of an epoch.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from kits_dist.data.batch import Batch
from kits_dist.data.dataset import BatchPlan, HostBatch, SliceDataset
from kits_dist.utils.errors import MissingPackage


class DaliLoader:
    """Iterate `Batch` on `device`: endlessly for a training plan; for a validation plan each `iter` is one pass."""

    def __init__(self, dataset: SliceDataset, plan: BatchPlan, device: torch.device, dtype: torch.dtype, threads: int):
        """Build the graph. Raises MissingPackage where DALI is not installed."""
        self.dataset = dataset
        self.plan = plan
        # no_copy: DALI reads our arrays until a batch is done, so the small ones must outlive the queue.
        self._alive: deque[HostBatch] = deque(maxlen=2 * dataset.data.prefetch + 4)
        self._last_step = -1  # of the batch at the end of _alive
        self._taken = 0  # batches taken out of the pipeline
        self._on_gpu = device.type == "cuda"
        self._pipeline = _build_pipeline(dataset, self._slices, self._params, device, dtype, threads)

    def __iter__(self) -> Iterator[Batch]:
        if self.plan.num_batches is not None:
            while self._taken % self.plan.num_batches:  # the rest of a pass that was left early
                self._run()

        in_use: deque = deque()  # outputs whose kernels may still be running, with the event that ends their use
        try:
            for _ in itertools.count() if self.plan.num_batches is None else range(self.plan.num_batches):
                outputs = self._run()
                image, label, identity = (torch.from_dlpack(output.as_tensor()) for output in outputs)
                yield Batch(image, label, *identity.unbind(1))

                if self._on_gpu:
                    # The caller has queued its work on the batch. When that is done, DALI may reuse the memory: wait
                    # for the work of two steps ago, so that the GPU still has a whole step queued.
                    done = torch.cuda.Event()
                    done.record()
                    in_use.append((outputs, done))
                    if len(in_use) > 2:
                        in_use.popleft()[1].synchronize()  # sync: with the step before the last
        finally:
            if self._on_gpu:
                torch.cuda.current_stream().synchronize()  # sync: a pass ends or is left, and `outputs` are released

    def _run(self) -> tuple:
        self._taken += 1
        return self._pipeline.run(torch.cuda.current_stream() if self._on_gpu else None)

    def _host_batch(self, info) -> HostBatch:
        """Return the batch of one iteration; both sources below ask for it."""
        if self._last_step != info.iteration:
            self._last_step = info.iteration
            step = info.iteration if self.plan.num_batches is None else info.iteration % self.plan.num_batches
            self._alive.append(self.dataset.batch(self.plan.positions(step)))
        return self._alive[-1]

    def _slices(self, info) -> tuple:
        host = self._host_batch(info)
        return host.slabs, host.labels

    def _params(self, info) -> tuple:
        host = self._host_batch(info)
        p = host.params
        linear = p.linear.astype(np.uint8)
        return p.matrix, p.blur, linear, p.gain, p.bias, p.gamma, p.noise_sd, host.noise, host.identity


def _build_pipeline(
    dataset: SliceDataset,
    slices: Callable,
    params: Callable,
    device: torch.device,
    dtype: torch.dtype,
    threads: int,
) -> Any:
    """Return the built graph. `slices` and `params` are sources apart because slices may be in GPU memory already."""
    try:
        import nvidia.dali
    except ImportError as error:
        raise MissingPackage(
            "data.backend=dali needs NVIDIA DALI, which is not installed (it exists for Linux only). "
            "Install kits-dist[dali-cuda13], or [dali-cuda12] for a CUDA 12 build of PyTorch; or run with "
            "data.backend=opencv"
        ) from error

    dali: Any = nvidia.dali  # its stubs lack the enumerations, and operators return lists by them
    fn, math, types = dali.fn, dali.math, dali.types
    on_gpu = device.type == "cuda"
    size_px = dataset.data.size_px
    levels = float(dataset.store.window.levels)
    mean = float(dataset.norm.mean)
    per_sd = np.float32(1 / dataset.norm.sd).item()
    out_type = {torch.float32: types.FLOAT, torch.float16: types.FLOAT16}[dtype]

    @dali.pipeline_def(
        batch_size=dataset.data.batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if on_gpu else None,
        prefetch_queue_depth=dataset.data.prefetch,
        enable_conditionals=True,
    )
    def graph():
        # no_copy: copying mapped views blocked the training thread for 48 ms per batch of 128, this takes 2-7 ms
        source = partial(fn.external_source, batch=True, batch_info=True, no_copy=True)
        slab, label = source(
            source=slices,
            num_outputs=2,
            device="cpu" if dataset.slice_source.device.type == "cpu" else "gpu",
            dtype=types.UINT8,
            ndim=[4, 3],
            layout=["FHWC", "HWC"],
        )
        matrix, blur, linear, gain, bias, gamma, noise_sd, noise, identity = source(
            source=params,
            num_outputs=9,
            dtype=[*[types.FLOAT] * 2, types.UINT8, *[types.FLOAT] * 5, types.INT32],
            ndim=[2, *[0] * 6, 3, 1],
            layout=[*[""] * 7, "CHW", ""],
        )
        if on_gpu:
            slab, label, noise, identity = slab.gpu(), label.gpu(), noise.gpu(), identity.gpu()

        image = fn.warp_affine(
            slab, matrix=matrix, size=size_px, fill_value=0, dtype=types.FLOAT, interp_type=types.INTERP_LINEAR
        )
        image = fn.reshape(fn.squeeze(image, axes=[3]), layout="CHW")  # frames become channels
        label = fn.warp_affine(label, matrix=matrix, size=size_px, fill_value=0, interp_type=types.INTERP_NN)

        # DALI conditionals: a step costs time only for the samples that drew it
        if blur > 0:
            image = fn.gaussian_blur(image, sigma=blur)
        if linear > 0:
            image = math.clamp(image * gain + bias, 0.0, levels)
        if gamma != 1:
            image = levels * (image / levels) ** gamma
        if noise_sd > 0:
            image = math.clamp(image + noise * noise_sd, 0.0, levels)
        image = fn.cast((image - mean) * per_sd, dtype=out_type)
        return image, fn.squeeze(label, axes=[2]), identity

    pipeline = graph()
    pipeline.build()
    return pipeline
