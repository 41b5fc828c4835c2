"""The poster's Table 1, and our best recipe: `bash launch/table1.sh store=DIR`.

Each row is a cascade, trained and scored as its configurations say: the poster's three columns (configs/poster_*.yaml),
then kidney_best.yaml and tumor_best.yaml. Every row is scored by the challenge's measure and by the poster's, next to
what the poster reports and what predicting nothing scores.

The first two columns of the poster were trained in the HU window [20, 45], so a second store is derived from `store`.

size=small: narrow networks on small slices, for phantoms on CPU cores; size=full: the configurations as they are.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from benchmarks.lib.programs import ROOT
from benchmarks.lib.stores import rewindowed
from benchmarks.lib.studies import Arm, Evaluation, Training, conduct
from benchmarks.lib.study_setup import StudyArgs, phantoms
from kits_dist import cli
from kits_dist.data.intensity import Window
from kits_dist.data.store import Store
from kits_dist.utils.errors import InputError

CONFIGS = ROOT / "configs"
WIDE, NARROW = Window(0, 200), Window(20, 45)


class Row(NamedTuple):
    """A cascade: configurations of phase 1 and 2, what shrinks each for CPU cores, and the HU window of both."""

    configs: tuple[str, str]
    smaller: tuple[str, str]
    window: Window


ROWS = {
    "poster, plain U-Net": Row(("poster_unet_kidney", "poster_unet_tumor"), ("small_unet", "small_unet"), NARROW),
    "poster, first run": Row(("poster_first_kidney", "poster_first_tumor"), ("small_kidney", "small_kidney"), NARROW),
    "poster, optimized": Row(
        ("poster_optimized_kidney", "poster_optimized_tumor"), ("small_kidney", "small_kidney"), WIDE
    ),
    "our best recipe": Row(("kidney_best", "tumor_best"), ("small_kidney", "small_tumor"), WIDE),
}


@dataclass(frozen=True)
class Args(StudyArgs):
    """Arguments of the program."""

    store: str = ""
    """A store of kits_dist.prepare splits=poster, window_hu=[0,200]; empty: phantoms, 120 of 24x128x128, on a GPU 60 of
    64x256x256."""
    size: Literal["", "small", "full"] = ""
    """Size of networks and slices; empty: full on a GPU, else small."""
    seeds: int = 1
    """Trainings of each arm; one with quick=true."""


def main(args: Args) -> None:
    """Train the cascades, and write the lines of the study."""
    study = args.study("table1")
    cases, shape = args.default(gpu=(60, (64, 256, 256)), cpu=(120, (24, 128, 128)), quick=(10, (8, 64, 64)))
    store = Store(args.store or phantoms(study.folder, cases, shape, splits="poster"), key="store")
    if store.window != WIDE:
        raise InputError(
            f"store={store.path} has the window {list(store.window)}. Prepare one with window_hu=[0,200]: the narrow "
            "window of the poster's first run is cut out of it."
        )
    folder = study.folder / "data" / f"{store.fingerprint()[:12]}_20_45"
    stores = {WIDE: str(store.path), NARROW: str(rewindowed(store, NARROW, folder).path)}
    size = "small" if args.quick else args.size or args.default(gpu="full", cpu="small", quick="small")
    tiny = ("optim.epochs=1", "model.width=4", "data.size_px=64x64") if args.quick else ()
    arms = tuple(arm_of(name, size == "small", stores, (*tiny, *args.keys)) for name in ROWS)
    conduct(study._replace(store=stores[WIDE], arms=arms), args)


def arm_of(name: str, small: bool, stores: dict[Window, str], more: tuple[str, ...] = ()) -> Arm:
    """Return the trainings of a row and the evaluation of its cascade; stores: {window: store}."""
    row = ROWS[name]
    trainings = []
    for config, smaller, phase in zip(row.configs, row.smaller, ("phase1", "phase2"), strict=True):
        layers = (config, smaller) if small else (config,)
        words = (*(f"config={CONFIGS / layer}.yaml" for layer in layers), *more)
        trainings.append(Training(words, phase, stores[row.window]))
    return Arm(name, tuple(trainings), (Evaluation("", ("phase1", "phase2")),))


if __name__ == "__main__":
    cli.run(main, Args)
