"""Choose on `val` which rules of anatomy correct a run's predictions: `python -m kits_dist.postprocess run=RUN_DIR`.

Each rule is tried alone; then the one that adds most to the mean Dice is kept, and so on until none adds `min_gain`.
The choice is stored in RUN_DIR/postprocess.json, which `predict` and `evaluate` apply. `test` has no influence: the
effect on it is reported afterwards, and only if evaluation/test exists.

python -m kits_dist.postprocess run=[A,B] output=DIR

chooses rules for the mean of several runs, the folds of one store: each case is predicted by the run whose val case it
is, so none by a network that was trained on it, and the rules are chosen once on all of them. `predict` and `evaluate`
of exactly these runs take them with rules=DIR/postprocess.json.
"""

from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.evaluation.held_out import held_out
from kits_dist.evaluation.rule_search import HeldOutRun, RuleChoice, dice_after, label_pairs, open_runs, search_rules
from kits_dist.inference.postprocessing import FILE, Rules, weights_of
from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.text import parse_folders


@dataclass(frozen=True)
class Args:
    """Arguments of the command line."""

    run: str = MISSING
    """Folder of a trained run; several as [A,B], each predicting its own val cases."""
    output: str = ""
    """For several runs: folder for their common postprocess.json."""
    store: str = ""
    """The run's store, where it has moved."""
    min_gain: float = 0.001
    """Mean Dice over cases and regions that a rule must add to be kept."""
    batch_size: int = 16
    """Slices at once."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_gain < 1:
            raise InputError(f"min_gain={self.min_gain}: use 0 or more, below 1.")


def main(args: Args) -> None:
    """Choose rules, store them, and report their effect on the test cases of a single run."""
    runs = parse_folders(args.run, "run")
    path = _output(args, runs) / FILE
    opened = open_runs(runs, args.batch_size, args.store)
    store, regions = opened[0].store, opened[0].predictor.regions
    steps = [held.predictor.step for held in opened]
    cases = sum(len(held.case_ids) for held in opened)

    choice = search_rules([pair for held in opened for pair in label_pairs(held, "val")], regions, args.min_gain)
    _print(choice, f"val, {cases} cases, data: {store.meta['data']}")
    about = {
        "rules": choice.rules.active,
        "step": steps[0] if len(runs) == 1 else steps,
        "weights": weights_of(runs),
        "regions": list(regions),
        "data": store.meta["data"],
        "store_sha256": store.fingerprint(),
        "val": {"cases": cases, "before": choice.before, "after": choice.after},
        "kept": choice.kept,
        "alone": choice.alone,
    }
    files.write_json(path, about)  # before any test case is read
    print(f"chosen: {choice.rules}; stored in {path}")

    if len(runs) == 1 and (runs[0] / "evaluation" / "test" / "summary.json").is_file():
        predictor = opened[0].predictor
        held = HeldOutRun(runs[0], predictor, *held_out(predictor, "test", args.store))
        pairs = label_pairs(held, "test")
        before, after = (dice_after(pairs, regions, rules) for rules in (Rules(), choice.rules))
        print(f"effect on test ({len(pairs)} cases): mean Dice {before:.4f} -> {after:.4f} ({after - before:+.4f})")
        files.write_json(path, about | {"test": {"cases": len(pairs), "before": before, "after": after}})


def _output(args: Args, runs: list[Path]) -> Path:
    """Return the folder of the choice: the run's own, or output= for several."""
    for run in runs:
        if not run.is_dir():
            raise InputError(f"run={run}: no such folder. Name a trained run, or several as run=[A,B].")
    if len(runs) > 1 and not args.output:
        raise InputError(f"run={args.run} names several runs: say with output=DIR where their common rules go.")
    if len(runs) == 1 and args.output:
        raise InputError(f"output={args.output} is for several runs; one run's rules are kept in its own folder.")
    folder = Path(args.output) if args.output else runs[0]
    files.make_folder(folder, "output" if args.output else "run")
    return folder


def _print(choice: RuleChoice, title: str) -> None:
    print(f"{title}: mean Dice {choice.before:.4f} without rules\n{'rule alone':<22} {'Dice':>7} {'gain':>8}")
    for row in choice.alone:
        name = str(Rules(**{row["rule"]: row["value"]}))
        print(f"{name:<22} {row['dice']:>7.4f} {row['gain']:>+8.4f}")
    for row in choice.kept:
        print(f"kept {Rules(**{row['rule']: row['value']})}: {row['dice']:.4f} ({row['gain']:+.4f})")


if __name__ == "__main__":
    cli.run(main, Args)
