"""Choose on `val` the weight of each network: `python -m kits_dist.fuse run=[AXIAL,CORONAL,SAGITTAL] output=FILE`.

Several runs, a run of several planes (each plane counts as a network), or both. Their logits are added with weights,
one for each network and region: those on a grid of `step` with the highest mean Dice over the validation cases. Then
`evaluate` and `predict` take the same runs with fusion=FILE. `test` has no influence.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.evaluation.held_out import held_out
from kits_dist.evaluation.weight_search import fused_dice, num_combinations, predict_logits, search_weights
from kits_dist.inference.run_folders import run_folders
from kits_dist.utils import files
from kits_dist.utils.errors import InputError

if TYPE_CHECKING:
    from kits_dist.inference.predictor import Predictor
    from kits_dist.inference.region_models import PlaneModel

MAX_COMBINATIONS = 20_000  # of weights


@dataclass(frozen=True)
class Args:
    """Arguments of the command line."""

    run: str = MISSING
    """Runs as [A,B,...], or one run of several planes."""
    output: str = MISSING
    """JSON file of the weights."""
    store: str = ""
    """The runs' store, where it has moved."""
    step: float = 0.1
    """Distance between the weights that are tried."""
    batch_size: int = 16
    """Slices at once."""

    def __post_init__(self) -> None:
        if not 0.02 <= self.step <= 0.5 or abs(1 / self.step - round(1 / self.step)) > 1e-9:
            raise InputError(f"step={self.step}: use a part of 1 from 0.02 to 0.5, as 0.1.")


def main(args: Args) -> None:
    """Predict the validation cases with every network, and write the best weights of each region."""
    if Path(args.output).is_dir():
        raise InputError(f"output={args.output} is a folder. Name the file, as {args.output}/fusion.json")
    run_folders(args.run)
    files.make_folder(Path(args.output).parent, "output")

    from kits_dist.inference.ensemble import describe_members  # torch takes seconds: wrong arguments are answered first
    from kits_dist.inference.predictor import Predictor

    predictor = Predictor(args.run, args.batch_size)
    members = _members(predictor, args)
    store, case_ids = held_out(predictor, "val", args.store)
    cases = list(predict_logits(members, store, case_ids))

    weights = []
    rows = []
    equal_weights = np.full(len(members), 1 / len(members))
    for number, name in enumerate(predictor.regions):
        of_region = [case[number] for case in cases]
        alone = [fused_dice(of_region, one_hot) for one_hot in np.eye(len(members))]
        equal = fused_dice(of_region, equal_weights)
        best, score = search_weights(of_region, len(members), args.step)
        weights.append(best)
        rows.append({"region": name, "alone": alone, "equal": equal, "chosen": score})
        shown = [f"{m.run_model.run.name} {m.plane} {dice:.4f}" for m, dice in zip(members, alone, strict=True)]
        print(f"{name}: {', '.join(shown)}")
        print(f"  equal weights {equal:.4f}; chosen {[round(float(w), 3) for w in best]} {score:.4f}")

    of_members = zip(describe_members(members), np.array(weights).T, strict=True)
    content = {
        "regions": list(predictor.regions),
        "members": [member | {"weights": row.tolist()} for member, row in of_members],
        "data": store.meta["data"],
        "store_sha256": store.fingerprint(),
        "val": {"cases": len(case_ids), "dice": rows},
    }
    files.write_json(Path(args.output), content)
    print(f"data: {store.meta['data']}, {len(case_ids)} validation cases; use it with fusion={args.output}")


def _members(predictor: "Predictor", args: Args) -> list["PlaneModel"]:
    """Return each run along each of its planes. Raises InputError for networks that cannot be fused."""
    first, *others = predictor.members
    members = [plane for run in predictor.members for plane in run.plane_models()]
    if len(members) < 2 or any(run.is_second_phase for run in predictor.members):
        raise InputError(f"run={args.run}: name two or more runs that see whole slices, or one of several planes.")
    count = num_combinations(len(members), args.step)
    if count > MAX_COMBINATIONS:
        raise InputError(f"step={args.step}: {count} combinations for {len(members)} networks. Use a larger step.")
    for run in others:
        if run.config.data.fold != first.config.data.fold:
            raise InputError(f"{run.run} has other validation cases (data.fold) than {first.run}.")
    return members


if __name__ == "__main__":
    cli.run(main, Args)
