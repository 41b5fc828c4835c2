"""Compare two systems on the same cases: the difference of every metric, its interval and a test against chance."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.distributed.ranks import Ranks
from kits_dist.evaluation.bootstrap import Bootstrap
from kits_dist.evaluation.metrics import MEANS, WEIGHTS, Metrics, column
from kits_dist.evaluation.score_folder import Truth, score_folder
from kits_dist.evaluation.tables import FEW, TOO_FEW, read_cases
from kits_dist.labels import PLAIN, REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed

NOTE = (
    "a, b: means as in summary.json, over the pairs, a pair being a case where the metric is defined for both "
    "(dice_slice and dice_poster: over their slices); difference: a - b; ci95: bootstrap over cases, 10,000 resamples; "
    "p: Wilcoxon signed-rank test of the differences by case, two-sided, not corrected for the number of tests."
)


def compare_systems(
    names: tuple[str, ...], split: str, output: str, truth: Truth | None, group: Ranks, workers: int = 0
) -> None:
    """Print the differences of A and B, and write them to output/comparison.json. All processes must call it.

    names    A and B: folders with cases.csv, runs with evaluation/SPLIT/cases.csv or, with `truth`, label maps
    truth    what label maps are scored against first; their tables become output/a and output/b

    Raises MissingInput / InputError for tables that are missing or of different cases.
    """
    if len(names) != 2 or (truth and not output):
        raise InputError("compare=[A,B] takes two folders; with truth=DIR it also needs output=DIR.")
    folders = [
        _scored(name, letter, split, output, truth, group, workers) for name, letter in zip(names, "ab", strict=True)
    ]
    if group.rank:
        return
    a, b = (read_cases(folder / "cases.csv") for folder in folders)
    kind, reference, stage = zip(*(_origin(folder / "summary.json") for folder in folders), strict=True)
    kinds = set(kind) - {"unknown"}
    if len(kinds) > 1:
        raise InputError(f"compare: A was scored on {kind[0]} cases, B on {kind[1]}. Score both on the same cases.")

    notes = []
    if stage[0] != stage[1]:
        notes.append(f"A is {stage[0]}, B {stage[1]}")
    if reference[0] != reference[1]:
        notes.append(f"A was scored against reference={reference[0]}, B against reference={reference[1]}")
    result = {
        "a": names[0],
        "b": names[1],
        "data": min(kinds, default="unknown"),
        "cases": len(a),
        "notes": notes,
        "regions": compare(a, b, names),
        "definition": NOTE,
    }
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        files.write_json(Path(output) / "comparison.json", result)
    print(as_text(result))


def _scored(name: str, letter: str, split: str, output: str, truth: Truth | None, group: Ranks, workers: int) -> Path:
    """Return the folder with the tables of A or B; label maps are scored into output/LETTER first."""
    for folder in (Path(name), Path(name) / "evaluation" / split):
        if (folder / "cases.csv").is_file():
            return folder
    if truth is None:
        raise MissingInput(
            f"compare={name}: no cases.csv there, nor in evaluation/{split}/. Evaluate it first, or add truth=DIR "
            "output=DIR where it is a folder of label maps."
        )
    folder = Path(output) / letter
    score_folder(Path(name), truth, folder, group, workers, "compare", f"{letter.upper()}: {name}")
    return folder


def _origin(path: Path) -> tuple[str, str, str]:
    """Return what a table of scores was made of: the kind of data, the reference, and the stage of a cascade."""
    if not path.is_file():
        return "unknown", "unknown", "a whole prediction"
    summary = files.read_json(path)
    if "data" not in summary:
        raise InputError(f"{path}: cannot be read, it has no data. Run evaluate again.")
    return summary["data"], summary.get("reference", "file"), summary.get("stage", "a whole prediction")


def compare(a: dict[str, Metrics], b: dict[str, Metrics], names: tuple[str | Path, str | Path]) -> dict:
    """Compare two tables of cases.csv.

    a, b      {case: {column: value}}, as `tables.read_cases` returns them
    names     of the two systems, for messages
    returns   {region: {metric: {"a", "b", "difference", "difference_ci95", "p", "pairs"}}}

    Raises InputError where the cases differ, or no region is in both.
    """
    for mine, other, name in ((a, b, names[1]), (b, a, names[0])):
        lacking = sorted(set(mine) - set(other))
        if lacking:
            raise InputError(f"compare: {name} has no {listed(lacking)}. Score both on the same cases.")
    cases = sorted(a)
    ours, theirs = [a[case] for case in cases], [b[case] for case in cases]
    bootstrap = Bootstrap(len(cases))

    regions: dict[str, dict] = {}
    for region in REGIONS | PLAIN:
        for metric in MEANS:
            key = f"{region}_{metric}"
            if key in ours[0] and key in theirs[0]:
                pair = _weighted(ours, region, metric), _weighted(theirs, region, metric)
                regions.setdefault(region, {})[metric] = _paired(*pair, bootstrap)
    if not regions:
        raise InputError(f"compare: {names[0]} and {names[1]} have no region in common.")
    return regions


class Weighted(NamedTuple):
    """A metric of every case, NaN where it is undefined, and the weight of each case in its mean."""

    values: np.ndarray
    weights: np.ndarray

    def sums(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numerator and the denominator of the mean over the pairs, by case."""
        return np.where(pairs, np.nan_to_num(self.values) * self.weights, 0), np.where(pairs, self.weights, 0)


def _weighted(rows: list[Metrics], region: str, metric: str) -> Weighted:
    values = column(rows, f"{region}_{metric}")
    weight = f"{region}_{WEIGHTS.get(metric)}"  # of slices, which tables of an earlier version may lack
    return Weighted(values, column(rows, weight) if weight in rows[0] else np.ones(len(rows)))


def _paired(a: Weighted, b: Weighted, bootstrap: Bootstrap) -> dict:
    pairs = ~np.isnan(a.values) & ~np.isnan(b.values)
    if not pairs.any():
        return dict.fromkeys(("a", "b", "difference", "difference_ci95", "p")) | {"pairs": 0}
    sums = a.sums(pairs), b.sums(pairs)
    mean_a, mean_b = (float(above.sum() / below.sum()) for above, below in sums)
    return {
        "a": mean_a,
        "b": mean_b,
        "difference": mean_a - mean_b,
        "difference_ci95": bootstrap.interval_of_difference(*sums),
        "p": wilcoxon_p((a.values - b.values)[pairs]),
        "pairs": int(pairs.sum()),
    }


def wilcoxon_p(differences: np.ndarray) -> float:
    """Return p of the two-sided signed-rank test without the differences of 0 (Wilcoxon 1945); 1 where all are 0."""
    from scipy.stats import wilcoxon  # takes half a second to import

    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)  # pyright: ignore[reportAttributeAccessIssue]  scipy declares a tuple


def as_text(comparison: dict) -> str:
    """Format a comparison as a table for the terminal."""
    lines = [
        f"A: {comparison['a']}   B: {comparison['b']}",
        f"data: {comparison['data']}   cases: {comparison['cases']}",
    ]
    lines += [f"note: {note}" for note in comparison["notes"]]
    head = ("region", "metric", "A", "B", "A - B", "95 % interval", "p", "pairs")
    lines.append("{:<16} {:<13} {:>7} {:>7} {:>8}  {:<18} {:>7} {:>6}".format(*head))
    for region, metrics in comparison["regions"].items():
        for metric, row in metrics.items():
            if not row["pairs"]:
                lines.append(f"{region:<16} {metric:<13} undefined for A or B in every case")
                continue
            low, high = row["difference_ci95"]
            interval = f"{low:+.3f} .. {high:+.3f}" if row["pairs"] >= FEW else TOO_FEW
            lines.append(
                f"{region:<16} {metric:<13} {row['a']:>7.3f} {row['b']:>7.3f} {row['difference']:>+8.3f}  "
                f"{interval:<18} {row['p']:>7.2g} {row['pairs']:>6}"
            )
    return "\n".join(lines)
