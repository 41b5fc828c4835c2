"""The metrics of all cases -> summary.json: means, their intervals, and what each mean is taken over."""

from typing import Any

import numpy as np

from kits_dist.evaluation import poster
from kits_dist.evaluation.bootstrap import Bootstrap
from kits_dist.evaluation.metrics import MEANS, SIZES, WEIGHTS, CaseScore, Metrics, column, dice
from kits_dist.labels import PLAIN, REGIONS, TOLERANCES_MM

NOTE = (
    "dice: 2|A and B| / (|A| + |B|) over the whole volume of a case, native grid, then the mean over cases; both empty "
    "1, one empty 0 (KiTS21/KiTS23 rules). surface_dice: share of both surfaces' area within tolerance_mm of the other "
    "(DeepMind's definition, the challenge's tolerances). dice_pooled: counts of all cases summed first. dice_slice: "
    f"mean over all slices with the region in truth or prediction. {poster.NOTE} "
    "hd95_mm, assd_mm: weighted by area, mean over the distance_cases where both sides have the region; misses: cases "
    "where exactly one side has it. Lesions: components (26 neighbors) of tumor, found when the prediction touches "
    "them. ci95: bootstrap over cases, 10,000 resamples."
)


def summarize(scores: list[CaseScore], data: str, split: str) -> dict[str, Any]:
    """Return the content of summary.json. Raises ValueError for an empty list."""
    if not scores:
        raise ValueError("summarize: no case was scored.")
    bootstrap = Bootstrap(len(scores))
    summary: dict[str, Any] = {"data": data, "split": split, "cases": len(scores), "regions": {}}
    for name in scores[0].regions:
        summary["regions"][name] = _region(name, [score.regions[name] for score in scores], bootstrap)
    if scores[0].lesions:
        summary["lesions"] = _lesions([score.lesions for score in scores], bootstrap)
    return summary | {"definition": NOTE}


def _region(name: str, rows: list[Metrics], bootstrap: Bootstrap) -> dict[str, Any]:
    metrics: dict[str, Any] = {"labels": list((REGIONS | PLAIN)[name])}
    if name in TOLERANCES_MM:
        metrics["tolerance_mm"] = TOLERANCES_MM[name]
    for key in (*MEANS, "dice_poster_empty"):  # which measures the cases, and no system
        if key in rows[0]:
            metrics |= _mean(rows, key, key, bootstrap)

    counts = np.stack([column(rows, key) for key in ("true_positive", "false_positive", "false_negative")])
    tp, fp, fn = counts
    return metrics | {
        "dice_pooled": float(dice(counts.sum(axis=1))),
        "dice_pooled_ci95": bootstrap.interval(2 * tp, 2 * tp + fp + fn),
        "dice_median": float(np.median(column(rows, "dice"))),
        "slices": _total(rows, "slices"),
        **({"poster_slices": _total(rows, "poster_slices")} if "poster_slices" in rows[0] else {}),
        "cases_with_region": int((tp + fn > 0).sum()),
        "distance_cases": sum(row["hd95_mm"] is not None for row in rows),
        "misses": _total(rows, "miss"),
    }


def _lesions(rows: list[Metrics], bootstrap: Bootstrap) -> dict[str, Any]:
    true, found, wrong = (column(rows, key) for key in ("true", "found", "false_positives"))
    metrics: dict[str, Any] = {
        "true": _total(rows, "true"),
        "found": _total(rows, "found"),
        "sensitivity": float(found.sum() / true.sum()) if true.any() else None,
        "sensitivity_ci95": bootstrap.interval(found, true),
        "false_positives": _total(rows, "false_positives"),
        "false_positives_per_case": float(wrong.mean()),
        "false_positives_per_case_ci95": bootstrap.interval(wrong),
    }
    for size in SIZES:
        counts = {"true": _total(rows, size), "found": _total(rows, f"{size}_found")}
        metrics[size] = counts | _mean(rows, f"{size}_dice", "dice", bootstrap)
    return metrics


def _mean(rows: list[Metrics], key: str, name: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return {name: mean over the cases where the metric is defined, name_ci95: its interval}; None for no case."""
    values = column(rows, key)
    weights = np.where(np.isnan(values), 0, column(rows, WEIGHTS[key]) if key in WEIGHTS else 1)
    weighted = np.nan_to_num(values) * weights
    mean = float(weighted.sum() / weights.sum()) if weights.any() else None
    return {name: mean, f"{name}_ci95": bootstrap.interval(weighted, weights)}


def _total(rows: list[Metrics], key: str) -> float:
    """Return a sum of counts: an integer, except for means over several references."""
    total = float(column(rows, key).sum())
    return int(total) if total.is_integer() else total
