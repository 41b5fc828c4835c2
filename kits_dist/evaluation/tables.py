"""Scores as files and text: cases.csv (every metric), challenge.csv (the challenge's format), summary.json.

cases.csv has one row per case and no summary row. Its columns are REGION_METRIC, lesions_METRIC and
findings_MEASUREMENT; an empty field is a metric that is undefined for the case.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from kits_dist.evaluation.metrics import SIZES, CaseScore, Metrics
from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.text import utf8

# Resampling fewer cases gives intervals that are far too narrow: on screen they are not shown.
FEW, TOO_FEW = 6, "too few"
_CHALLENGE = {"kidney_and_mass": "kidney", "mass": "masses", "tumor": "tumor"}
_SIZES = dict(zip(SIZES, ("< 5 ml", "5-30 ml", "> 30 ml"), strict=True))


def write_tables(folder: Path, scores: list[CaseScore], summary: dict) -> None:
    """Write the tables of an evaluation, each atomically and summary.json last: where it exists, the others do too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").unlink(missing_ok=True)
    rows = {utf8(score.case_id): score.row() for score in scores}
    files.write_bytes(folder / "cases.csv", _cases_csv(rows).encode())
    text = _challenge_csv(rows)
    if text is None:  # there may be one of an earlier run of other regions
        (folder / "challenge.csv").unlink(missing_ok=True)
    else:
        files.write_bytes(folder / "challenge.csv", text.encode())
    files.write_json(folder / "summary.json", summary)


def _cases_csv(rows: dict[str, Metrics]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", *next(iter(rows.values()))])
    for case_id, row in rows.items():
        table.writerow([case_id, *("" if value is None else f"{value:.10g}" for value in row.values())])
    return text.getvalue()


def _challenge_csv(rows: dict[str, Metrics]) -> str | None:
    """Format as kits23/evaluation/metrics.py, without a final line end; return None where a region is missing."""
    columns = [f"{region}_{metric}" for metric in ("dice", "surface_dice") for region in _CHALLENGE]
    if any(column not in row for row in rows.values() for column in columns):
        return None
    head = [f"{short}_{name}" for short in ("Dice", "SD") for name in _CHALLENGE.values()]
    values = {case_id: [row[column] for column in columns] for case_id, row in rows.items()}
    values["average"] = [sum(column) / len(rows) for column in zip(*values.values(), strict=True)]
    lines = [",".join(["caseID", *head])]
    lines += [",".join([name, *(f"{value:.8f}" for value in row)]) for name, row in values.items()]
    return "\n".join(lines)


def read_cases(path: Path) -> dict[str, Metrics]:
    """Read cases.csv as {case: {column: value}}. Raises InputError naming the file."""
    try:
        rows = files.read_table(path)
        read = {
            row.pop("case"): {column: None if text == "" else float(text) for column, text in row.items()}
            for row in rows
        }
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: not a table of cases ({type(error).__name__}: {error}). Run evaluate again."
        ) from error
    if not rows or len(read) < len(rows):
        raise InputError(f"{path}: no cases, or a case twice. Run evaluate again.")
    return read


def read_scores(path: Path, regions: Iterable[str]) -> list[CaseScore]:
    """Read cases.csv of `regions` as scores, precise to ten digits. Raises InputError naming the file."""
    # the longest name first: kidney is also the beginning of kidney_and_mass
    groups = (*sorted(regions, key=len, reverse=True), "lesions", "findings")
    scores = []
    for case_id, row in read_cases(path).items():
        parts: dict[str, Metrics] = {group: {} for group in groups}
        for column, value in row.items():
            group = next((group for group in groups if column.startswith(f"{group}_")), None)
            if group is None:
                raise InputError(f"{path}: {column} is of none of {', '.join(groups)}. Run evaluate again.")
            parts[group][column.removeprefix(f"{group}_")] = value
        for region in regions:
            if "dice" not in parts[region]:
                raise InputError(f"{path}: no column {region}_dice. Run evaluate again.")
        of_regions = {region: parts[region] for region in regions}
        scores.append(CaseScore(case_id, of_regions, parts["lesions"], parts["findings"]))
    return scores


def as_text(summary: dict, title: str = "") -> str:
    """Format a summary as a table for the terminal, distances in mm; `title` stands above it."""
    head = f"data: {summary['data']}   split: {summary['split']}   cases: {summary['cases']}"
    if "reference" in summary:
        head += f"   reference: {summary['reference']}"
    if title:
        head = f"{title}\n{head}"
    if summary.get("missing_cases"):
        head += f"   without prediction, scored 0: {len(summary['missing_cases'])}"
    row = "{:<16} {:>6}  {:<14} {:>7} {:>7} {:>6}  {:>7}  {:<14} {:>7} {:>7} {:>7} {:>8}".format
    names = "region|Dice|95 % interval|median|pooled|slice|surface|95 % interval|HD95 mm|ASSD mm|misses|with it"
    lines = [head, row(*names.split("|"))]
    for name, of in summary["regions"].items():
        dice = [_f(of["dice"]), _interval(of["dice_ci95"], summary["cases"])]
        dice += [_f(of[f"dice_{kind}"]) for kind in ("median", "pooled", "slice")]
        surface = [_f(of.get("surface_dice")), _interval(of.get("surface_dice_ci95"), summary["cases"])]
        distances = [_f(of["hd95_mm"], 2), _f(of["assd_mm"], 2), f"{of['misses']}/{summary['cases']}"]
        lines.append(row(name, *dice, *surface, *distances, of["cases_with_region"]))
    return "\n".join(lines + _lesion_lines(summary.get("lesions"), summary["cases"]))


def print_summary(summary: dict, folder: Path, with_poster: bool = False, title: str = "") -> None:
    """Print the table of an evaluation, if asked with the poster's measure, and where its files are."""
    print(as_text(summary, title))
    if with_poster:
        print(poster_line(summary["regions"]))
    print(f"tables and pictures: {folder}")


def poster_line(regions: dict[str, dict]) -> str:
    """Format the poster's measure of a summary's regions."""
    parts = [
        f"{name} {_f(of['dice_poster'])} (predicting nothing: {_f(of['dice_poster_empty'])})"
        for name, of in regions.items()
        if "dice_poster" in of
    ]
    return f"the poster's measure, a mean over 2D slices: {', '.join(parts) or 'needs kidney_and_mass'}"


def _lesion_lines(lesions: dict | None, cases: int) -> list[str]:
    if lesions is None:
        return []
    found = f"tumors found: {lesions['found']:g} of {lesions['true']:g}"
    if lesions["sensitivity"] is not None:
        found += f" ({_f(lesions['sensitivity'])}, {_interval(lesions['sensitivity_ci95'], cases)})"
    found += f"; false positives: {lesions['false_positives_per_case']:.2f} per case"
    sizes = [
        f"{title}: {lesions[size]['found']:g} of {lesions[size]['true']:g}, Dice {_f(lesions[size]['dice'])}"
        for size, title in _SIZES.items()
        if lesions[size]["true"]
    ]
    return [found, "  " + "   ".join(sizes)] if sizes else [found]


def _f(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(interval: list[float] | None, cases: int) -> str:
    if interval is None:
        return "-"
    return f"{interval[0]:.3f} .. {interval[1]:.3f}" if cases >= FEW else TOO_FEW
