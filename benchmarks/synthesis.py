"""What do data synthesised from annotations add? `python -m benchmarks.synthesis labels=DIR`.

CTs are painted onto annotated cases (kits_dist.phantom labels=DIR), once without and once with `augment` synthetic
variants of each. Training sees the cases alone, or with their variants: for about as many steps, and for as many
passes, which are more steps; so the cases alone are also trained for as many as these. All are scored on the same
held-out originals.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.lib.harness import pick_device
from benchmarks.lib.studies import Study, Training, Variant, conduct
from benchmarks.lib.study_runs import check_counts, configuration
from benchmarks.lib.study_setup import recipe
from kits_dist import cli, phantom, prepare
from kits_dist.config import Config
from kits_dist.data.samples import select_samples
from kits_dist.data.store import Store
from kits_dist.utils.errors import InputError


@dataclass(frozen=True)
class Args:
    labels: str = ""
    """Folder of annotated cases; empty: phantoms, whose annotations are made up."""
    cases: int = 60
    """How many annotated cases, at most."""
    augment: int = 4
    """Variants of each."""
    config: str = ""
    """Yaml of the network; empty: configs/demo_gpu.yaml on a GPU, configs/demo.yaml cut down without."""
    keys: tuple[str, ...] = ()
    """Further keys of both trainings; optim.epochs counts passes over the cases alone."""
    seeds: int = 3
    """Trainings of each."""
    split: Literal["test", "val"] = "test"
    """Cases that are scored."""
    jobs: int = 0
    """Trainings at a time; 0: one a GPU, or one a core without."""
    runs: str = "runs/studies"
    """Folder of the trainings; what is finished there is not done again."""
    out: str = ""
    """Folder for the lines; empty: benchmarks/results, with quick=true runs/benchmarks."""
    quick: bool = False
    """Tiny network and phantoms, one epoch: proves that it runs."""

    def __post_init__(self) -> None:
        check_counts(self.seeds, self.jobs)
        if self.augment < 1 or self.cases < 5:
            raise InputError(f"augment={self.augment} cases={self.cases}: at least 1 variant, 5 cases.")


def main(args: Args) -> None:
    on_gpu = pick_device().type == "cuda"
    folder = Path(args.runs).absolute() / ("synthesis_quick" if args.quick else "synthesis")
    shape = (8, 64, 64) if args.quick else (64, 256, 256) if on_gpu else (24, 96, 96)
    cases, augment = (10, 1) if args.quick else (args.cases, args.augment)
    labels = args.labels or made_up(folder, cases, shape)
    alone, more = (painted(folder, labels, cases, count) for count in (0, augment))
    words = recipe(args.config, on_gpu, args.quick, epochs=8)
    words += ("optim.epochs=2",) if args.quick else ()
    study = Study("synthesis", alone, (), folder, args.split)
    first = Training((*words, *args.keys))
    config = configuration(first, study)
    epochs, times = config.optim.epochs, slices_of(more, config) / slices_of(alone, config)
    trainings = {
        "annotated cases alone": first,
        f"{augment} variants a case, as many steps": longer(first, max(1, round(epochs / times)), more),
        f"{augment} variants a case, as many passes": longer(first, epochs, more),
        "annotated cases alone, as many steps as these": longer(first, round(epochs * times), alone),
    }
    seeds = tuple(range(1 if args.quick else args.seeds))
    study = study._replace(variants=tuple(Variant(name, (one,), seeds) for name, one in trainings.items()))
    conduct(study, args, args.out or ("runs/benchmarks" if args.quick else ""), args.jobs)


def longer(training: Training, epochs: int, store: str) -> Training:
    return Training((*training.words, f"optim.epochs={epochs}"), store=store)


def made_up(folder: Path, cases: int, size: tuple[int, int, int]) -> str:
    """Phantoms whose label maps stand for annotations."""
    raw = folder / "data" / f"labels_{cases}_{'x'.join(map(str, size))}"
    phantom.main(phantom.Args(output=str(raw), cases=cases, size=size))
    return str(raw)


def painted(folder: Path, labels: str, cases: int, augment: int) -> str:
    """A store of CTs painted onto them, with `augment` variants of each; made once."""
    told_apart = hashlib.sha256(str(Path(labels).resolve()).encode()).hexdigest()[:8]
    where = folder / "data" / f"{Path(labels).name}_{told_apart}_{cases}_augment_{augment}"
    if not (where / "store" / "store.json").is_file():
        phantom.main(phantom.Args(output=str(where / "raw"), labels=labels, cases=cases, augment=augment))
        prepare.main(prepare.Args(source=str(where / "raw"), store=str(where / "store")))
    return str(where / "store")


def slices_of(store: str, config: Config) -> int:
    """Training slices of an epoch."""
    opened = Store(store)
    return len(select_samples(opened, opened.splits.select(config.data.fold)[0], config.data, training=True).rows)


if __name__ == "__main__":
    cli.run(main, Args)
