"""Label maps -> counts -> scores. Counts add up over slices, batches and ranks; scores do not.

A case is scored over its whole volume, as the challenge does. Definitions: README, "How it scores".
"""

import numpy as np
import torch
from torch import Tensor


def volume_counts(
    predicted: np.ndarray, truth: np.ndarray, regions: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Agreement of two label maps of one case.

    predicted, truth   (D, H, W) uint8
    returns            {region: (3,) int64 true positive, false positive, false negative voxels}
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"volume_counts: predicted is {predicted.shape} but truth is {truth.shape}; both must be (D, H, W)."
        )
    pairs = np.zeros(16, np.int64)
    for a, b in zip(predicted, truth, strict=True):  # by slice: bincount turns its input into int64
        pairs += np.bincount((a * 4 + b).ravel(), minlength=16)
    pairs = pairs.reshape(4, 4)
    counts = {}
    for name, labels in regions.items():
        inside = list(labels)
        both = pairs[np.ix_(inside, inside)].sum()
        counts[name] = np.array([both, pairs[inside].sum() - both, pairs[:, inside].sum() - both])
    return counts


def batch_counts(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, R, H, W) logits and {0, 1} targets -> (B, R, 3) int64 pixels: true pos., false pos., false neg."""
    predicted, truth = logits >= 0, targets > 0.5  # probability >= 0.5
    both = (predicted & truth).sum(dim=(2, 3))
    return torch.stack([both, predicted.sum(dim=(2, 3)) - both, truth.sum(dim=(2, 3)) - both], dim=-1)


def dice(counts: np.ndarray) -> np.ndarray:
    """(..., 3) counts -> (...) Dice 2|A and B| / (|A| + |B|): 1 where both are empty, 0 where exactly one is
    (KiTS21/23 rules)."""
    tp, fp, fn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    total = 2 * tp + fp + fn
    return np.where(total > 0, 2 * tp / np.maximum(total, 1), 1.0)


def bootstrap_interval(values: np.ndarray, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """95 % interval of the mean over cases, by resampling cases (percentile method, Efron 1979)."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
