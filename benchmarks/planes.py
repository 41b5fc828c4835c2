"""What do three planes add to one? `python -m benchmarks.planes store=DIR`.

An axial, a coronal and a sagittal network alone; the three together with equal weights, and with the weights that
kits_dist.fuse chooses on `val`; and one network trained on slices of all three planes. Every row is scored on the
native grid. The price: three networks to train and to run instead of one.
"""

from dataclasses import dataclass

from benchmarks.lib.studies import Arm, Evaluation, Training, conduct
from benchmarks.lib.study_setup import RecipeArgs, phantoms
from kits_dist import cli
from kits_dist.data.store import PLANES


@dataclass(frozen=True)
class Args(RecipeArgs):
    """Arguments of the program."""

    store: str = ""
    """A store prepared with planes=[axial,coronal,sagittal]; empty: phantoms, as benchmarks.ablation."""


def main(args: Args) -> None:
    """Train the networks, and write the lines of the study."""
    study = args.study("planes")
    cases, shape = args.default(gpu=(100, (64, 256, 256)), cpu=(160, (24, 96, 96)), quick=(10, (16, 64, 64)))
    store = args.store or phantoms(study.folder, cases, shape, tuple(PLANES))
    # the natural sampler: a quota of tumor slices for each plane would be another study
    words = (*args.recipe(), "data.sampler=natural", *args.keys)
    networks = tuple(Training((*words, f"data.planes=[{plane}]"), plane) for plane in PLANES)
    evaluations = (
        *(Evaluation(plane, (plane,)) for plane in PLANES),
        Evaluation("equal weights", tuple(PLANES)),
        Evaluation("weights from val", tuple(PLANES), fuse=True),
    )
    together = Training((*words, f"data.planes=[{','.join(PLANES)}]"))
    arms = (Arm("three networks", networks, evaluations), Arm("one network of all planes", (together,)))
    conduct(study._replace(store=store, arms=arms), args)


if __name__ == "__main__":
    cli.run(main, Args)
