"""Score a model on the validation slices: loss and exact counts per case, the same on any number of ranks."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kits_dist.data.batch import Batch
from kits_dist.data.loaders import PeekableLoader
from kits_dist.distributed.runtime import reduce_sum
from kits_dist.evaluation.metrics import mean_dice
from kits_dist.training.losses import RegionLoss, region_targets
from kits_dist.utils.errors import JobFailed


class Validation(NamedTuple):
    """The result on all validation slices, equal on all ranks."""

    loss: float  # of all slices as one batch
    counts: np.ndarray  # (cases, R, 3) int64 on the network's grid
    # per region: mean over cases of the volume Dice on that grid, which is not the native grid of the evaluator
    dice: dict[str, float]


@torch.inference_mode()
def validate(
    model: nn.Module,
    loss_fn: RegionLoss,
    loader: Iterable[Batch],
    rows: list[int],
    num_slices: int,
    accelerator: Accelerator,
) -> Validation:
    """Score every validation slice once over all ranks. All ranks call it.

    model        unwrapped: a wrapped module hangs where a rank has no batch
    rows         the store's rows of the cases that have validation slices
    num_slices   validation slices of all ranks together

    Counts are integers, summed over slices and ranks before anything is divided. Raises JobFailed when the ranks saw
    another number of slices than `num_slices`.
    """
    broadcast_buffers(model, accelerator)
    was_training = model.training
    model.eval()
    counts = torch.zeros(max(rows) + 1, len(loss_fn.regions), 3, dtype=torch.int64, device=accelerator.device)
    num_seen = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    sums = torch.zeros(loss_fn.sums_shape, dtype=torch.float64, device=accelerator.device)
    for batch in loader:
        sums_of_batch, counts_of_slices = _score(model, loss_fn, batch, accelerator)
        sums += sums_of_batch
        counts.index_add_(0, batch.case.long(), counts_of_slices)
        num_seen += len(batch.label)
    model.train(was_training)
    sums, counts, num_seen = (reduce_sum(accelerator, tensor) for tensor in (sums, counts, num_seen))
    if int(num_seen) != num_slices:  # sync
        raise JobFailed(
            f"validation saw {int(num_seen)} slices instead of {num_slices}; is every rank on the same store?"
        )
    of_cases = counts.cpu().numpy()[rows]
    of_regions = mean_dice(of_cases).tolist()
    return Validation(float(loss_fn.value(sums)), of_cases, dict(zip(loss_fn.regions, of_regions, strict=True)))


@torch.inference_mode()
def rehearse(model: nn.Module, loss_fn: RegionLoss, loader: PeekableLoader, accelerator: Accelerator) -> None:
    """Score the first validation batch and forget the result, so that memory runs out now and not after an epoch.

    The loader's own memory on the GPU, which PyTorch does not know of, stays allocated from here on.
    """
    batch = loader.peek()
    if batch is None:
        return
    was_training = model.training
    model.eval()
    _score(model, loss_fn, batch, accelerator)
    model.train(was_training)


def _score(model: nn.Module, loss_fn: RegionLoss, batch: Batch, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Return the loss sums of a batch, and (B, R, 3) counts of its slices."""
    with accelerator.autocast():
        logits = model(batch.image)
    return loss_fn.sums(logits, batch.label), batch_counts(logits.float(), region_targets(batch.label, loss_fn.bits))


def broadcast_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Copy the batch norm statistics of rank 0 to all ranks: in training each rank has its own."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def batch_counts(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B, R, 3) int64 true positive, false positive and false negative pixels.

    logits    (B, R, H, W) float32
    targets   (B, R, H, W) in {0, 1}
    """
    predicted, truth = logits >= 0, targets > 0.5  # probability >= 0.5
    both = (predicted & truth).sum(dim=(2, 3))
    return torch.stack([both, predicted.sum(dim=(2, 3)) - both, truth.sum(dim=(2, 3)) - both], dim=-1)
