"""The poster's Table 1: how well does each of its three configurations segment? `bash launch/table1.sh store=DIR`.

The simple 5-level U-Net for the kidney; the ResNet34 U-Net as a first run, in two phases; the same with our best
recipe (warm-up, schedule, averaged weights). A cascade has three rows: phase 1 alone, phase 2 alone in the boxes of the
annotation, and the whole, which finds its boxes itself.

size=small: narrow networks on small slices, for phantoms on CPU cores; size=full: the configurations as they are.
"""

from dataclasses import dataclass
from typing import Literal

from benchmarks.lib.programs import ROOT
from benchmarks.lib.studies import Arm, Evaluation, Training, conduct
from benchmarks.lib.study_setup import StudyArgs, phantoms
from kits_dist import cli

CONFIGS = ROOT / "configs"
CASCADE = (
    Evaluation("", ("phase1", "phase2")),
    Evaluation("phase1", ("phase1", "phase2"), stage=True),
    Evaluation("phase2", ("phase1", "phase2"), stage=True),
)
# row: configurations of phase 1 and 2
ROWS = {
    "simple U-Net": ("baseline_unet",),
    "ResNet34 U-Net, first run": ("kidney", "tumor"),
    "ResNet34 U-Net, optimised": ("kidney_best", "tumor_best"),
}


@dataclass(frozen=True)
class Args(StudyArgs):
    """Arguments of the program."""

    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 96 of 32x128x128, on a GPU 60 of 64x256x256."""
    size: Literal["", "small", "full"] = ""
    """Size of networks and slices; empty: full on a GPU, else small."""
    seeds: int = 1
    """Trainings of each arm; one with quick=true."""


def main(args: Args) -> None:
    """Train the poster's configurations, and write the lines of the study."""
    study = args.study("table1")
    cases, shape = args.default(gpu=(60, (64, 256, 256)), cpu=(96, (32, 128, 128)), quick=(10, (8, 64, 64)))
    store = args.store or phantoms(study.folder, cases, shape)
    size = "small" if args.quick else args.size or args.default(gpu="full", cpu="small", quick="small")
    tiny = ("optim.epochs=1", "model.width=4", "data.size_px=64x64") if args.quick else ()
    arms = tuple(arm_of(name, size == "small", (*tiny, *args.keys)) for name in ROWS)
    conduct(study._replace(store=store, arms=arms), args)


def arm_of(name: str, small: bool, more: tuple[str, ...]) -> Arm:
    """Return the trainings and evaluations of a row."""
    configs = ROWS[name]
    smaller = ("small_unet",) if configs == ("baseline_unet",) else ("small_kidney", "small_tumor")
    trainings = []
    for config, over, phase in zip(configs, smaller, ("phase1", "phase2"), strict=False):
        words = [f"config={CONFIGS / config}.yaml"]
        if small:
            words.append(f"config={CONFIGS / over}.yaml")
        trainings.append(Training((*words, *more), phase))
    evaluations = CASCADE if len(trainings) > 1 else (Evaluation("", ("phase1",)),)
    return Arm(name, tuple(trainings), evaluations)


if __name__ == "__main__":
    cli.run(main, Args)
