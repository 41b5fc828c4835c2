"""What do three planes add to one? `python -m benchmarks.planes store=DIR`.

An axial, a coronal and a sagittal network alone; the three together with equal weights, and with the weights that
kits_dist.fuse chooses on `val`; and one network trained on slices of all three planes. Every row is scored on the
native grid. The price: three networks to train and to run instead of one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.lib.harness import pick_device
from benchmarks.lib.studies import Evaluation, Study, Training, Variant, conduct
from benchmarks.lib.study_runs import check_counts
from benchmarks.lib.study_setup import phantoms, recipe
from kits_dist import cli
from kits_dist.data.store import PLANES


@dataclass(frozen=True)
class Args:
    store: str = ""
    """A store prepared with planes=[axial,coronal,sagittal]; empty: phantoms, as benchmarks.ablation."""
    config: str = ""
    """Yaml of the networks; empty: configs/demo_gpu.yaml on a GPU, configs/demo.yaml cut down without."""
    keys: tuple[str, ...] = ()
    """Further keys of every training, as [optim.epochs=4]."""
    seeds: int = 3
    """Trainings of each network."""
    split: Literal["test", "val"] = "test"
    """Cases that are scored."""
    jobs: int = 0
    """Trainings at a time; 0: one a GPU, or one a core without."""
    runs: str = "runs/studies"
    """Folder of the trainings; what is finished there is not done again."""
    out: str = ""
    """Folder for the lines; empty: benchmarks/results, with quick=true runs/benchmarks."""
    quick: bool = False
    """Tiny networks and phantoms, one epoch: proves that it runs."""

    def __post_init__(self) -> None:
        check_counts(self.seeds, self.jobs)


def main(args: Args) -> None:
    on_gpu = pick_device().type == "cuda"
    folder = Path(args.runs).absolute() / ("planes_quick" if args.quick else "planes")
    cases, shape = (10, (16, 64, 64)) if args.quick else (100, (64, 256, 256)) if on_gpu else (160, (24, 96, 96))
    store = args.store or phantoms(folder, cases, shape, tuple(PLANES))
    first = recipe(args.config, on_gpu, args.quick)
    words = (*first, "data.sampler=natural", *args.keys)  # a quota by plane would be another study
    each = tuple(Training((*words, f"data.planes=[{plane}]"), plane) for plane in PLANES)
    seeds = tuple(range(1 if args.quick else args.seeds))
    variants = (
        Variant(
            "three networks",
            each,
            seeds,
            (
                *(Evaluation(plane, (plane,)) for plane in PLANES),
                Evaluation("equal weights", tuple(PLANES)),
                Evaluation("weights from val", tuple(PLANES), fuse=True),
            ),
        ),
        Variant("one network of all planes", (Training((*words, f"data.planes=[{','.join(PLANES)}]")),), seeds),
    )
    study = Study("planes", store, variants, folder, args.split)
    conduct(study, args, args.out or ("runs/benchmarks" if args.quick else ""), args.jobs)


if __name__ == "__main__":
    cli.run(main, Args)
