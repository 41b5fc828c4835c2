"""Label maps -> counts -> Dice. Counts add up over slices, batches, ranks and cases; scores do not.

A case is scored over its whole volume, as in the challenge. All definitions: kits_dist/evaluation/README.md.
"""

from typing import NamedTuple

import numpy as np

# Metrics of a region that are averaged over cases.
MEANS = ("dice", "surface_dice", "dice_slice", "dice_poster", "hd95_mm", "assd_mm")
SIZES = ("under_5_ml", "5_to_30_ml", "over_30_ml")  # of a true lesion
# Metrics averaged over something else than cases: each case is weighted by another of its metrics.
WEIGHTS = {"dice_slice": "slices", "dice_poster": "poster_slices", "dice_poster_empty": "poster_slices"} | {
    f"{size}_dice": size for size in SIZES
}

Metrics = dict[str, float | None]  # None: undefined for the case, e.g. a distance where one mask is empty


class CaseScore(NamedTuple):
    """All metrics of one case."""

    case_id: str
    regions: dict[str, Metrics]
    lesions: Metrics  # of tumor; empty where tumor is not scored
    # volumes and sizes in the prediction, in ml and mm (inference/measurements.py); nothing writes into the default
    measurements: Metrics = {}  # noqa: RUF012

    def row(self) -> Metrics:
        """Return {column of cases.csv: value}."""
        row = {f"{name}_{key}": value for name, metrics in self.regions.items() for key, value in metrics.items()}
        row |= {f"lesions_{key}": value for key, value in self.lesions.items()}
        return row | {f"findings_{key}": value for key, value in self.measurements.items()}


def column(rows: list[Metrics], key: str) -> np.ndarray:
    """Return one metric of all cases as (cases,) float64, NaN where it is undefined."""
    return np.array([np.nan if row[key] is None else row[key] for row in rows], float)


def slice_counts(
    predicted: np.ndarray, truth: np.ndarray, regions: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Count the agreement of two label maps of one case, slice by slice.

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
    """Sum `slice_counts` over the slices of the case: {region: (3,) int64}."""
    return {name: rows.sum(axis=0) for name, rows in slice_counts(predicted, truth, regions).items()}


def dice(counts: np.ndarray) -> np.ndarray:
    """Return 2|A and B| / (|A| + |B|): (..., 3) counts -> (...) Dice.

    It is 1 where both masks are empty and 0 where exactly one is (rules of KiTS21 and KiTS23).
    """
    tp, fp, fn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    total = 2 * tp + fp + fn
    return np.where(total > 0, 2 * tp / np.maximum(total, 1), 1.0)


def mean_dice(counts: np.ndarray) -> np.ndarray:
    """Return the mean over cases of the Dice of each case: (cases, ..., 3) counts -> (...)."""
    return dice(counts).mean(axis=0)


def size_of(lesion_ml: float) -> str:
    """Return the member of SIZES for a lesion; 5 and 30 ml themselves belong to the middle one."""
    return SIZES[int(lesion_ml >= 5) + int(lesion_ml > 30)]
