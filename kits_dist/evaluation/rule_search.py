"""Search for the post-processing rules with the highest mean Dice over the validation cases of one or several runs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kits_dist.data.store import Store
from kits_dist.evaluation.held_out import Split, held_out
from kits_dist.evaluation.metrics import mean_dice, volume_counts
from kits_dist.imaging.nifti import read_labels
from kits_dist.inference.postprocessing import Rules, candidates, clean
from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.components import bounding_box
from kits_dist.utils.errors import InputError
from kits_dist.utils.parallel import progress_bar
from kits_dist.utils.text import listed

if TYPE_CHECKING:
    from kits_dist.inference.predictor import Predictor


class HeldOutRun(NamedTuple):
    """A run and cases that it was not trained on."""

    run: Path
    predictor: "Predictor"
    store: Store
    case_ids: list[str]


class LabelPair(NamedTuple):
    """The label maps of one case, cropped to where prediction or truth is not background."""

    predicted: np.ndarray  # (d, h, w) uint8, before any rule
    truth: np.ndarray
    spacing_mm: tuple[float, float, float]


class RuleChoice(NamedTuple):
    """The rules that were chosen, and the mean Dice over cases and regions that led to them."""

    rules: Rules
    before: float  # without rules
    after: float
    alone: list[dict]  # {rule, value, dice, gain} of each rule by itself
    kept: list[dict]  # of the rules that were kept, in the order of keeping


def open_runs(runs: list[Path], batch_size: int, store: str = "") -> list[HeldOutRun]:
    """Open runs with the cases of their validation folds.

    store   the runs' store, where it has moved

    Raises InputError for a phase 2, or runs whose cases have no common mean: other regions, another store, a case
    that two of them validate.
    """
    from kits_dist.inference.predictor import Predictor  # torch takes seconds to import

    opened = []
    for run in runs:
        predictor = Predictor(str(run), batch_size, annotated=True)
        if predictor.config.data.box == "kidney":
            raise InputError(f"run={run} is phase 2 of a cascade (data.box=kidney): rules are for whole label maps.")
        opened.append(HeldOutRun(run, predictor, *held_out(predictor, "val", store)))

    first = opened[0]
    owner: dict[str, HeldOutRun] = {}
    for held in opened:
        if held.predictor.regions != first.predictor.regions:
            shown = f"{', '.join(first.predictor.regions)} and {', '.join(held.predictor.regions)}"
            _refuse(first, held, f"are of different regions: {shown}")
        if held.store.fingerprint() != first.store.fingerprint():
            _refuse(first, held, "are of different stores")
        twice = [case for case in held.case_ids if case in owner]
        if twice:
            _refuse(owner[twice[0]], held, f"both validate {listed(twice)}, which would count twice")
        owner |= dict.fromkeys(held.case_ids, held)
    return opened


def _refuse(one: HeldOutRun, other: HeldOutRun, why: str) -> None:
    raise InputError(
        f"run={one.run} and run={other.run} {why}. Rules are chosen once for the folds of one store; name such runs."
    )


def search_rules(pairs: list[LabelPair], regions: tuple[str, ...], min_gain: float) -> RuleChoice:
    """Combine rules greedily: keep the one that adds most to the mean Dice, until none adds `min_gain`.

    regions   predicted by the model; rules that need another one are not tried
    """
    tried = candidates(regions)
    rules = Rules()
    before = best = dice_after(pairs, regions, rules)
    alone: list[dict] = []
    kept: list[dict] = []
    while tried:
        rows = []
        for rule, value in progress_bar(f"rules added to {rules}", "rule", items=tried):
            score = dice_after(pairs, regions, replace(rules, **{rule: value}))
            rows.append({"rule": rule, "value": value, "dice": score, "gain": score - best})
        alone = alone or rows

        top = max(rows, key=lambda row: row["dice"])  # the first of equals, which has the mildest value
        if top["gain"] < max(min_gain, 1e-9):
            break
        kept.append(top)
        rules = replace(rules, **{top["rule"]: top["value"]})
        best = top["dice"]
        tried = [candidate for candidate in tried if candidate[0] != top["rule"]]
    return RuleChoice(rules, before, best, alone, kept)


def dice_after(pairs: list[LabelPair], regions: tuple[str, ...], rules: Rules) -> float:
    """Return the volume Dice after `rules`, averaged over cases and regions."""
    wanted = {name: REGIONS[name] for name in regions}
    counts = []
    for pair in pairs:
        of_regions = volume_counts(clean(pair.predicted, pair.spacing_mm, rules), pair.truth, wanted)
        counts.append(np.stack(list(of_regions.values())))
    return float(mean_dice(np.stack(counts)).mean())


def label_pairs(held: HeldOutRun, split: Split) -> list[LabelPair]:
    """Return the label maps of all cases at once: cropped, they take a few MB each."""
    pairs = []
    for case_id, predicted in zip(held.case_ids, _predictions(held, split), strict=True):
        row = held.store.row[case_id]
        truth = np.asarray(held.store.label(row))
        box = bounding_box(predicted | truth)
        pairs.append(LabelPair(predicted[box].copy(), truth[box].copy(), held.store.cases[row].spacing_mm))
    return pairs


def _predictions(held: HeldOutRun, split: Split) -> Iterator[np.ndarray]:
    """Yield label maps before any rule: those that evaluate wrote, if they can be used, else predicted again."""
    store = held.store
    folder = held.run / "evaluation" / split
    if _is_reusable(folder, held.predictor, store):
        print(f"{split}: label maps of {folder / 'predictions'}")
        for case_id in held.case_ids:
            yield read_labels(folder / "predictions" / f"{case_id}.nii.gz").array
        return
    for case_id in progress_bar(f"predict {split}", "case", items=held.case_ids):
        row = store.row[case_id]
        yield held.predictor.predict_levels(store.image(row), store.cases[row])


def _is_reusable(folder: Path, predictor: "Predictor", store: Store) -> bool:
    """Return whether evaluate wrote plain predictions of these weights and this store."""
    try:
        summary = files.read_json(folder / "summary.json")
    except InputError:
        return False
    wanted = {"step": predictor.step, "store_sha256": store.fingerprint(), "tta": "none", "postprocess": {}}
    return "fusion" not in summary and all(summary.get(key) == value for key, value in wanted.items())
