"""What DALI does to a batch: one graph for GPU and CPU, so that a machine without a GPU tests it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from kits_dist.data.dataset import SliceDataset
from kits_dist.utils.packages import optional_package

LAYOUTS = "FHWC", "HWC"  # of slabs and labels
NOISE_BANK = "noise_bank"  # input of the graph where dataset.has_noise: once, a 1-D float32 array for each sample


def build_graph(
    dataset: SliceDataset,
    slices: Callable,
    params: Callable,
    device: torch.device,
    dtype: torch.dtype,
    threads: int,
) -> Any:
    """Return the built pipeline: (slices, params) -> image (B, F, h, w), label (B, h, w).

    slices   source of slabs and labels, each one array as `stacking` makes them, or a tensor in GPU memory
    params   source of the matrices (B, 2, 3); with dataset.augment also of StackedBatch.numbers; with dataset.has_noise
             also of noise_offset (B,) int32

    Raises MissingPackage where DALI is not installed, or broken.
    """
    install = (
        "Install kits-dist[dali-cuda13], or [dali-cuda12] for a CUDA 12 build of PyTorch (Linux only); or run with "
        "data.backend=opencv"
    )
    with optional_package("nvidia.dali", "data.backend=dali needs NVIDIA DALI", install):
        import nvidia.dali

    dali: Any = nvidia.dali  # its stubs lack the enumerations, and operators return lists by them
    fn, types = dali.fn, dali.types
    on_gpu = device.type == "cuda"
    out_type = {torch.float32: types.FLOAT, torch.float16: types.FLOAT16}[dtype]
    inputs = [(types.FLOAT, 2)]  # type and dimensions of a sample: matrix
    inputs += [(types.FLOAT, 1)] if dataset.augment else []
    inputs += [(types.INT32, 0)] if dataset.has_noise else []

    @dali.pipeline_def(
        batch_size=dataset.data.batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if on_gpu else None,
        prefetch_queue_depth=dataset.data.prefetch,
        enable_conditionals=True,
    )
    def graph():
        source = partial(fn.external_source, batch=True, batch_info=True, no_copy=True)
        slab, label = source(
            source=slices,
            num_outputs=2,
            device="cpu" if dataset.slice_source.device.type == "cpu" else "gpu",
            dtype=types.UINT8,
            ndim=[4, 3],
            layout=list(LAYOUTS),
        )
        matrix, *drawn = source(
            source=params,
            num_outputs=len(inputs),
            dtype=[dtype for dtype, _ in inputs],
            ndim=[ndim for _, ndim in inputs],
        )
        if on_gpu:
            slab, label = slab.gpu(), label.gpu()

        warp = partial(fn.warp_affine, matrix=matrix, size=dataset.data.size_px, fill_value=0)
        image = warp(slab, dtype=types.FLOAT, interp_type=types.INTERP_LINEAR)
        image = fn.reshape(fn.squeeze(image, axes=[3]), layout="CHW")  # frames become channels
        label = fn.squeeze(warp(label, interp_type=types.INTERP_NN), axes=[2])

        if dataset.augment:
            image = _change_levels(dali, dataset, image, *(drawn[0][i] for i in range(5)))
        if dataset.has_noise:
            # In host memory, where DALI reads one array for all samples; on a GPU it would join them to one piece of
            # memory in each step, 2 GB for 128 samples of 512x512.
            bank = fn.external_source(name=NOISE_BANK, dtype=types.FLOAT, ndim=1, repeat_last=True, no_copy=True)
            image = _add_noise(dali, dataset, image, bank, drawn[0][5], drawn[1], on_gpu=on_gpu)
        image = fn.crop_mirror_normalize(
            image, mean=[dataset.norm.mean], std=[dataset.norm.sd], dtype=out_type, output_layout="CHW"
        )
        return image, label

    pipeline = graph()
    pipeline.build()
    return pipeline


# In the graph `if` is a conditional of DALI: a step costs time only for the samples that drew it.


def _change_levels(
    dali: Any, dataset: SliceDataset, image: Any, blur: Any, linear: Any, gain: Any, bias: Any, gamma: Any
):
    levels = float(dataset.store.window.levels)
    if blur > 0:
        image = dali.fn.gaussian_blur(image, sigma=blur)
    if linear > 0:
        image = dali.math.clamp(image * gain + bias, 0.0, levels)
    if gamma != 1:
        image = levels * (image / levels) ** gamma
    return image


def _add_noise(dali: Any, dataset: SliceDataset, image: Any, bank: Any, sd: Any, offset: Any, on_gpu: bool):
    if sd > 0:
        noise = dali.fn.slice(bank, start=offset, shape=[dataset.noise_size], axes=[0])
        noise = dali.fn.reshape(noise, shape=[dataset.frames, *dataset.data.size_px], layout="CHW")
        noise = noise.gpu() if on_gpu else noise
        image = dali.math.clamp(image + noise * sd, 0.0, float(dataset.store.window.levels))
    return image
