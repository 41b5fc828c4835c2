"""What studies share: their arguments, phantoms to train on, and a recipe that the machine can train in an hour."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks.lib.arguments import RunArgs
from benchmarks.lib.programs import ROOT
from benchmarks.lib.stores import make_store
from benchmarks.lib.study_runs import Study
from kits_dist import phantom, prepare
from kits_dist.data.splits import SplitRule
from kits_dist.utils.errors import InputError

TINY = ("data.size_px=64x64", "model.width=4", "optim.epochs=1")


@dataclass(frozen=True)
class StudyArgs(RunArgs):
    """Arguments of every study."""

    keys: tuple[str, ...] = ()
    """Further keys of every training, above all its budget, as [optim.epochs=4,model.width=12]."""
    seeds: int = 3
    """Trainings of each arm; one with quick=true."""
    split: Literal["test", "val"] = "test"
    """Cases that are scored."""
    jobs: int = 0
    """Trainings at a time; 0: one per GPU, or one per core without."""
    runs: str = "runs/studies"
    """Folder of the trainings; what is finished there is not done again."""
    out: str = ""
    """Folder for the lines; empty: benchmarks/results, with quick=true runs/benchmarks."""

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= 100:
            raise InputError(f"seeds={self.seeds}: use 1..100.")
        if self.jobs < 0:
            raise InputError(f"jobs={self.jobs} must be 0 (one per GPU or core) or more.")

    def study(self, name: str, store: str = "") -> Study:
        """Return the study without its store and arms."""
        folder = Path(self.runs).absolute() / (f"{name}_quick" if self.quick else name)
        seeds = tuple(range(1 if self.quick else self.seeds))
        return Study(name, store, (), folder, self.split, seeds)


@dataclass(frozen=True)
class RecipeArgs(StudyArgs):
    """Arguments of a study that changes one recipe."""

    config: str = ""
    """Yaml file of the network; empty: configs/demo_gpu.yaml on a GPU, configs/demo.yaml cut down without."""

    def recipe(self, epochs: int = 2) -> tuple[str, ...]:
        """Return the words that every training begins with; the user's `keys` come last, and win."""
        return recipe(self.config, torch.cuda.is_available(), self.quick, epochs)


def phantoms(
    folder: Path,
    cases: int,
    size: tuple[int, int, int],
    planes: tuple[str, ...] = ("axial",),
    splits: SplitRule = "stratified",
) -> str:
    """Return a store of phantoms below `folder`, made once."""
    where = folder / "data" / f"{cases}_{'x'.join(map(str, size))}"
    if not (where / "store" / "store.json").is_file():
        make_store(where, cases, size, planes, splits)
    return str(where / "store")


def made_up(folder: Path, cases: int, size: tuple[int, int, int]) -> str:
    """Return a folder of phantoms, whose label maps take the place of annotations."""
    raw = folder / "data" / f"labels_{cases}_{'x'.join(map(str, size))}"
    phantom.main(phantom.Args(output=str(raw), cases=cases, size=size))
    return str(raw)


def painted(folder: Path, labels: str, cases: int, augment: int) -> str:
    """Return a store of CTs painted onto annotated cases, with `augment` variants of each; made once."""
    where = folder / "data" / f"{Path(labels).name}_{digest([str(Path(labels).resolve())])}_{cases}_augment_{augment}"
    if not (where / "store" / "store.json").is_file():
        phantom.main(phantom.Args(output=str(where / "raw"), labels=labels, cases=cases, augment=augment))
        prepare.main(prepare.Args(source=str(where / "raw"), store=str(where / "store")))
    return str(where / "store")


def digest(names: list[str]) -> str:
    """Return eight hexadecimal digits that tell folders of other contents apart."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]


def recipe(config: str, on_gpu: bool, quick: bool, epochs: int = 2) -> tuple[str, ...]:
    """Return the words that every training of a study begins with.

    config   a yaml file of the user; empty: configs/demo_gpu.yaml on a GPU, and without one configs/demo.yaml cut
             down, at 2 `epochs` to less than a minute on one core
    quick    tiny images and network, one epoch
    """
    if config or (on_gpu and not quick):
        words = (f"config={Path(config or ROOT / 'configs' / 'demo_gpu.yaml')}",)
    else:
        small = ("data.size_px=64x96", "data.backend=opencv", f"optim.epochs={epochs}", "log.images=0")
        words = (f"config={ROOT / 'configs' / 'demo.yaml'}", *small)
    return words + TINY if quick else words
