"""Model FLOP utilisation: the share of a GPU's data-sheet peak that a training's arithmetic takes.

The arithmetic is that of the plain network (forward and backward, by torch's own counter: convolutions and matrix
products), not of what a compiler or a recomputation makes of it; loss and optimiser are left out, well under 1 %.
"""

import warnings

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from kits_dist.training.peaks import PEAKS, short_name


def images_per_s_at_peak(
    model: nn.Module, frames: int, size_px: tuple[int, int], device: torch.device, precision: str
) -> float | None:
    """Training images a second if this device did arithmetic alone, at its peak for `precision` (fp32, tf32, fp16,
    bf16); images/s of one process / this = MFU. None where the peak is not known, or the network cannot be counted.

    model: as built, before anything wraps it.
    """
    gpu = short_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return None
    try:
        flop = training_flop(model, frames, size_px)
    except RuntimeError as error:  # a figure on a page must not end a training
        warnings.warn(f"perf/mfu is left out: this network cannot be counted ({error})", stacklevel=2)
        return None
    return PEAKS[gpu].flops["bf16" if precision == "fp16" else precision] / flop  # tensor cores do both at one speed


def training_flop(model: nn.Module, frames: int, size_px: tuple[int, int]) -> int:
    """Floating point operations to learn from one (frames, H, W) image; the model is left as it was.

    Counted on fake tensors: no memory, no GPU. Raises RuntimeError for a network that looks at values, which fake ones
    do not have.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, FlopCounterMode(display=False) as counter:
        named = (*model.named_parameters(), *model.named_buffers())
        state = {name: fake.from_tensor(tensor) for name, tensor in named}
        image = torch.zeros(2, frames, *size_px, device=next(model.parameters()).device)  # of one, batch norm may fail
        torch.func.functional_call(model, state, (image,)).sum().backward()
    return counter.get_total_flops() // 2
