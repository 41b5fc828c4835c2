"""Choose on `val` which rules of anatomy mend a run's predictions: `python -m kits_dist.postprocess run=RUN_DIR`.

Each rule is tried alone; then the one that adds most to the mean Dice is kept, and so on until none adds `min_gain`.
The choice is stored in RUN_DIR/postprocess.json, which `predict` and `evaluate` apply. `test` has no say: it is looked
at afterwards, and only if evaluation/test is there.

python -m kits_dist.postprocess run=[A,B] output=DIR

chooses rules for the mean of several runs, the folds of one store: each case is painted by the run whose val case it
is, so none by a network that saw it, and the rules are chosen once on all of them. `predict` and `evaluate` of exactly
these runs take them with rules=DIR/postprocess.json.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.data.store import Store
from kits_dist.evaluation.held_out import Split, held_out
from kits_dist.evaluation.metrics import dice, volume_counts
from kits_dist.imaging.nifti import read_labels
from kits_dist.inference.postprocessing import FILE, Rules, candidates, clean, weights_of
from kits_dist.inference.predictor import Predictor
from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.components import bounding_box
from kits_dist.utils.errors import InputError
from kits_dist.utils.parallel import progress_bar
from kits_dist.utils.text import listed, parse_folders


@dataclass(frozen=True)
class Args:
    run: str = MISSING
    """Folder of a trained run; several as [A,B], each painting its own val cases."""
    output: str = ""
    """Of several runs: folder for their common postprocess.json."""
    store: str = ""
    """The run's store, where it has moved."""
    min_gain: float = 0.001
    """Mean Dice over cases and regions that a rule must add to be kept."""
    batch_size: int = 16
    """Slices at once."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_gain < 1:
            raise InputError(f"min_gain={self.min_gain}: use 0 or more, below 1.")


class Held(NamedTuple):
    """A run and the cases it did not see."""

    run: Path
    predictor: Predictor
    store: Store
    case_ids: list[str]


class Pair(NamedTuple):
    """One case, cut to where prediction or truth is not background."""

    predicted: np.ndarray  # (d, h, w) uint8, as the network painted it
    truth: np.ndarray
    spacing_mm: tuple[float, float, float]


class Choice(NamedTuple):
    rules: Rules
    before: float  # mean Dice over cases and regions
    after: float
    alone: list[dict]  # {rule, value, dice, gain} of each rule by itself
    steps: list[dict]  # of the rules that were kept, in the order of keeping


def main(args: Args) -> None:
    runs = parse_folders(args.run, "run")
    output = _output(args, runs)
    everyone: list[Held] = []
    for run in runs:
        predictor = Predictor(str(run), args.batch_size, annotated=True)
        if predictor.config.data.box == "kidney":
            raise InputError(f"run={run} is phase 2 of a cascade (data.box=kidney): rules are for whole label maps.")
        everyone.append(Held(run, predictor, *held_out(predictor, "val", args.store)))
    _refuse_mixture(everyone)
    store, regions = everyone[0].store, everyone[0].predictor.regions
    steps, cases = [held.predictor.step for held in everyone], sum(len(held.case_ids) for held in everyone)
    choice = choose([pair for held in everyone for pair in _pairs(held, "val")], regions, args.min_gain)
    _print(choice, f"val, {cases} cases, data: {store.meta['data']}")
    about = {
        "rules": choice.rules.active,
        "step": steps[0] if len(runs) == 1 else steps,
        "weights": weights_of(runs),
        "regions": list(regions),
        "data": store.meta["data"],
        "store_sha256": store.fingerprint(),
        "val": {"cases": cases, "before": choice.before, "after": choice.after},
        "kept": choice.steps,
        "alone": choice.alone,
    }
    path = output / FILE
    files.write_json(path, about)  # before anything of `test` is read
    print(f"chosen: {choice.rules}; stored in {path}")
    if len(runs) == 1 and (runs[0] / "evaluation" / "test" / "summary.json").is_file():
        predictor = everyone[0].predictor
        held = Held(runs[0], predictor, *held_out(predictor, "test", args.store))
        pairs, cases = _pairs(held, "test"), len(held.case_ids)
        before, after = (mean_dice(pairs, regions, rules) for rules in (Rules(), choice.rules))
        print(f"effect on test ({cases} cases): mean Dice {before:.4f} -> {after:.4f} ({after - before:+.4f})")
        files.write_json(path, about | {"test": {"cases": cases, "before": before, "after": after}})


def _output(args: Args, runs: list[Path]) -> Path:
    """Where the choice is stored: with the run, or where output= says for several."""
    for run in runs:
        if not run.is_dir():
            raise InputError(f"run={run}: no such folder. Name a trained run, or several as run=[A,B].")
    if len(runs) > 1 and not args.output:
        raise InputError(f"run={args.run} names several runs: say with output=DIR where their common rules go.")
    if len(runs) == 1 and args.output:
        raise InputError(f"output={args.output} is for several runs; one run's rules are kept in its own folder.")
    if args.output:
        files.make_folder(Path(args.output), "output")
    return Path(args.output) if args.output else runs[0]


def _refuse_mixture(everyone: list[Held]) -> None:
    """Raises InputError where one mean over the runs' cases would mix what does not belong together."""
    first, *others = everyone
    for other in others:
        for what, a, b in (
            ("regions", first.predictor.regions, other.predictor.regions),
            ("stores", first.store.fingerprint(), other.store.fingerprint()),
        ):
            if a != b:
                shown = f": {', '.join(a)} and {', '.join(b)}" if what == "regions" else ""
                raise InputError(
                    f"run={first.run} and run={other.run} are of different {what}{shown}. Rules are chosen once for "
                    "the folds of one store; name runs that belong together."
                )
    painter: dict[str, Held] = {}
    for held in everyone:
        if twice := [case for case in held.case_ids if case in painter]:
            raise InputError(
                f"run={painter[twice[0]].run} and run={held.run} both validate {listed(twice)}, which would count "
                "twice. Name runs of different folds."
            )
        painter |= dict.fromkeys(held.case_ids, held)


def choose(pairs: list[Pair], regions: tuple[str, ...], min_gain: float) -> Choice:
    """The greedy combination for a model of `regions`."""
    tried = candidates(regions)
    before = best = mean_dice(pairs, regions, Rules())
    rules, alone, steps = Rules(), [], []
    while tried:
        with progress_bar(f"rules beside {rules}", "rule", items=tried) as bar:
            found = [(mean_dice(pairs, regions, replace(rules, **{rule: value})), rule, value) for rule, value in bar]
        if not steps and not alone:
            alone = [_row(rule, value, score, before) for score, rule, value in found]
        score, rule, value = max(found, key=lambda one: one[0])  # the first of equals: the mildest value
        if score - best < max(min_gain, 1e-9):
            break
        steps.append(_row(rule, value, score, best))
        rules, best = replace(rules, **{rule: value}), score
        tried = [one for one in tried if one[0] != rule]
    return Choice(rules, before, best, alone, steps)


def mean_dice(pairs: list[Pair], regions: tuple[str, ...], rules: Rules) -> float:
    """Volume Dice after `rules`, mean over cases and regions."""
    wanted = {name: REGIONS[name] for name in regions}
    values = []
    for pair in pairs:
        counts = volume_counts(clean(pair.predicted, pair.spacing_mm, rules), pair.truth, wanted)
        values.append(dice(np.stack(list(counts.values()))))
    return float(np.mean(values))


def _row(rule: str, value: bool | float, score: float, before: float) -> dict:
    return {"rule": rule, "value": value, "dice": score, "gain": score - before}


def _pairs(held: Held, split: Split) -> list[Pair]:
    """Of all cases at once: cut to their boxes they are a few MB each."""
    store, pairs = held.store, []
    for case_id, predicted in zip(held.case_ids, _painted(held, split), strict=True):
        row = store.row[case_id]
        truth = np.asarray(store.label(row))
        box = bounding_box(predicted | truth)
        pairs.append(Pair(predicted[box].copy(), truth[box].copy(), store.cases[row].spacing_mm))
    return pairs


def _painted(held: Held, split: Split) -> Iterator[np.ndarray]:
    """Label maps as the network painted them: evaluate's, where it left them so, else predicted again."""
    store, folder = held.store, held.run / "evaluation" / split
    if _is_raw(folder, held.predictor, store):
        print(f"{split}: label maps of {folder / 'predictions'}")
        for case_id in held.case_ids:
            yield read_labels(folder / "predictions" / f"{case_id}.nii.gz").array
        return
    for case_id in progress_bar(f"predict {split}", "case", items=held.case_ids):
        row = store.row[case_id]
        yield held.predictor.predict_levels(store.image(row), store.cases[row])


def _is_raw(folder: Path, predictor: Predictor, store: Store) -> bool:
    """Whether evaluate has written, for these very weights and cases, what the network alone says."""
    try:
        summary = files.read_json(folder / "summary.json")
    except InputError:
        return False
    wanted = {"step": predictor.step, "store_sha256": store.fingerprint(), "tta": "none", "postprocess": {}}
    return "fusion" not in summary and all(summary.get(key) == value for key, value in wanted.items())


def _print(choice: Choice, title: str) -> None:
    print(f"{title}: mean Dice {choice.before:.4f} without rules\n{'rule alone':<22} {'Dice':>7} {'gain':>8}")
    for row in choice.alone:
        name = str(Rules(**{row["rule"]: row["value"]}))
        print(f"{name:<22} {row['dice']:>7.4f} {row['gain']:>+8.4f}")
    for row in choice.steps:
        print(f"kept {Rules(**{row['rule']: row['value']})}: {row['dice']:.4f} ({row['gain']:+.4f})")


if __name__ == "__main__":
    cli.run(main, Args)
