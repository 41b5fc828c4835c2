"""Label ids of KiTS, the nested regions of the challenge, and how region masks become a label map.

Source: the hierarchical evaluation classes of the challenge, kits23/configuration/labels.py (neheller/kits23).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")

BACKGROUND, KIDNEY, TUMOR, CYST = 0, 1, 2, 3
LABELS = {"background": BACKGROUND, "kidney": KIDNEY, "tumor": TUMOR, "cyst": CYST}

# Nested, always in this order: what a network predicts, with one sigmoid each, and what the challenge scores.
REGIONS: dict[str, tuple[int, ...]] = {
    "kidney_and_mass": (KIDNEY, TUMOR, CYST),
    "mass": (TUMOR, CYST),
    "tumor": (TUMOR,),
}
# Scored in addition to the regions: single labels.
PLAIN: dict[str, tuple[int, ...]] = {"kidney": (KIDNEY,), "cyst": (CYST,)}

# Tolerances of surface Dice in mm (HEC_SD_TOLERANCES_MM); single labels have none.
TOLERANCES_MM = {
    "kidney_and_mass": 1.0330772532390826,
    "mass": 1.1328796488598762,
    "tumor": 1.1498198361434828,
}

# RGB, from the Okabe-Ito palette, which color-blind readers can tell apart.
COLORS = {"kidney_and_mass": (0, 158, 115), "mass": (240, 228, 66), "tumor": (213, 94, 0)}
# For surfaces, which are drawn per label.
LABEL_COLORS = {"kidney": COLORS["kidney_and_mass"], "cyst": COLORS["mass"], "tumor": COLORS["tumor"]}

# The label that regions_to_labels writes for each region, in the order of REGIONS.
REGION_LABEL = {"kidney_and_mass": KIDNEY, "mass": CYST, "tumor": TUMOR}


def scored_regions(regions: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return what a model of `regions` can be scored on, as name -> labels; what it cannot predict is left out."""
    have = set(regions)
    scored = {name: labels for name, labels in REGIONS.items() if name in have}
    if {"kidney_and_mass", "mass"} <= have:
        scored["kidney"] = PLAIN["kidney"]
    if {"mass", "tumor"} <= have:
        scored["cyst"] = PLAIN["cyst"]
    return scored


def innermost_region(regions: Iterable[str]) -> str:
    """Return the innermost of the regions, by which cases are ranked."""
    return [name for name in REGIONS if name in set(regions)][-1]


def regions_to_labels(inside: Array, regions: tuple[str, ...]) -> Array:
    """Convert one mask per region to a label map, on the device that holds the masks.

    inside    (R, ...) bool, one mask per region of `regions`; NumPy array or tensor
    returns   (...) uint8 labels

    Later regions overwrite earlier ones, in the order of REGIONS; mass and tumor only inside kidney_and_mass when that
    is predicted.
    """
    if len(inside) != len(regions):
        raise ValueError(f"regions_to_labels: {len(inside)} masks for {len(regions)} regions {regions}.")
    as_uint8: Any = inside.view(np.uint8) if isinstance(inside, np.ndarray) else inside.byte()
    masks = dict(zip(regions, as_uint8, strict=True))
    kidney_and_mass = masks.get("kidney_and_mass", 1)

    # arithmetic on uint8: on a CPU ten times as fast as assigning by mask, on a GPU no synchronization
    labels = masks[regions[0]] * 0
    for name, label in REGION_LABEL.items():
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
