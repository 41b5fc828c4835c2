"""Two systems on the same cases: the difference of every figure, its interval, and whether it could be chance."""

from pathlib import Path

import numpy as np

from kits_dist.evaluation.bootstrap import Bootstrap
from kits_dist.evaluation.metrics import MEANS, Figures
from kits_dist.labels import PLAIN, REGIONS
from kits_dist.utils.errors import InputError
from kits_dist.utils.text import listed

NOTE = (
    "difference: mean over the pairs of A's figure minus B's, a pair being a case where both have it (plain means, "
    "dice_slice's too); ci95: bootstrap over cases, 10,000 resamples; p: Wilcoxon signed-rank test, two-sided, not "
    "corrected for the number of tests."
)


def compare(a: dict[str, Figures], b: dict[str, Figures], names: tuple[str | Path, str | Path]) -> dict:
    """Two tables of cases.csv -> {region: {figure: {"a", "b", "difference", "difference_ci95", "p", "pairs"}}}.

    Raises InputError when the cases or all of the regions differ.
    """
    for mine, other, name in ((a, b, names[1]), (b, a, names[0])):
        if lacking := sorted(set(mine) - set(other)):
            raise InputError(f"compare: {name} has no {listed(lacking)}. Score both on the same cases.")
    cases = sorted(a)
    bootstrap = Bootstrap(len(cases))
    regions: dict[str, dict] = {}
    for region in REGIONS | PLAIN:
        for figure in MEANS:
            column = f"{region}_{figure}"
            values = [[table[case].get(column) for case in cases] for table in (a, b)]
            if all(column in table[cases[0]] for table in (a, b)):
                regions.setdefault(region, {})[figure] = _paired(*values, bootstrap)
    if not regions:
        raise InputError(f"compare: {names[0]} and {names[1]} have no region in common.")
    return regions


def _paired(a: list[float | None], b: list[float | None], bootstrap: Bootstrap) -> dict:
    pairs = np.array([None not in pair for pair in zip(a, b, strict=True)])
    if not pairs.any():
        return dict.fromkeys(("a", "b", "difference", "difference_ci95", "p")) | {"pairs": 0}
    ours, theirs = (np.array([value or 0.0 for value in values]) for values in (a, b))
    difference = np.where(pairs, ours - theirs, 0)
    return {
        "a": float(ours[pairs].mean()),
        "b": float(theirs[pairs].mean()),
        "difference": float(difference[pairs].mean()),
        "difference_ci95": bootstrap.interval(difference, pairs),
        "p": wilcoxon_p(difference[pairs]),
        "pairs": int(pairs.sum()),
    }


def wilcoxon_p(differences: np.ndarray) -> float:
    """Two-sided signed-rank test; differences of 0 are left out (Wilcoxon 1945), and where all are 0 p is 1."""
    from scipy.stats import wilcoxon  # takes half a second to import

    differences = differences[differences != 0]
    return float(wilcoxon(differences).pvalue) if len(differences) else 1.0


def as_text(comparison: dict) -> str:
    """The table a person reads."""
    lines = [
        f"A: {comparison['a']}   B: {comparison['b']}",
        f"data: {comparison['data']}   cases: {comparison['cases']}",
    ]
    lines += [f"note: {note}" for note in comparison["notes"]]
    head = ("region", "figure", "A", "B", "A - B", "95 % interval", "p", "pairs")
    lines.append("{:<16} {:<13} {:>7} {:>7} {:>8}  {:<18} {:>7} {:>6}".format(*head))
    for region, figures in comparison["regions"].items():
        for figure, row in figures.items():
            if not row["pairs"]:
                lines.append(f"{region:<16} {figure:<13} no case where both have it")
                continue
            low, high = row["difference_ci95"]
            lines.append(
                f"{region:<16} {figure:<13} {row['a']:>7.3f} {row['b']:>7.3f} {row['difference']:>+8.3f}  "
                f"{f'{low:+.3f} .. {high:+.3f}':<18} {row['p']:>7.2g} {row['pairs']:>6}"
            )
    return "\n".join(lines)
