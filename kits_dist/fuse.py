"""Choose on `val` how much each network says: `python -m kits_dist.fuse run=[AXIAL,CORONAL,SAGITTAL] output=FILE`.

Several runs, a run of several planes (each plane counts as a network), or both. Their logits are added with weights,
one for each network and region: those on a grid of `step` with the highest mean Dice over the validation cases. Then
`evaluate` and `predict` take the same runs with fusion=FILE. `test` has no say.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.data.store import Store
from kits_dist.evaluation.held_out import held_out
from kits_dist.evaluation.metrics import dice
from kits_dist.inference.ensemble import WeightedLogitEnsemble, describe_members
from kits_dist.inference.predictor import Predictor
from kits_dist.inference.region_models import PlaneModel, predict_volume
from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.parallel import progress_bar


@dataclass(frozen=True)
class Args:
    run: str = MISSING
    """Runs as [A,B,...], or one run of several planes."""
    output: str = MISSING
    """JSON file of the weights."""
    store: str = ""
    """The runs' store, where it has moved."""
    step: float = 0.1
    """Between the weights that are tried."""
    batch_size: int = 16
    """Slices at once."""

    def __post_init__(self) -> None:
        if not 0.02 <= self.step <= 0.5 or abs(1 / self.step - round(1 / self.step)) > 1e-9:
            raise InputError(f"step={self.step}: use a part of 1 from 0.02 to 0.5, as 0.1.")


class Seen(NamedTuple):
    """One case and region, as far as it can matter: voxels that a network calls inside."""

    logits: np.ndarray  # (M, n) float16
    truth: np.ndarray  # (n,) bool
    missed: int  # true voxels that no network calls inside


MOST = 20_000  # combinations of weights


def main(args: Args) -> None:
    if Path(args.output).is_dir():
        raise InputError(f"output={args.output} is a folder. Name the file, as {args.output}/fusion.json")
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    predictor = Predictor(args.run, args.batch_size)
    members = [plane for run in predictor.members for plane in run.plane_models()]
    if len(members) < 2 or any(run.config.data.box != "body" for run in predictor.members):
        raise InputError(f"run={args.run}: name two or more runs that see the whole body, or one of several planes.")
    if (count := math.comb(round(1 / args.step) + len(members) - 1, len(members) - 1)) > MOST:
        raise InputError(f"step={args.step}: {count} combinations for {len(members)} networks. Use a larger step.")
    store, case_ids = held_out(predictor, "val", args.store)
    if bad := [run.run for run in predictor.members if run.config.data.fold != predictor.config.data.fold]:
        raise InputError(f"{bad[0]} has other validation cases (data.fold) than {predictor.members[0].run}.")
    seen = list(_seen_by(members, store, case_ids))
    regions, weights, rows = predictor.regions, [], []
    for number, name in enumerate(regions):
        cases = [of_case[number] for of_case in seen]
        alone = [mean_dice(cases, np.eye(len(members))[m]) for m in range(len(members))]
        equal = mean_dice(cases, np.full(len(members), 1 / len(members)))
        best, score = choose(cases, len(members), args.step)
        weights.append(best)
        rows.append({"region": name, "alone": alone, "equal": equal, "chosen": score})
        print(
            f"{name}: " + ", ".join(f"{m.of.run.name} {m.plane} {d:.4f}" for m, d in zip(members, alone, strict=True))
        )
        print(f"  equal weights {equal:.4f}; chosen {[round(float(w), 3) for w in best]} {score:.4f}")
    table = np.array(weights).T
    content = {
        "regions": list(regions),
        "members": [
            name | {"weights": row.tolist()} for name, row in zip(describe_members(members), table, strict=True)
        ],
        "data": store.meta["data"],
        "store_sha256": store.fingerprint(),
        "val": {"cases": len(case_ids), "dice": rows},
    }
    files.write_json(Path(args.output), content)
    print(f"data: {store.meta['data']}, {len(case_ids)} validation cases; use it with fusion={args.output}")


def choose(cases: list[Seen], members: int, step: float) -> tuple[np.ndarray, float]:
    """The (M,) weights of the highest mean Dice; of equals those nearest to equal weights."""
    whole = round(1 / step)
    bars = np.array(list(itertools.combinations(range(whole + members - 1), members - 1))).reshape(-1, members - 1)
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, whole + members - 1)))
    tried = list((np.diff(edges, axis=1) - 1) / whole)  # stars and bars: every way to deal `whole` among them
    tried.sort(key=lambda w: float(((w - 1 / members) ** 2).sum()))
    scores = [mean_dice(cases, w) for w in progress_bar("fuse", "weights", items=tried)]
    best = int(np.argmax(scores))
    return tried[best], scores[best]


def mean_dice(cases: list[Seen], weights: np.ndarray) -> float:
    counts = []
    for case in cases:
        inside = weights.astype(np.float32) @ case.logits.astype(np.float32) >= 0
        both = int((inside & case.truth).sum())
        counts.append((both, int(inside.sum()) - both, int(case.truth.sum()) - both + case.missed))
    return float(dice(np.array(counts)).mean())


def _seen_by(members: list[PlaneModel], store: Store, case_ids: list[str]) -> Iterator[list[Seen]]:
    """Of each case its regions. Where every network says outside, so does any weighting: only the others are kept."""
    for case_id in progress_bar("predict val", "case", items=case_ids):
        row = store.row[case_id]
        label = np.asarray(store.label(row))
        volumes = [predict_volume(member, store.image(row), store.cases[row]) for member in members]
        of_case = []
        for number, name in enumerate(members[0].regions):
            truth = np.isin(label, REGIONS[name])
            said = np.any([(volume[number] >= 0.5).numpy() for volume in volumes], axis=0)
            logits = [volume[number].numpy()[said].astype(np.float32) for volume in volumes]
            sure = WeightedLogitEnsemble.CLIP
            logits = [np.clip(p, sure, 1 - sure) for p in logits]
            stacked = np.stack([np.log(p / (1 - p)) for p in logits]).astype(np.float16)
            of_case.append(Seen(stacked, truth[said], int((truth & ~said).sum())))
        yield of_case


if __name__ == "__main__":
    cli.run(main, Args)
