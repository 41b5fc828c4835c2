"""KiTS label ids, the challenge's nested regions, and how region probabilities become a label map.

Source: the challenge's hierarchical evaluation classes, kits23/configuration/labels.py (neheller/kits23).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")

BACKGROUND, KIDNEY, TUMOR, CYST = 0, 1, 2, 3
LABELS = {"background": BACKGROUND, "kidney": KIDNEY, "tumor": TUMOR, "cyst": CYST}

# Nested, always in this order: what a network predicts, one sigmoid each, and what the challenge scores.
REGIONS: dict[str, tuple[int, ...]] = {
    "kidney_and_mass": (KIDNEY, TUMOR, CYST),
    "mass": (TUMOR, CYST),
    "tumor": (TUMOR,),
}
# Reported beside them, by plain label.
PLAIN: dict[str, tuple[int, ...]] = {"kidney": (KIDNEY,), "cyst": (CYST,)}

# Of surface Dice, in mm (HEC_SD_TOLERANCES_MM); plain labels have none.
TOLERANCES_MM = {
    "kidney_and_mass": 1.0330772532390826,
    "mass": 1.1328796488598762,
    "tumor": 1.1498198361434828,
}

# RGB, from the Okabe-Ito palette, which stays apart for colour-blind readers.
COLORS = {"kidney_and_mass": (0, 158, 115), "mass": (240, 228, 66), "tumor": (213, 94, 0)}
# By plain label, for surfaces.
LABEL_COLORS = {"kidney": COLORS["kidney_and_mass"], "cyst": COLORS["mass"], "tumor": COLORS["tumor"]}

PAINT = {"kidney_and_mass": KIDNEY, "mass": CYST, "tumor": TUMOR}  # painted in the order of REGIONS


def scored_regions(regions: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """What a model of `regions` can be scored on: name -> labels. What it cannot predict is absent, never 0 or 1."""
    have = set(regions)
    scored = {name: labels for name, labels in REGIONS.items() if name in have}
    if {"kidney_and_mass", "mass"} <= have:
        scored["kidney"] = PLAIN["kidney"]
    if {"mass", "tumor"} <= have:
        scored["cyst"] = PLAIN["cyst"]
    return scored


def hardest(regions: Iterable[str]) -> str:
    """The innermost of them, by which cases are ranked."""
    return [name for name in REGIONS if name in set(regions)][-1]


def regions_to_labels(inside: Array, regions: tuple[str, ...]) -> Array:
    """Convert one mask per region to a label map, on the device that holds the masks.

    inside   (R, ...) bool, NumPy array or tensor
    Returns (...) uint8 labels. Regions are painted in the order of REGIONS, later over earlier; mass and tumor only
    inside kidney_and_mass where that is predicted.
    """
    if len(inside) != len(regions):
        raise ValueError(f"regions_to_labels: {len(inside)} masks for {len(regions)} regions {regions}.")
    as_uint8: Any = inside.view(np.uint8) if isinstance(inside, np.ndarray) else inside.byte()
    masks = dict(zip(regions, as_uint8, strict=True))
    kidney_and_mass = masks.get("kidney_and_mass", 1)

    # arithmetic on uint8: on a CPU ten times as fast as assigning by mask, on a GPU no synchronization
    labels = masks[regions[0]] * 0
    for name, label in PAINT.items():
        if name in masks:
            mask = masks[name] * kidney_and_mass
            labels = labels * (1 - mask) + label * mask
    return labels


def slice_with_most_tumor(labels: np.ndarray) -> int:
    """Return the index of the slice of a (D, H, W) label map with the most tumor, or foreground where there is none."""
    shown = labels == TUMOR
    if not shown.any():
        shown = labels > BACKGROUND
    return int(shown.sum(axis=(1, 2)).argmax())
