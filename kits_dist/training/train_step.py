"""A network while it learns: one optimiser step, with accumulation, clipping, averaged weights and the fp16 scaler."""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kits_dist.config import OptimConfig, TrainConfig
from kits_dist.data.batch import Batch
from kits_dist.training.checkpoint import Checkpoint, restore
from kits_dist.training.ema import AveragedModel
from kits_dist.training.losses import RegionLoss, WithLoss
from kits_dist.training.step_timer import StepTimer


class StepResult(NamedTuple):
    """Of one optimiser step; still on the device, so that nobody waits for it."""

    losses: Tensor  # (accumulate,) float32, this rank's
    grad_norm: Tensor | None  # before clipping; None where nobody asked


class TrainStep:
    """Model, optimiser, loss and averaged weights of this rank. `plain_*` are what DDP and torch.compile wrap."""

    def __init__(self, model: nn.Module, regions: tuple[str, ...], optim: OptimConfig, accelerator: Accelerator):
        """model: on the accelerator's device, in the memory order it trains in."""
        self.accelerator, self.accumulate, self.clip_norm = accelerator, optim.accumulate, optim.clip_norm
        self.plain_model = model
        self.plain_optimizer = self.optimizer = build_optimizer(model, optim, accelerator.device)
        loss = RegionLoss(optim.loss, regions, optim.pos_weight, optim.region_weight)
        self.loss_fn = loss.to(accelerator.device)
        self.model = WithLoss(model, self.loss_fn)  # what trains
        self.average = AveragedModel(model, optim.ema) if optim.ema else None
        self.skipped = 0  # steps that fp16's scaler left out, as far as `read_skipped` has looked
        self._skipped = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self._scaler_state: dict | None = None  # of a checkpoint, until `wrap`

    def restore(self, found: Checkpoint, weight_decay: float) -> None:
        """Before `wrap`. Raises InputError when the checkpoint is of another model."""
        restore(found, self.plain_model, self.plain_optimizer, self.average and self.average.model)
        for group in self.plain_optimizer.param_groups:
            group["weight_decay"] = weight_decay  # may change when a run goes on; the rate is set at each step
        self._skipped += found.state.get("skipped", 0)
        self.skipped = int(self._skipped)
        self._scaler_state = found.state["scaler"]

    def wrap(self, train: TrainConfig) -> None:
        model = torch.compile(self.model) if train.compile else self.model
        self.model, self.optimizer = self.accelerator.prepare(model, self.plain_optimizer)
        if self.accelerator.scaler and self._scaler_state:  # fp16
            self.accelerator.scaler.load_state_dict(self._scaler_state)

    @property
    def eval_model(self) -> nn.Module:
        """What is validated, exported and predicts."""
        return self.average.model if self.average else self.plain_model

    def step(
        self, stream: Iterator[Batch], rate: float, number: int, timer: StepTimer, want_norm: bool = False
    ) -> StepResult:
        """One optimiser step on the next `accumulate` batches. number: of the step, from 0. Waits for no device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = []
        for micro in range(self.accumulate):
            timer.batch_requested()
            with torch.profiler.record_function("kits_dist/data"):
                batch = next(stream)
            timer.batch_ready()
            last = micro == self.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    sums = self.model(batch.image, batch.label)
                loss = self.loss_fn.global_value(sums)
                self.accelerator.backward(loss / self.accumulate)
            losses.append(loss.detach())
        norm, scaler = None, self.accelerator.scaler
        if self.clip_norm or want_norm or scaler:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if scaler:  # it leaves a step out where a gradient is not finite, without telling the host
            self._skipped += ~norm.isfinite()
        if self.average:
            self.average.update(self.plain_model, number)
        timer.step_ended()
        return StepResult(torch.stack(losses), norm)

    def read_skipped(self) -> int:
        """Steps left out so far. For log steps: it waits for the device."""
        if self.accelerator.scaler:
            self.skipped = int(self._skipped)  # sync
        return self.skipped

    def is_finite(self) -> bool:
        """Whether weights, averaged weights, batch norm statistics and moments are: all that a checkpoint keeps."""
        states = [self.plain_model.state_dict(), *self.plain_optimizer.state.values()]
        if self.average:
            states.append(self.average.model.state_dict())
        device = self.accelerator.device  # Adam counts its steps on the CPU
        tensors = [value.to(device) for state in states for value in state.values() if isinstance(value, Tensor)]
        return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())  # sync

    def state(self) -> dict:
        """What a checkpoint keeps beside tensors."""
        scaler = self.accelerator.scaler
        return {"scaler": scaler.state_dict() if scaler else None, "skipped": self.read_skipped()}

    def step_bytes(self, batch_size: int, frames: int, size_px: tuple[int, int]) -> int:
        """GPU memory that a training step takes beside what is allocated: one is done on zeros, and undone.

        Before `wrap`: nothing is exchanged between ranks. What only comes later is added: gradient buckets and the
        optimiser's moments, two of them at most. 0 without a GPU.
        """
        device = self.accelerator.device
        if device.type != "cuda":
            return 0
        buffers = [buffer.clone() for buffer in self.plain_model.buffers()]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        image = torch.zeros(batch_size, frames, *size_px, device=device)
        label = torch.zeros(batch_size, *size_px, dtype=torch.uint8, device=device)
        with self.accelerator.autocast():
            sums = self.model(image, label)
        self.loss_fn.value(sums).backward()
        for parameter in self.plain_model.parameters():
            parameter.grad = None
        for buffer, kept in zip(self.plain_model.buffers(), buffers, strict=True):
            buffer.copy_(kept)
        taken = torch.cuda.max_memory_reserved(device) - before
        del image, label, sums
        torch.cuda.empty_cache()
        return taken + 3 * sum(p.numel() * p.element_size() for p in self.plain_model.parameters())


def build_optimizer(model: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    fused = {"fused": True} if device.type == "cuda" else {}
    if config.name == "sgd":
        return torch.optim.SGD(
            model.parameters(), config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay, **fused
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(model.parameters(), config.lr, weight_decay=config.weight_decay, **fused)
