"""Region logits -> one number. Targets are nested regions, one sigmoid each, made from the label map."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kits_dist.labels import LABELS, REGIONS


class RegionLoss(nn.Module):
    """(B, R, H, W) logits and (B, H, W) uint8 labels -> scalar float32, mean over slices, regions and pixels."""

    def __init__(self, name: str, regions: tuple[str, ...], pos_weight: tuple[float, ...] | None = None):
        super().__init__()
        self.function, self.regions = LOSSES[name], regions
        self.register_buffer("table", region_table(regions), persistent=False)
        weight = None if pos_weight is None else torch.tensor(pos_weight)[:, None, None]
        self.register_buffer("pos_weight", weight, persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return self.function(logits.float(), region_targets(label, self.table), self.pos_weight)


def region_table(regions: tuple[str, ...]) -> Tensor:
    """(4, R) float32: row = label, column = region, 1 where the label belongs to the region."""
    table = torch.zeros(len(LABELS), len(regions))
    for column, name in enumerate(regions):
        table[list(REGIONS[name]), column] = 1
    return table


def region_targets(label: Tensor, table: Tensor) -> Tensor:
    """(B, H, W) uint8 labels -> (B, R, H, W) float32 in {0, 1}."""
    return table[label.int()].permute(0, 3, 1, 2)


def bce(logits: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    """Binary cross-entropy with logits, the poster's loss."""
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight)


def dice(logits: Tensor, targets: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    """1 - soft Dice per region over the whole batch (Milletari et al. 2016, doi:10.1109/3DV.2016.79), averaged over
    regions.

    Over the batch, not per slice: most slices hold no tumor, and their Dice would be noise. +1 pixel keeps an empty
    batch finite.
    """
    inside = logits.sigmoid()
    both = (inside * targets).sum(dim=(0, 2, 3))
    total = (inside + targets).sum(dim=(0, 2, 3))
    return (1 - (2 * both + 1) / (total + 1)).mean()


def bce_dice(logits: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    """Sum of both, as nnU-Net does with cross-entropy (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z)."""
    return bce(logits, targets, pos_weight) + dice(logits, targets)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {"bce": bce, "dice": dice, "bce_dice": bce_dice}
