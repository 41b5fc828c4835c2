"""Join the folds of a store into one table: `python -m kits_dist.crossval run=DIR`, the last step of launch/folds.sh.

DIR holds the runs fold_0, fold_1, ..., each with evaluation/val. Their cases, each scored by the run that was not
trained on it, become DIR/evaluation/out_of_fold. The printed table also lists the folds, and the mean of all runs on
`test`.
"""

from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.config import Config
from kits_dist.data.store import Store
from kits_dist.evaluation.cross_validation import OUT_OF_FOLD, as_text, fold_runs, out_of_fold, table
from kits_dist.evaluation.summary import summarize
from kits_dist.evaluation.tables import write_tables
from kits_dist.inference.postprocessing import FILE, Rules
from kits_dist.utils import files
from kits_dist.utils.errors import InputError


@dataclass(frozen=True)
class Args:
    """Arguments of the command line."""

    run: str = MISSING
    """Folder that holds fold_0, fold_1, ..."""
    store: str = ""
    """The folds' store, where it has moved."""


def main(args: Args) -> None:
    """Write the out-of-fold table and print the common one."""
    folder = Path(args.run)
    runs = fold_runs(folder)
    store = Store(args.store or cli.load(Config, [f"config={runs[0] / 'config.yaml'}"]).data.store, key="store")
    scores, about = out_of_fold(runs, store)
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


if __name__ == "__main__":
    cli.run(main, Args)
