"""The training step and the forward pass of the network in every mode that benchmarks.model times, and their work."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from benchmarks.lib import roofline
from kits_dist.config import ModelConfig, OptimConfig
from kits_dist.models import build_model
from kits_dist.training.losses import RegionLoss, WithLoss
from kits_dist.training.train_step import build_optimizer

LEARNING = OptimConfig()
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # precisions in which autocast computes


class Mode(NamedTuple):
    """How a step runs."""

    precision: str  # fp32, tf32, fp16 or bf16
    channels_last: bool
    compile: Literal["", "network", "step"] = ""  # step: with the loss in the same graph, as kits_dist.train does it
    fused: bool | None = None  # optimizer; None: as kits_dist.train builds it, fused on a GPU
    onednn: bool = True  # on a CPU: oneDNN's convolutions rather than torch's own
    half_threads: bool = False  # on a CPU: half of the threads
    loss: bool = True  # else the gradient of the sum of all logits: what the loss costs is the difference
    train: bool = True


def counted(
    network: ModelConfig, mode: Mode, size: tuple[int, int], batch_size: int, device_type: str
) -> roofline.Work:
    """Return the work of one step of this mode; what a GPU would do is counted without one.

    Memory order and compiler change where work is done, not how much it is, so they are left out.
    """
    fused = device_type == "cuda" if mode.fused is None else mode.fused
    eager = mode._replace(channels_last=False, compile="", fused=fused, onednn=True, half_threads=False)
    return _counted(network, eager, size, batch_size)


@functools.lru_cache
def _counted(network: ModelConfig, mode: Mode, size: tuple[int, int], batch_size: int) -> roofline.Work:
    return roofline.count(lambda: build_step(network, mode, size, batch_size, torch.device("cpu")))


def build_step(
    architecture: ModelConfig, mode: Mode, size: tuple[int, int], batch_size: int, device: torch.device
) -> Callable[[], Any]:
    """Return a step of this mode on its own batch and network, both on the device."""
    torch.manual_seed(0)
    model = _moved(build_model(architecture, 1, pretrained=False), device)
    if mode.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, LEARNING, device)
    for group in optimizer.param_groups:
        group["fused"] = group["fused"] if mode.fused is None else mode.fused
    loss_fn = _moved(RegionLoss(LEARNING.loss, architecture.regions), device)
    half = HALF.get(mode.precision)
    # on a CPU, where steps are only counted, it would ask fake gradients whether they are finite
    scaler = torch.amp.GradScaler(device.type, enabled=mode.precision == "fp16" and device.type == "cuda")
    in_half = half is not None and device.type == "cuda"  # the dtype of images in kits_dist.distributed.runtime
    image = torch.randn(batch_size, 1, *size, device=device, dtype=torch.float16 if in_half else torch.float32)
    label = torch.randint(0, 4, (batch_size, *size), device=device, dtype=torch.uint8)
    network = torch.compile(model) if mode.compile == "network" else model
    whole = WithLoss(network, loss_fn)
    if mode.compile == "step":
        whole = torch.compile(whole)

    def train() -> None:
        with _settings(mode):
            with torch.autocast(device.type, half, enabled=half is not None):
                out = whole(image, label) if mode.loss else network(image)
            loss = loss_fn.global_value(out) if mode.loss else out.float().sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def infer() -> None:
        with torch.autocast(device.type, half, enabled=half is not None):
            network(image).float().sigmoid()

    model.train(mode.train)
    return train if mode.train else infer


@contextlib.contextmanager
def _settings(mode: Mode) -> Iterator[None]:
    """Apply the settings of the process that the mode asks for, for one step."""
    threads = torch.get_num_threads()
    if mode.half_threads:
        torch.set_num_threads(max(1, threads // 2))
    try:
        with contextlib.nullcontext() if mode.onednn else torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)


def _moved(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module that was built on the CPU. Module.to fails on fake tensors, even where there is nothing to move."""
    return module if device.type == "cpu" else module.to(device)
