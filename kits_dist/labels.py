"""KiTS label ids, the challenge's nested regions, and how region probabilities become a label map.

Source: the challenge's hierarchical evaluation classes, kits23/configuration/labels.py (neheller/kits23).
"""

from collections.abc import Iterable

import numpy as np

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


def regions_to_labels(inside: np.ndarray, regions: tuple[str, ...]) -> np.ndarray:
    """(R, ...) bool, one per region -> (...) uint8 label map.

    Painted in the order of REGIONS, later over earlier; mass and tumor only inside kidney_and_mass where that is
    predicted.
    """
    if inside.shape[0] != len(regions):
        raise ValueError(f"regions_to_labels: {inside.shape[0]} maps for {len(regions)} regions {regions}.")
    labels = np.zeros(inside.shape[1:], np.uint8)
    within = inside[regions.index("kidney_and_mass")] if "kidney_and_mass" in regions else True
    for name in REGIONS:
        if name in regions:
            labels[inside[regions.index(name)] & within] = PAINT[name]
    return labels


def slice_with_most_tumor(labels: np.ndarray) -> int:
    """Return the index of the slice of a (D, H, W) label map with the most tumor, or foreground where there is none."""
    shown = labels == TUMOR
    if not shown.any():
        shown = labels > BACKGROUND
    return int(shown.sum(axis=(1, 2)).argmax())
