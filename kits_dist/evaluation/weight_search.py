"""Search for the weights with which the logits of several networks are added, by mean Dice over validation cases."""

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kits_dist.data.store import Store
from kits_dist.evaluation.metrics import mean_dice
from kits_dist.labels import REGIONS
from kits_dist.utils.parallel import progress_bar

if TYPE_CHECKING:
    from kits_dist.inference.region_models import PlaneModel


class RegionLogits(NamedTuple):
    """One region of a case, at the voxels that at least one network calls inside.

    Where every network says outside, so does any weighting: the other voxels are not kept.
    """

    logits: np.ndarray  # (M, n) float16
    truth: np.ndarray  # (n,) bool
    missed: int  # true voxels that no network calls inside


def predict_logits(members: list["PlaneModel"], store: Store, case_ids: list[str]) -> Iterator[list[RegionLogits]]:
    """Predict cases with every network; yield the regions of each case."""
    from kits_dist.inference.ensemble import WeightedLogitEnsemble  # torch takes seconds to import
    from kits_dist.inference.region_models import predict_volume

    clip = WeightedLogitEnsemble.CLIP
    for case_id in progress_bar("predict val", "case", items=case_ids):
        row = store.row[case_id]
        label = np.asarray(store.label(row))
        volumes = [predict_volume(member, store.image(row), store.cases[row]).numpy() for member in members]
        of_case = []
        for number, name in enumerate(members[0].regions):
            truth = np.isin(label, REGIONS[name])
            inside = np.any([volume[number] >= 0.5 for volume in volumes], axis=0)
            p = np.stack([volume[number][inside] for volume in volumes]).astype(np.float32).clip(clip, 1 - clip)
            logits = np.log(p / (1 - p)).astype(np.float16)
            of_case.append(RegionLogits(logits, truth[inside], int((truth & ~inside).sum())))
        yield of_case


def num_combinations(members: int, step: float) -> int:
    """Return how many weightings of `members` networks lie on a grid of `step`."""
    return math.comb(round(1 / step) + members - 1, members - 1)


def search_weights(cases: list[RegionLogits], members: int, step: float) -> tuple[np.ndarray, float]:
    """Return the (M,) weights of the highest mean Dice, and that Dice; of equals the weights nearest to equal ones."""
    steps = round(1 / step)
    # every combination deals `steps` parts of the whole among the networks
    dealt = itertools.combinations_with_replacement(range(members), steps)
    tried = [np.bincount(owners, minlength=members) / steps for owners in dealt][::-1]
    tried.sort(key=lambda weights: float(((weights - 1 / members) ** 2).sum()))

    scores = [fused_dice(cases, weights) for weights in progress_bar("fuse", "weights", items=tried)]
    best = int(np.argmax(scores))
    return tried[best], scores[best]


def fused_dice(cases: list[RegionLogits], weights: np.ndarray) -> float:
    """Return the mean Dice over cases of one region with the (M,) `weights`."""
    counts = []
    for case in cases:
        inside = weights.astype(np.float32) @ case.logits.astype(np.float32) >= 0
        both = int((inside & case.truth).sum())
        counts.append((both, int(inside.sum()) - both, int(case.truth.sum()) - both + case.missed))
    return float(mean_dice(np.array(counts)))
