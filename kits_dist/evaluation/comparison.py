"""Compare two systems on the same cases: the difference of every metric, its interval and a test against chance."""

from pathlib import Path

import numpy as np

from kits_dist.distributed.ranks import Ranks
from kits_dist.evaluation.bootstrap import Bootstrap
from kits_dist.evaluation.metrics import MEANS, Metrics, column
from kits_dist.evaluation.score_folder import Truth, score_folder
from kits_dist.evaluation.tables import read_cases
from kits_dist.labels import PLAIN, REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed

NOTE = (
    "difference: mean over the pairs of A's metric minus B's, a pair being a case where it is defined for both (plain "
    "means, dice_slice's too); ci95: bootstrap over cases, 10,000 resamples; p: Wilcoxon signed-rank test, two-sided, "
    "not corrected for the number of tests."
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
    score_folder(Path(name), truth, folder, group, workers, "compare")
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
                regions.setdefault(region, {})[metric] = _paired(column(ours, key), column(theirs, key), bootstrap)
    if not regions:
        raise InputError(f"compare: {names[0]} and {names[1]} have no region in common.")
    return regions


def _paired(a: np.ndarray, b: np.ndarray, bootstrap: Bootstrap) -> dict:
    pairs = ~np.isnan(a) & ~np.isnan(b)
    if not pairs.any():
        return dict.fromkeys(("a", "b", "difference", "difference_ci95", "p")) | {"pairs": 0}
    difference = np.where(pairs, a - b, 0)
    return {
        "a": float(a[pairs].mean()),
        "b": float(b[pairs].mean()),
        "difference": float(difference[pairs].mean()),
        "difference_ci95": bootstrap.interval(difference, pairs),
        "p": wilcoxon_p(difference[pairs]),
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
            lines.append(
                f"{region:<16} {metric:<13} {row['a']:>7.3f} {row['b']:>7.3f} {row['difference']:>+8.3f}  "
                f"{f'{low:+.3f} .. {high:+.3f}':<18} {row['p']:>7.2g} {row['pairs']:>6}"
            )
    return "\n".join(lines)
