"""A whole training step with its own source of batches: ours here, those of other libraries in `peers/`."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.lib import roofline
from kits_dist.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.store import Store
from kits_dist.distributed.runtime import Runtime
from kits_dist.models import build_model
from kits_dist.training.host_copy import HostCopy
from kits_dist.training.losses import RegionLoss
from kits_dist.training.step_timer import StepTimer
from kits_dist.training.train_step import TrainStep, build_optimizer, place_model


class Setup(NamedTuple):
    """Configuration that all trainings of a comparison share."""

    runtime: Runtime
    store: Store
    data: DataConfig
    changes: AugmentConfig
    network: ModelConfig
    optim: OptimConfig
    train: TrainConfig
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.runtime.accelerator.device


class PeerBatch(NamedTuple):
    """A batch of a training that is not ours, with the two fields of `Batch` that a step reads."""

    image: Tensor  # (B, 1, H, W) float, normalized, on the device
    label: Tensor  # (B, H, W) uint8


class Training(NamedTuple):
    """A training that can be driven step by step."""

    batches: Iterator[Any]  # endless; with fields `image` and `label`
    step: Callable[[Any, bool], object]  # (batch, logging): one optimizer step, as its author would log it
    model: nn.Module  # the network itself, without a wrapper
    choices: str  # which options of its libraries it uses, for the line


def build_ours(setup: Setup, step: "OurStep | None" = None) -> Training:
    """Build the training of kits_dist.train; `step` shares the network of another one."""
    loader, dataset = build_train_loader(
        setup.store,
        setup.data,
        setup.changes,
        setup.seed,
        setup.runtime.ranks,
        device=setup.device,
        dtype=setup.runtime.image_dtype,
    )
    step = step or OurStep(setup, dataset.frames)
    about = f"kits_dist, data.backend={setup.data.backend}, data.residency={setup.data.residency}"
    return Training(iter(loader), step, step.plain_model, about)


class OurStep:
    """One optimizer step as kits_dist.train takes it."""

    def __init__(self, setup: Setup, frames: int = 1):
        model = place_model(build_model(setup.network, frames, pretrained=False), setup.train, setup.device)
        self.train_step = TrainStep(model, setup.network.regions, setup.optim, setup.runtime.accelerator)
        self.train_step.wrap(setup.train)
        self.train_step.model.train()
        self.plain_model, self._rate = model, setup.optim.lr
        self._timer, self._number = StepTimer(setup.device), 0
        self._copy: HostCopy | None = None

    def __call__(self, batch: Any, logging: bool) -> None:
        """Take a step. What a log step reports is read one step later, as in training."""
        outcome = self.train_step(iter((batch,)), self._rate, self._number, self._timer, want_norm=logging)
        self._number += 1
        if self._copy:
            self._copy.wait()
            self._copy = None
        if logging:
            self._copy = HostCopy(self.train_step.accelerator.gather(outcome.losses[None]), outcome.grad_norm)
            self._timer.cut()


class PlainStep:
    """One optimizer step in plain PyTorch: autocast, Adam (fused on a GPU), channels_last where it is asked for."""

    def __init__(
        self, model: nn.Module, regions: tuple[str, ...], runtime: Runtime, optim: OptimConfig, train: TrainConfig
    ):
        device = runtime.accelerator.device
        memory = torch.channels_last if train.channels_last else torch.contiguous_format
        self.model: nn.Module = model.to(device, memory_format=memory).train()
        self.optimizer = build_optimizer(self.model, optim, device)
        self.loss_fn = RegionLoss(optim.loss, regions, optim.pos_weight).to(device)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(runtime.precision.mode)
        self.autocast = torch.autocast(device.type, half, enabled=half is not None)

    def __call__(self, batch: Any, logging: bool) -> float | None:
        """Take a step. Returns the loss at log steps."""
        with self.autocast:
            logits = self.model(batch.image)
        loss = self.loss_fn(logits, batch.label)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item() if logging else None  # sync


class Watch:
    """Counts what enters a network, so that a training of fewer pixels does not pass for a faster one."""

    def __init__(self, model: nn.Module):
        self.model = getattr(model, "_orig_mod", model)  # the network that torch.compile wrapped
        self.images = 0
        self.shapes: set[tuple[int, ...]] = set()
        model.register_forward_pre_hook(self._count)

    def _count(self, model: nn.Module, args: tuple) -> None:
        self.images += len(args[0])
        self.shapes.add(tuple(args[0].shape[1:]))

    def pixels_per_image(self) -> int:
        """Return the pixels of an image. Raises ValueError when images of several sizes went in."""
        (shape,) = self.shapes
        return math.prod(shape)

    def work_per_image(self) -> dict[str, Any]:
        """Return the pixels and the forward GFLOP of an image, for the line."""
        (shape,) = self.shapes
        gflop = roofline.forward_gflop(self.model, (1, *shape))
        return {"pixels_per_image": self.pixels_per_image(), "forward_gflop": round(gflop, 4)}


def with_backend(setup: Setup, backend: str, residency: str = "mmap") -> Setup:
    """Return the setup with another data path."""
    return setup._replace(data=replace(setup.data, backend=backend, residency=residency))
