"""Losses on region logits. Targets are nested regions, one sigmoid each, derived from the label map.

Each loss is a function of sums over pixels that is divided once, at the end: sums can be added over slices, batches and
ranks, losses cannot. So w processes of batch B give the gradients of one process of batch wB, for Dice too, and a
validation loss does not depend on how slices were distributed over batches and ranks.

To add a loss: write its sums and value functions and add a Term to LOSSES at the end of this file.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from kits_dist.labels import REGIONS

FOCUS = 2  # focal loss: exponent that down-weights easy pixels (Lin et al. 2017)
MISS_WEIGHT = 0.7  # Tversky: weight of missed pixels against 0.3 of surplus ones (Salehi et al. 2017)


class Term(NamedTuple):
    """One summand of a loss, for R regions and K sums per region."""

    sums: Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (B, R, H, W) logits, targets, pos_weight -> (R, K)
    value: Callable[[Tensor], Tensor]  # (R, K) -> (R,)
    columns: int  # K
    is_mean: bool  # a mean over pixels: its mean over equal batches is its value on their union


class RegionLoss(nn.Module):
    """Loss of (B, R, H, W) logits and (B, H, W) uint8 labels, a float32 scalar.

    In a process group it is the loss of the global batch, and its gradient is such that DDP's mean over ranks is the
    gradient of that loss.
    """

    bits: Tensor
    pos_weight: Tensor | None
    region_weight: Tensor

    def __init__(
        self,
        name: str,
        regions: tuple[str, ...],
        pos_weight: tuple[float, ...] | None = None,
        region_weight: tuple[float, ...] | None = None,
    ):
        """pos_weight: of inside pixels in cross-entropy and focal loss; region_weight: in the mean. One per region."""
        super().__init__()
        self.terms, self.regions = LOSSES[name], regions
        self.register_buffer("bits", region_bits(regions), persistent=False)
        inside = None if pos_weight is None else torch.tensor(pos_weight)[:, None, None]
        self.register_buffer("pos_weight", inside, persistent=False)
        weight = torch.ones(len(regions)) if region_weight is None else torch.tensor(region_weight)
        self.register_buffer("region_weight", weight / weight.sum(), persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss of the global batch."""
        return self.global_value(self.sums(logits, label))

    @property
    def sums_shape(self) -> tuple[int, int]:
        """(R, K), K counted over all terms."""
        return len(self.regions), sum(term.columns for term in self.terms)

    def sums(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return (R, K) float32 sums, which can be added over batches and ranks."""
        targets = region_targets(label, self.bits)
        return torch.cat([term.sums(logits.float(), targets, self.pos_weight) for term in self.terms], dim=1)

    def value(self, sums: Tensor) -> Tensor:
        """Return the loss that belongs to (R, K) sums: terms added per region, then the weighted mean of regions."""
        parts = sums.split([term.columns for term in self.terms], dim=1)
        values = [term.value(part) for part, term in zip(parts, self.terms, strict=True)]
        by_region = functools.reduce(torch.add, values)
        return (by_region * self.region_weight.to(sums)).sum()

    def global_value(self, sums: Tensor) -> Tensor:
        """Return the loss of all ranks' batches. Means over pixels need no exchange: DDP averages their gradients."""
        return self.value(sums if all(term.is_mean for term in self.terms) else of_all_ranks(sums))


class WithLoss(nn.Module):
    """A network followed by the (R, K) sums of its loss.

    As one module, so that torch.compile makes one graph of both and need not write the logits to memory.
    """

    def __init__(self, network: nn.Module, loss_fn: RegionLoss):
        super().__init__()
        self.network, self.loss_fn = network, loss_fn

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Return the sums for (B, C, H, W) images and (B, H, W) uint8 labels."""
        return self.loss_fn.sums(self.network(image), label)


def of_all_ranks(sums: Tensor) -> Tensor:
    """Return the sums of the global batch, with w times this rank's gradient: DDP divides it by the w ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums
    total = sums.detach().clone()
    torch.distributed.all_reduce(total)
    weighted = sums * torch.distributed.get_world_size()
    return weighted + (total - weighted).detach()


def region_bits(regions: tuple[str, ...]) -> Tensor:
    """Return (R, 1, 1) uint8 masks: bit L of a region is set when label L belongs to it."""
    bits = [sum(1 << label for label in REGIONS[name]) for name in regions]
    return torch.tensor(bits, dtype=torch.uint8)[:, None, None]


def region_targets(label: Tensor, bits: Tensor) -> Tensor:
    """Return (B, R, H, W) float32 targets in {0, 1} for (B, H, W) uint8 labels, without a slow lookup table."""
    return torch.bitwise_right_shift(bits, label[:, None]).bitwise_and_(1).float()


def _bce_sums(logits: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    """Binary cross-entropy with logits, the poster's loss."""
    return _pixel_sums(binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=pos_weight))


def _focal_sums(logits: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    """Cross-entropy, down-weighted where the network is right (Lin et al. 2017, doi:10.1109/ICCV.2017.324)."""
    pixels = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    focused = (1 - torch.exp(-pixels)) ** FOCUS * pixels  # exp(-pixels) is the probability of what is true
    return _pixel_sums(focused if pos_weight is None else focused * (1 + (pos_weight - 1) * targets))


def _pixel_sums(pixels: Tensor) -> Tensor:
    """(B, R, H, W) -> (R, 2): sum and number of pixels."""
    total = pixels.sum(dim=(0, 2, 3))
    return torch.stack([total, torch.full_like(total, pixels.numel() // pixels.shape[1])], dim=1)


def _mean(sums: Tensor) -> Tensor:
    return sums[:, 0] / sums[:, 1]


def _overlap_sums(logits: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    """(R, 3): soft true positive, predicted, true pixels."""
    inside = logits.sigmoid()
    return torch.stack([(inside * targets).sum((0, 2, 3)), inside.sum((0, 2, 3)), targets.sum((0, 2, 3))], dim=1)


def _dice(sums: Tensor) -> Tensor:
    """1 - soft Dice over the whole batch (Milletari et al. 2016, doi:10.1109/3DV.2016.79).

    Over the batch, not per slice: most slices hold no tumor, and their Dice would be noise. +1 pixel keeps an empty
    batch finite.
    """
    both, predicted, true = sums.unbind(1)
    return 1 - (2 * both + 1) / (predicted + true + 1)


def _tversky(sums: Tensor) -> Tensor:
    """1 - Tversky index: a missed pixel costs more than a false one (Salehi et al. 2017, arXiv:1706.05721)."""
    both, predicted, true = sums.unbind(1)
    wrong = MISS_WEIGHT * (true - both) + (1 - MISS_WEIGHT) * (predicted - both)
    return 1 - (both + 1) / (both + wrong + 1)


_BCE = Term(_bce_sums, _mean, 2, is_mean=True)
_DICE = Term(_overlap_sums, _dice, 3, is_mean=False)
LOSSES: dict[str, tuple[Term, ...]] = {
    "bce": (_BCE,),
    "dice": (_DICE,),
    "bce_dice": (_BCE, _DICE),  # as nnU-Net does with cross-entropy (Isensee et al. 2021)
    "focal": (Term(_focal_sums, _mean, 2, is_mean=True),),
    "tversky": (Term(_overlap_sums, _tversky, 3, is_mean=False),),
}
