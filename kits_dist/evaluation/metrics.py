"""Label maps -> counts -> Dice. Counts add up over slices, batches, ranks and cases; scores do not.

A case is scored over its whole volume, as the challenge does. Definitions: README, "How it scores".
"""

from typing import NamedTuple

import numpy as np

# Figures of a region that have a mean over cases.
MEANS = ("dice", "surface_dice", "dice_slice", "hd95_mm", "assd_mm")
SIZES = ("under_5_ml", "5_to_30_ml", "over_30_ml")  # of a true lesion
# Means over something else than cases: a case's figure counts as often as its other figure says.
WEIGHTS = {"dice_slice": "slices"} | {f"{size}_dice": size for size in SIZES}

Figures = dict[str, float | None]  # None: the case does not have that figure


class CaseScore(NamedTuple):
    case_id: str
    regions: dict[str, Figures]
    lesions: Figures  # of tumor; empty where tumor is not scored
    findings: Figures = {}  # what the prediction says of the patient, in ml and mm (findings.py)

    def row(self) -> Figures:
        """{column of cases.csv: value}."""
        row = {f"{name}_{key}": value for name, figures in self.regions.items() for key, value in figures.items()}
        row |= {f"lesions_{key}": value for key, value in self.lesions.items()}
        return row | {f"findings_{key}": value for key, value in self.findings.items()}


def slice_counts(
    predicted: np.ndarray, truth: np.ndarray, regions: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Agreement of two label maps of one case, slice by slice.

    predicted, truth   (D, H, W) uint8
    returns            {region: (D, 3) int64 true positive, false positive, false negative voxels}
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"slice_counts: predicted is {predicted.shape} but truth is {truth.shape}; both must be (D, H, W)."
        )
    pairs = np.zeros((len(predicted), 16), np.int64)
    for row, a, b in zip(pairs, predicted, truth, strict=True):  # by slice: bincount turns its input into int64
        row += np.bincount((a * 4 + b).ravel(), minlength=16)
    pairs = pairs.reshape(-1, 4, 4)
    counts = {}
    for name, labels in regions.items():
        inside = list(labels)
        both = pairs[:, inside][:, :, inside].sum(axis=(1, 2))
        predicted_in, truth_in = pairs[:, inside].sum(axis=(1, 2)), pairs[:, :, inside].sum(axis=(1, 2))
        counts[name] = np.stack([both, predicted_in - both, truth_in - both], axis=1)
    return counts


def volume_counts(
    predicted: np.ndarray, truth: np.ndarray, regions: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """`slice_counts` summed over the slices of the case: {region: (3,) int64}."""
    return {name: rows.sum(axis=0) for name, rows in slice_counts(predicted, truth, regions).items()}


def dice(counts: np.ndarray) -> np.ndarray:
    """(..., 3) counts -> (...) Dice 2|A and B| / (|A| + |B|): 1 where both are empty, 0 where exactly one is
    (KiTS21/23 rules)."""
    tp, fp, fn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    total = 2 * tp + fp + fn
    return np.where(total > 0, 2 * tp / np.maximum(total, 1), 1.0)


def mean_dice(counts: np.ndarray) -> np.ndarray:
    """Return the mean over cases of the Dice of each case: (cases, ..., 3) counts -> (...)."""
    return dice(counts).mean(axis=0)


def size_of(lesion_ml: float) -> str:
    """Of SIZES; 5 and 30 ml themselves are in the middle one."""
    return SIZES[int(lesion_ml >= 5) + int(lesion_ml > 30)]
