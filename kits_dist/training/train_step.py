"""One optimizer step: accumulation, clipping, averaged weights and the fp16 scaler."""

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
from kits_dist.utils.errors import InputError


class StepResult(NamedTuple):
    """The result of one optimizer step, still on the device: reading it waits for the step."""

    losses: Tensor  # (accumulate,) float32, of this rank
    grad_norm: Tensor | None  # scalar float32, before clipping; None where it was not asked for


class TrainStep:
    """Model, optimizer, loss and averaged weights of this rank; calling it takes one step.

    `plain_model` and `plain_optimizer` are what DDP, torch.compile and Accelerate wrap. Order of use: `step_bytes`
    (if memory matters), `restore` (if the run is resumed), `wrap`, then steps.
    """

    def __init__(self, model: nn.Module, regions: tuple[str, ...], optim: OptimConfig, accelerator: Accelerator):
        """model: as `place_model` returns it."""
        self.accelerator = accelerator
        self.accumulate = optim.accumulate
        self.clip_norm = optim.clip_norm
        self.plain_model = model
        self.plain_optimizer = self.optimizer = build_optimizer(model, optim, accelerator.device)
        loss = RegionLoss(optim.loss, regions, optim.pos_weight, optim.region_weight)
        self.loss_fn = loss.to(accelerator.device)
        self.model = WithLoss(model, self.loss_fn)  # what trains
        self.average = AveragedModel(model, optim.ema) if optim.ema else None
        self.skipped = 0  # steps that fp16's scaler skipped, as far as the host knows
        self.skipped_on_device = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self._scaler_state: dict | None = None  # of a checkpoint, until `wrap`

    def restore(self, found: Checkpoint, weight_decay: float) -> None:
        """Load a checkpoint, before `wrap`. Raises InputError when it is of another model."""
        restore(found, self.plain_model, self.plain_optimizer, self.average and self.average.model)
        for group in self.plain_optimizer.param_groups:
            group["weight_decay"] = weight_decay  # may change when a run is resumed; the rate is set at each step
        self.skipped_on_device += found.state.get("skipped", 0)
        self.skipped = int(self.skipped_on_device)
        self._scaler_state = found.state["scaler"]

    def wrap(self, train: TrainConfig) -> None:
        """Hand model and optimizer to Accelerate, which wraps them for DDP, and compile the model if asked.

        Compiled outside DDP, the graph is cut where a bucket of gradients is complete; inside, backward would be one
        graph and no exchange would begin before its end.
        """
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.plain_optimizer)
        if train.compile:
            self.model = torch.compile(self.model)
        if self.accelerator.scaler and self._scaler_state:  # fp16
            self.accelerator.scaler.load_state_dict(self._scaler_state)

    @property
    def eval_model(self) -> nn.Module:
        """The unwrapped network that is validated, exported and used for prediction."""
        return self.average.model if self.average else self.plain_model

    def __call__(
        self, batches: Iterator[Batch], rate: float, step: int, timer: StepTimer, want_norm: bool = False
    ) -> StepResult:
        """Take one optimizer step on the next `accumulate` batches, without waiting for it to end.

        rate        learning rate
        step        number of this step, from 0
        want_norm   compute the norm of the gradient even where nothing needs it
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        losses = []
        for micro in range(self.accumulate):
            timer.batch_requested()
            with torch.profiler.record_function("kits_dist/data"):
                batch = next(batches)
            timer.batch_ready()

            # DDP exchanges gradients with the last batch only
            exchange = (
                contextlib.nullcontext() if micro == self.accumulate - 1 else self.accelerator.no_sync(self.model)
            )
            with exchange:
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
        if scaler:  # it skips a step whose gradient is not finite, without telling the host
            assert norm is not None
            self.skipped_on_device += ~norm.isfinite()
        if self.average:
            self.average.update(self.plain_model, step)

        timer.step_ended()
        return StepResult(torch.stack(losses), norm)

    def is_finite(self) -> bool:
        """Return whether everything that a checkpoint keeps is finite: weights, averages, buffers and moments."""
        states = [self.plain_model.state_dict(), *self.plain_optimizer.state.values()]
        if self.average:
            states.append(self.average.model.state_dict())
        device = self.accelerator.device  # Adam counts its steps on the CPU
        values = [value.to(device) for state in states for value in state.values() if isinstance(value, Tensor)]
        values = [value for value in values if value.is_floating_point()]
        # a sum is finite only if all of its terms are, and takes a tenth of the time; finite terms may overflow it
        sums = torch.stack([value.sum(dtype=torch.float32) for value in values])
        return bool(sums.isfinite().all()) or all(bool(value.isfinite().all()) for value in values)  # sync

    def state(self) -> dict:
        """Return what a checkpoint keeps in addition to tensors."""
        scaler = self.accelerator.scaler
        self.skipped = int(self.skipped_on_device)  # sync
        return {"scaler": scaler.state_dict() if scaler else None, "skipped": self.skipped}

    def step_bytes(self, batch_size: int, frames: int, size_px: tuple[int, int]) -> int:
        """Return the GPU memory of a training step in bytes, without what is allocated already; 0 without a GPU.

        Runs one forward and backward pass on zeros and discards it. To be called before `wrap`, so that gradients are
        not exchanged. What comes later is added: DDP's gradient buckets and the optimizer's moments, two at most.
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


def place_model(model: nn.Module, train: TrainConfig, device: torch.device) -> nn.Module:
    """Return the model on `device`, in the memory format and with the batch norm it trains with.

    Raises InputError for train.sync_bn without a GPU.
    """
    if train.sync_bn:
        if device.type != "cuda":
            raise InputError("train.sync_bn=true needs GPUs. Leave it out on a CPU.")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if train.channels_last and not (device.type == "cpu" and _has_narrow_strided_conv(model)):
        model = model.to(memory_format=torch.channels_last)
    return model.to(device)


def _has_narrow_strided_conv(model: nn.Module) -> bool:
    """Return whether the model has a 1x1 convolution with a stride and few channels, as a narrow ResNet has.

    torch 2.15 was seen to abort (double free) in its backward pass in channels_last with 4 to 8 channels on one thread
    of an AMD EPYC. Below 16 channels the memory order gains nothing.
    """
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and min(layer.in_channels, layer.out_channels) < 16
        for layer in model.modules()
    )


def build_optimizer(model: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer of `optim.name`, fused on a GPU."""
    fused = {"fused": True} if device.type == "cuda" else {}
    if config.name == "sgd":
        return torch.optim.SGD(
            model.parameters(), config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay, **fused
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(model.parameters(), config.lr, weight_decay=config.weight_decay, **fused)
