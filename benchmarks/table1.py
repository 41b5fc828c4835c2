"""The poster's Table 1: how well does each of its three configurations segment? `bash launch/table1.sh store=DIR`.

The simple 5-level U-Net for the kidney; the ResNet34 U-Net as a first run, in two phases; the same with our best
recipe (warm-up, schedule, averaged weights). Of a cascade three rows: phase 1 alone, phase 2 alone in the boxes of the
annotation, and the whole, which finds its boxes itself.

size=small: narrow networks on small slices, for phantoms on CPU cores; size=full: the configurations as they are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.lib.harness import pick_device
from benchmarks.lib.lines import Line
from benchmarks.lib.studies import Evaluation, Study, Training, Variant, conduct
from benchmarks.lib.study_runs import ROOT, check_counts
from benchmarks.lib.study_setup import phantoms
from kits_dist import cli

CONFIGS = ROOT / "configs"
CASCADE = (
    Evaluation("", ("phase1", "phase2")),
    Evaluation("phase1", ("phase1", "phase2"), stage=True),
    Evaluation("phase2", ("phase1", "phase2"), stage=True),
)
# row: (configurations of phase 1 and 2, the poster's Dice of kidney and tumor on KiTS)
ROWS = {
    "simple U-Net": (("baseline_unet",), (0.736, None)),
    "ResNet34 U-Net, first run": (("kidney", "tumor"), (0.932, 0.793)),
    "ResNet34 U-Net, optimised": (("kidney_best", "tumor_best"), (0.961, 0.811)),
}
NOTE = (
    "The poster's figures are of KiTS cases and of its own measure; ours are volume Dice, the mean over the cases of "
    "this store. They stand side by side to show the order of the rows, not to be compared."
)


@dataclass(frozen=True)
class Args:
    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 96 of 32x128x128, on a GPU 60 of 64x256x256."""
    size: Literal["", "small", "full"] = ""
    """Of networks and slices; empty: full on a GPU, else small."""
    keys: tuple[str, ...] = ()
    """Further keys of every training, as [optim.epochs=4,model.encoder_weights=none]."""
    seeds: int = 1
    """Trainings of each row."""
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
    folder = Path(args.runs).absolute() / ("table1_quick" if args.quick else "table1")
    cases, shape = (10, (8, 64, 64)) if args.quick else (60, (64, 256, 256)) if on_gpu else (96, (32, 128, 128))
    store = args.store or phantoms(folder, cases, shape)
    small = args.quick or (args.size or ("full" if on_gpu else "small")) == "small"
    tiny = ("optim.epochs=1", "model.width=4", "data.size_px=64x64") if args.quick else ()
    seeds = tuple(range(args.seeds))
    variants = tuple(_variant(name, small, (*tiny, *args.keys), seeds) for name in ROWS)
    study = Study("table1", store, variants, folder, args.split)
    lines = conduct(study, args, args.out or ("runs/benchmarks" if args.quick else ""), args.jobs)
    print(f"\n{beside_the_poster(lines)}\n{NOTE}")


def _variant(name: str, small: bool, more: tuple[str, ...], seeds: tuple[int, ...]) -> Variant:
    configs, _ = ROWS[name]
    smaller = ("small_unet",) if configs == ("baseline_unet",) else ("small_kidney", "small_tumor")
    phases = zip(configs, ("phase1", "phase2"), smaller, strict=False)
    trainings = []
    for config, phase, over in phases:
        words = [f"config={CONFIGS / f'{config}.yaml'}"] + [f"config={CONFIGS / f'{over}.yaml'}"] * small
        trainings.append(Training((*words, *more), phase))
    evaluations = CASCADE if len(trainings) > 1 else (Evaluation("", ("phase1",)),)
    return Variant(name, tuple(trainings), seeds, evaluations)


def beside_the_poster(lines: list[Line]) -> str:
    """Each row's kidney (with masses) and tumor, as printed there."""
    found = {(line.config["variant"], line.config.get("region")): line for line in lines if line.value is not None}
    row = "{:<28} {:>24} {:>10}   {:>24} {:>10}".format
    said = [row("", "kidney_and_mass", "poster", "tumor", "poster")]
    for name, (_, posters) in ROWS.items():
        cells = []
        for region, poster in zip(("kidney_and_mass", "tumor"), posters, strict=True):
            line = found.get((name, region))
            cells.append("-" if line is None else f"{line.value:.3f} [{line.spread[0]:.3f} .. {line.spread[1]:.3f}]")
            cells.append("-" if poster is None else f"{poster:.3f}")
        said.append(row(name, *cells))
    return "\n".join(said)


if __name__ == "__main__":
    cli.run(main, Args)
