"""One table for the folds of a store: `python -m kits_dist.crossval run=DIR`, the last step of launch/folds.sh.

DIR holds the runs fold_0, fold_1, ..., each with evaluation/val. Their cases, each scored by the run that did not see
it, become DIR/evaluation/out_of_fold; beside it stand the folds, and the mean of all runs on `test`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.config import Config
from kits_dist.data.store import Store
from kits_dist.evaluation.cross_validation import OUT_OF_FOLD, as_text, fold_runs, summary_of, table
from kits_dist.evaluation.metrics import CaseScore
from kits_dist.evaluation.summary import summarize
from kits_dist.evaluation.tables import read_scores, write_tables
from kits_dist.inference.postprocessing import FILE, Rules
from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.text import listed


@dataclass(frozen=True)
class Args:
    run: str = MISSING
    """Folder that holds fold_0, fold_1, ..."""
    store: str = ""
    """The folds' store, where it has moved."""


def main(args: Args) -> None:
    folder = Path(args.run)
    runs = fold_runs(folder)
    store = Store(args.store or cli.load(Config, [f"config={runs[0] / 'config.yaml'}"]).data.store, key="store")
    scores, about = _out_of_fold(runs, store)
    summary = summarize(scores, store.meta["data"], OUT_OF_FOLD)
    write_tables(folder / "evaluation" / OUT_OF_FOLD, scores, summary | about)
    try:
        print(as_text(table(folder), store.meta["data"]))
        if (folder / FILE).is_file():
            rules = files.read_json(folder / FILE)
            val = rules["val"]
            print(f"rules: {Rules(**rules['rules'])}; mean Dice out of fold {val['before']:.4f} -> {val['after']:.4f}")
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: damaged tables ({type(error).__name__}: {error}). Run launch/folds.sh again."
        ) from error


def _out_of_fold(runs: list[Path], store: Store) -> tuple[list[CaseScore], dict[str, Any]]:
    """The val scores of all folds as one table, in the order of cases, and what its summary says beside the figures.

    Raises MissingInput / InputError for a fold that was not evaluated, was mended by rules, is of another store, or
    has other cases than the store's fold: a mean over fewer cases, or a case twice, is no score.
    """
    if len(runs) != len(store.splits.folds):
        raise InputError(f"{runs[0].parent} holds {len(runs)} folds, but {store.path} has {len(store.splits.folds)}.")
    summaries = [summary_of(run / "evaluation" / "val") for run in runs]
    scores: list[CaseScore] = []
    for run, summary, cases in zip(runs, summaries, store.splits.folds, strict=True):
        again = f"Run evaluate again: python -m kits_dist.evaluate run={run} split=val postprocess=false"
        for key, wanted in {
            "store_sha256": store.fingerprint(),
            "postprocess": {},
            "tta": summaries[0].get("tta"),
            "reference": "file",
        }.items():
            if summary.get(key) != wanted:
                raise InputError(f"{run}/evaluation/val has {key}={summary.get(key)}, not {wanted}. {again}")
        if list(summary["regions"]) != list(summaries[0]["regions"]):
            raise InputError(f"{run} predicts other regions than {runs[0]}; their scores have no common mean.")
        of_fold = read_scores(run / "evaluation" / "val" / "cases.csv", list(summary["regions"]))
        if differing := sorted({score.case_id for score in of_fold} ^ set(cases)):
            raise InputError(f"{run}/evaluation/val is not of the cases of its fold: {listed(differing)}. {again}")
        scores += of_fold
    about = {
        "reference": "file",
        "step": [summary["step"] for summary in summaries],
        "store_sha256": store.fingerprint(),
        "tta": summaries[0]["tta"],
        "postprocess": {},
        "tuned": {"checkpoint": "each fold's by its own validation cases"},
    }
    return sorted(scores, key=lambda score: score.case_id), about


if __name__ == "__main__":
    cli.run(main, Args)
