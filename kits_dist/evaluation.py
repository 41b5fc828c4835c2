"""Cases of predicted and true label maps -> the tables and files of an evaluation."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist import files
from kits_dist.labels import PLAIN, REGIONS
from kits_dist.metrics import bootstrap_interval, dice, volume_counts

NOTE = (
    "Dice: 2|A and B| / (|A| + |B|) over the whole volume of a case, native grid, then the mean over cases; both "
    "empty 1, one "
    "empty 0 (KiTS21/KiTS23 rules). dice_pooled sums the counts of all cases first. Intervals: bootstrap over "
    "cases, 95 %."
)


class CaseScore(NamedTuple):
    case_id: str
    counts: dict[str, np.ndarray]  # region -> (3,) true positive, false positive, false negative voxels
    voxel_ml: float


def score_case(
    case_id: str,
    predicted: np.ndarray,
    truth: np.ndarray,
    spacing_mm: tuple[float, ...],
    regions: dict[str, tuple[int, ...]],
) -> CaseScore:
    return CaseScore(case_id, volume_counts(predicted, truth, regions), float(np.prod(spacing_mm)) / 1000)


def summarize(scores: list[CaseScore], data: str, split: str) -> dict:
    """The content of summary.json. Raises ValueError for no cases."""
    if not scores:
        raise ValueError("summarize: no case was scored.")
    regions = {}
    for name in scores[0].counts:
        counts = np.stack([score.counts[name] for score in scores])
        values = dice(counts)
        regions[name] = {
            "labels": list({**REGIONS, **PLAIN}[name]),
            "dice": float(values.mean()),
            "dice_ci95": list(bootstrap_interval(values)),
            "dice_pooled": float(dice(counts.sum(axis=0))),
            "dice_median": float(np.median(values)),
            "cases_with_region": int((counts[:, 0] + counts[:, 2] > 0).sum()),
        }
    return {"data": data, "split": split, "cases": len(scores), "regions": regions, "definition": NOTE}


def write_tables(folder: Path, scores: list[CaseScore], summary: dict) -> None:
    """cases.csv (a row a case, every figure) and summary.json, each in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(scores[0].counts)
    columns = ["dice", "true_positive", "false_positive", "false_negative", "truth_ml", "predicted_ml"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", *(f"{name}_{column}" for name in names for column in columns)])
    for score in scores:
        row: list = [score.case_id]
        for name in names:
            tp, fp, fn = (int(n) for n in score.counts[name])
            ml = [f"{(tp + other) * score.voxel_ml:.3f}" for other in (fn, fp)]
            row += [f"{float(dice(score.counts[name])):.6f}", tp, fp, fn, *ml]
        table.writerow(row)
    files.write_bytes(folder / "cases.csv", text.getvalue().encode())
    files.write_json(folder / "summary.json", summary)


def as_text(summary: dict) -> str:
    """The Dice table a person reads."""
    lines = [
        f"data: {summary['data']}   split: {summary['split']}   cases: {summary['cases']}",
        f"{'region':<16} {'Dice':>6}  {'95 % interval':<15} {'median':>6} {'pooled':>7} {'cases with it':>14}",
    ]
    for name, row in summary["regions"].items():
        low, high = row["dice_ci95"]
        lines.append(
            f"{name:<16} {row['dice']:>6.3f}  {low:.3f} .. {high:.3f}  {row['dice_median']:>6.3f} "
            f"{row['dice_pooled']:>7.3f} "
            f"{row['cases_with_region']:>14}"
        )
    return "\n".join(lines)
