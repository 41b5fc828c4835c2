"""Model FLOP utilization: the share of a GPU's data-sheet peak that the arithmetic of a training uses.

The arithmetic is that of the plain network, forward and backward, counted by torch (convolutions and matrix products);
not what a compiler or recomputation makes of it. Loss and optimizer are left out: they are well under 1 %.
"""

import warnings
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from kits_dist.utils.errors import InputError


class Peak(NamedTuple):
    """Dense peaks (no sparsity) at boost clock as in NVIDIA's data sheet; no real program reaches them."""

    flops: dict[str, float]  # precision -> floating point operations per second
    bytes_per_s: float  # of the GPU's memory
    link_bytes_per_s: float  # to neighboring GPUs, in one direction
    source: str

    def flops_in(self, precision: str) -> float:
        """Return the peak of a precision; tensor cores compute fp16 and bf16 at one speed."""
        return self.flops["bf16" if precision == "fp16" else precision]


_HOPPER = {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12}

PEAKS = {
    "A6000": Peak(
        {"bf16": 154.8e12, "tf32": 77.4e12, "fp32": 38.7e12},
        768e9,
        32e9,  # PCIe 4.0 x16; a bridge joins no more than two of them
        "NVIDIA RTX A6000 data sheet (309.7 TFLOPS with sparsity)",
    ),
    "A40": Peak({"bf16": 149.7e12, "tf32": 74.8e12, "fp32": 37.4e12}, 696e9, 32e9, "NVIDIA A40 data sheet"),
    "A5000": Peak(
        {"bf16": 111.1e12, "tf32": 55.6e12, "fp32": 27.8e12},
        768e9,
        32e9,
        "NVIDIA RTX A5000 data sheet (222.2 TFLOPS with sparsity)",
    ),
    "3090": Peak(
        {"bf16": 71e12, "tf32": 35.6e12, "fp32": 35.6e12},
        936e9,
        32e9,
        "NVIDIA GA102 white paper, GeForce RTX 3090, sums in fp32",
    ),
    "4090": Peak(
        {"bf16": 165.2e12, "tf32": 82.6e12, "fp32": 82.6e12},
        1008e9,
        32e9,
        "NVIDIA Ada white paper, GeForce RTX 4090, sums in fp32",
    ),
    "L4": Peak(
        {"bf16": 121e12, "tf32": 60e12, "fp32": 30.3e12}, 300e9, 32e9, "NVIDIA L4 data sheet (242 TFLOPS with sparsity)"
    ),
    "L40S": Peak({"bf16": 362e12, "tf32": 183e12, "fp32": 91.6e12}, 864e9, 32e9, "NVIDIA L40S data sheet"),
    "A100": Peak(
        {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12}, 2039e9, 300e9, "NVIDIA A100 data sheet, 80 GB SXM4"
    ),
    "H100": Peak(_HOPPER, 3350e9, 450e9, "NVIDIA H100 data sheet, SXM5 (1,979 TFLOPS with sparsity)"),
    "H200": Peak(_HOPPER, 4800e9, 450e9, "NVIDIA H200 data sheet, SXM5 (1,979 TFLOPS with sparsity)"),
}


def peak_of(gpu: str) -> Peak:
    """Return the peak of a GPU by its short name, as A6000 or "RTX 4090". Raises InputError naming the known ones."""
    known = {name.lower(): peak for name, peak in PEAKS.items()}
    name = gpu.lower().replace(" ", "").removeprefix("rtx")
    if name not in known:
        raise InputError(
            f"gpu={gpu}: choose one of {', '.join(PEAKS)}, or add its data sheet to kits_dist/training/mfu.py"
        )
    return known[name]


# slower than the SXM boards in the table, a part of one, or a relative of a card with another peak
_OTHER_BOARDS = {"PCIE", "NVL", "MIG", "TI", "D", "LAPTOP"}


def short_name(device_name: str) -> str | None:
    """Return the table's name of a device, such as H100 for 'NVIDIA H100 80GB HBM3'; None when not in it."""
    words = device_name.upper().replace("-", " ").split()
    return None if _OTHER_BOARDS & set(words) else next((name for name in PEAKS if name in words), None)


def images_per_s_at_peak(
    model: nn.Module, frames: int, size_px: tuple[int, int], device: torch.device, precision: str
) -> float | None:
    """Return the training images/s of one process at the device's peak; MFU is the measured images/s divided by it.

    model       as built, before anything wraps it
    frames      input channels
    precision   fp32, tf32, fp16 or bf16

    None where the peak of the device is not known or the operations of the network cannot be counted.
    """
    gpu = short_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return None
    try:
        flop = training_flop(model, frames, size_px)
    except RuntimeError as error:  # a number on a page must not end a training
        warnings.warn(f"perf/mfu is left out: this network cannot be counted ({error})", stacklevel=2)
        return None
    return PEAKS[gpu].flops_in(precision) / flop


def training_flop(model: nn.Module, frames: int, size_px: tuple[int, int]) -> int:
    """Return the floating point operations of forward and backward for one (frames, H, W) image.

    Counted on fake tensors, so it takes no memory and no GPU, and leaves the model unchanged. Raises RuntimeError for a
    network that depends on values, which fake tensors do not have.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, FlopCounterMode(display=False) as counter:
        named = (*model.named_parameters(), *model.named_buffers())
        state: dict[str, torch.Tensor] = {name: fake.from_tensor(tensor) for name, tensor in named}
        image = torch.zeros(
            2, frames, *size_px, device=next(model.parameters()).device
        )  # batch norm may fail on a batch of one
        torch.func.functional_call(model, state, (image,)).sum().backward()
    return counter.get_total_flops() // 2
