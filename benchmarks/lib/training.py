"""A whole training step with its own source of batches: ours here, other people's in `peers/`. What end_to_end and
time_to_dice drive."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kits_dist.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.store import Store
from kits_dist.distributed.runtime import Runtime
from kits_dist.models import build_model
from kits_dist.train import placed
from kits_dist.training.losses import RegionLoss
from kits_dist.training.step_timer import StepTimer
from kits_dist.training.train_step import TrainStep, build_optimizer


class Setup(NamedTuple):
    """What all trainings of a comparison share."""

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
        return self.runtime.accelerator.device

    @property
    def half(self) -> bool:
        """Whether the network runs in bfloat16."""
        return self.runtime.precision.mode == "bf16"


class Pair(NamedTuple):
    """A batch of a training that is not ours."""

    image: Tensor  # (B, 1, H, W) float, normalised, on the device
    label: Tensor  # (B, H, W) uint8


class Training(NamedTuple):
    batches: Iterator[Any]  # endless; with fields `image` and `label`
    step: Callable[[Any, bool], float | None]  # (batch, logging): one optimiser step; the loss at log steps
    model: nn.Module  # the network itself, in no wrapper
    choices: str  # what it is made of, for the line


def build_ours(setup: Setup, step: "OurStep | None" = None) -> Training:
    """step: shares the network of another of our trainings."""
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
    """One optimiser step as kits_dist.train takes it: its own learner."""

    def __init__(self, setup: Setup, frames: int = 1):
        model = placed(build_model(setup.network, frames, pretrained=False), setup.train, setup.device)
        self.train_step = TrainStep(model, setup.network.regions, setup.optim, setup.runtime.accelerator)
        self.train_step.wrap(setup.train)
        self.train_step.model.train()
        self.plain_model, self._rate, self._pace = model, setup.optim.lr, StepTimer(setup.device)
        self._number = 0

    def __call__(self, batch: Any, logging: bool) -> float | None:
        """Returns the loss at log steps, which is where the host waits."""
        outcome = self.train_step.step(iter((batch,)), self._rate, self._number, self._pace, want_norm=logging)
        self._number += 1
        if not logging:
            return None
        self._pace.report(1)  # its marks are forgotten
        return self.train_step.accelerator.reduce(outcome.losses.mean(), "mean").item()  # sync


class PlainStep:
    """One optimiser step in plain PyTorch: autocast, Adam (fused on a GPU), channels_last where the setup says so."""

    def __init__(self, setup: Setup, model: nn.Module):
        memory = torch.channels_last if setup.train.channels_last else torch.contiguous_format
        self.model = model.to(setup.device, memory_format=memory).train()
        self.optimizer = build_optimizer(self.model, setup.optim, setup.device)
        self.loss_fn = RegionLoss(setup.optim.loss, setup.network.regions, setup.optim.pos_weight).to(setup.device)
        self.device_type, self.half = setup.device.type, setup.half

    def __call__(self, batch: Any, logging: bool) -> float | None:
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.half):
            logits = self.model(batch.image)
        loss = self.loss_fn(logits, batch.label)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item() if logging else None  # sync


class Watch:
    """Counts what really enters a network: nobody wins by looking at fewer pixels."""

    def __init__(self, model: nn.Module):
        self.images, self.shapes = 0, set()
        model.register_forward_pre_hook(self._seen)

    def _seen(self, model: nn.Module, args: tuple) -> None:
        self.images += len(args[0])
        self.shapes.add(tuple(args[0].shape[1:]))

    def pixels_per_image(self) -> int:
        """Raises ValueError when images of several sizes went in."""
        (shape,) = self.shapes
        return math.prod(shape)


def with_backend(setup: Setup, backend: str, residency: str = "mmap") -> Setup:
    return setup._replace(data=replace(setup.data, backend=backend, residency=residency))
