"""The poster's measure: the mean of the Dice of all axial slices, in which nothing predicted for nothing scores 1.

Source: the code and the report of H. Beheshtifard's "Kidney Tumor Segmentation" (2023). The kidney, masses included, is
scored on every slice; the tumor on the slices in which the same system predicted some kidney. Most slices hold none of
either, so an empty prediction scores high. That score is always reported together with the system's own.
"""

import numpy as np

from kits_dist.evaluation.metrics import Metrics, dice

NOTE = (
    "dice_poster: mean over all axial slices of all cases, both empty 1; tumor: over the slices with predicted "
    "kidney_and_mass. dice_poster_empty: what predicting nothing scores on the same slices."
)


def poster_metrics(counts: dict[str, np.ndarray], num_slices: int) -> dict[str, Metrics]:
    """Return {region: dice_poster, dice_poster_empty, poster_slices} of a case; empty where the kidney is not scored.

    counts       {region: (d, 3) int64 of `slice_counts`}; slices that are left out are empty in prediction and truth
    num_slices   axial slices of the scan

    A tumor outside the predicted kidney need not be dropped: a label map cannot hold one.
    """
    if "kidney_and_mass" not in counts:
        return {}
    kidney = counts["kidney_and_mass"]
    empty = np.zeros((num_slices - len(kidney), 3), np.int64)
    with_kidney = kidney[:, :2].any(axis=1)
    scored = {"kidney_and_mass": np.concatenate([kidney, empty])}
    if "tumor" in counts:
        scored["tumor"] = counts["tumor"][with_kidney]
    return {name: _metrics(rows) for name, rows in scored.items()}


def _metrics(rows: np.ndarray) -> Metrics:
    """rows: (n, 3) counts of the slices that are scored."""
    truth_is_empty = rows[:, 0] + rows[:, 2] == 0
    return {
        "dice_poster": float(dice(rows).mean()) if len(rows) else None,
        "dice_poster_empty": float(truth_is_empty.mean()) if len(rows) else None,
        "poster_slices": len(rows),
    }
