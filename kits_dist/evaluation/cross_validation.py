"""The folds of a cross-validation, as launch/folds.sh leaves them in one folder, and their common table.

FOLDER/fold_0, fold_1, ...        runs of one store, each with evaluation/val of its predictions without rules
FOLDER/evaluation/out_of_fold     the val cases of all folds, each scored by the run that was not trained on it
FOLDER/evaluation/test_raw        the mean of all runs on the test cases; test: after the rules of postprocess.json
"""

from pathlib import Path
from typing import Any, NamedTuple

from kits_dist.data.store import Store
from kits_dist.evaluation.metrics import CaseScore
from kits_dist.evaluation.tables import read_scores
from kits_dist.inference.postprocessing import FILE
from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed

OUT_OF_FOLD = "out_of_fold"  # folder in FOLDER/evaluation, and the name of its split
TEST_RAW = "test_raw"
NOTE = (
    "Each fold's val cases chose its checkpoint, and all of them the rules; test chose nothing. Intervals: 95 %, "
    "bootstrap over cases."
)

_AGAIN = "Run launch/folds.sh again, which replaces it."


class Row(NamedTuple):
    """A line of the common table."""

    title: str
    cases: int
    dice: dict[str, tuple[float, list[float]]]  # {region of the challenge: (mean over cases, its interval)}


def fold_runs(folder: Path) -> list[Path]:
    """Return FOLDER/fold_0, fold_1, ... in order. Raises MissingInput where there are none, or a number is left out."""
    found = {path.name for path in folder.glob("fold_*") if path.is_dir()}
    runs = [folder / f"fold_{number}" for number in range(len(found))]
    if not found or {run.name for run in runs} != found:
        there = listed(sorted(found)) or "none"
        raise MissingInput(f"run={folder} must hold fold_0, fold_1, ... as launch/folds.sh makes them; found: {there}.")
    return runs


def out_of_fold(runs: list[Path], store: Store) -> tuple[list[CaseScore], dict[str, Any]]:
    """Join the val scores of all folds into one table.

    returns   the scores in the order of case ids, and what their summary says in addition to the metrics

    Raises MissingInput / InputError for a fold that was not evaluated, was post-processed, is of another store, or
    has other cases than the store's fold: a mean over fewer cases, or with a case twice, is no score.
    """
    if len(runs) != len(store.splits.folds):
        raise InputError(f"{runs[0].parent} holds {len(runs)} folds, but {store.path} has {len(store.splits.folds)}.")
    summaries = [summary_of(run / "evaluation" / "val") for run in runs]
    regions = list(summaries[0]["regions"])
    about = {
        "reference": "file",
        "store_sha256": store.fingerprint(),
        "tta": summaries[0].get("tta"),
        "postprocess": {},
    }

    scores: list[CaseScore] = []
    for run, summary, cases in zip(runs, summaries, store.splits.folds, strict=True):
        again = f"Run evaluate again: python -m kits_dist.evaluate run={run} split=val postprocess=false"
        for key, wanted in about.items():
            if summary.get(key) != wanted:
                raise InputError(f"{run}/evaluation/val has {key}={summary.get(key)}, not {wanted}. {again}")
        if list(summary["regions"]) != regions:
            raise InputError(f"{run} predicts other regions than {runs[0]}; their scores have no common mean.")
        of_fold = read_scores(run / "evaluation" / "val" / "cases.csv", regions)
        differing = sorted({score.case_id for score in of_fold} ^ set(cases))
        if differing:
            raise InputError(f"{run}/evaluation/val is not of the cases of its fold: {listed(differing)}. {again}")
        scores += of_fold

    about["step"] = [summary["step"] for summary in summaries]
    about["tuned"] = {"checkpoint": "each fold's by its own validation cases"}
    return sorted(scores, key=lambda score: score.case_id), about


def table(folder: Path) -> list[Row]:
    """Return a row per fold, one for all cases out of fold, and the mean of the folds on test where it was evaluated.

    Raises MissingInput / InputError where a table is missing, or they are not of the same weights.
    """
    runs = fold_runs(folder)
    summaries = {f"fold {number}, val": summary_of(run / "evaluation" / "val") for number, run in enumerate(runs)}
    steps = [summary["step"] for summary in summaries.values()]
    common = {f"all {len(runs)}, out of fold": OUT_OF_FOLD, "test, mean of all": TEST_RAW, "test, after rules": "test"}
    for title, name in common.items():
        if name == OUT_OF_FOLD or (folder / "evaluation" / name / "summary.json").is_file():
            summaries[title] = summary_of(folder / "evaluation" / name)
            _refuse_other_weights(folder / "evaluation" / name, summaries[title], steps)

    if (folder / FILE).is_file():
        rules = files.read_json(folder / FILE)
        _refuse_other_weights(folder / FILE, rules, steps)
        if "test, after rules" in summaries and summaries["test, after rules"].get("postprocess") != rules.get("rules"):
            raise InputError(f"{folder}/evaluation/test was not made with the rules of {FILE}. {_AGAIN}")
    return [Row(title, summary["cases"], _dice(summary["regions"])) for title, summary in summaries.items()]


def _dice(regions: dict[str, Any]) -> dict[str, tuple[float, list[float]]]:
    return {name: (regions[name]["dice"], regions[name]["dice_ci95"]) for name in REGIONS if name in regions}


def as_text(rows: list[Row], data: str) -> str:
    """Format mean Dice and its interval as a table for the terminal."""
    regions = list(rows[0].dice)
    lines = [f"data: {data}", "Dice".ljust(20) + "cases".rjust(6) + "".join(f"  {name:<22}" for name in regions)]
    for row in rows:
        cells = (f"  {dice:.3f} ({low:.3f} .. {high:.3f})" for dice, (low, high) in row.dice.values())
        lines.append(f"{row.title:<20}{row.cases:>6}" + "".join(cells))
    return "\n".join([*(line.rstrip() for line in lines), NOTE])


def summary_of(evaluation: Path) -> dict[str, Any]:
    """Read summary.json. Raises MissingInput / InputError where the evaluation is unfinished or the file damaged."""
    if not (evaluation / "summary.json").is_file():
        raise MissingInput(f"{evaluation}: not evaluated yet, or not to its end. launch/folds.sh continues from there.")
    summary = files.read_json(evaluation / "summary.json")
    lacking = {"cases", "regions", "step"} - set(summary)
    if lacking:
        raise InputError(f"{evaluation}/summary.json lacks {', '.join(sorted(lacking))}. Run evaluate again.")
    return summary


def _refuse_other_weights(path: Path, about: dict[str, Any], steps: list) -> None:
    if about.get("step") != steps:
        raise InputError(f"{path} is of weights of steps {about.get('step')}, the folds' are of {steps}. {_AGAIN}")
