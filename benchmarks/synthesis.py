"""What do data synthesized from annotations add? `python -m benchmarks.synthesis labels=DIR`.

CTs are painted onto annotated cases (kits_dist.phantom labels=DIR), once without and once with `augment` synthetic
variants of each. Training gets the cases alone, or with their variants: for about as many steps, and for as many
passes, which are more steps; so the cases alone are also trained for as many as these. All are scored on the same
held-out originals.
"""

from dataclasses import dataclass

from benchmarks.lib.studies import Arm, Training, conduct
from benchmarks.lib.study_runs import configuration
from benchmarks.lib.study_setup import RecipeArgs, made_up, painted
from kits_dist import cli
from kits_dist.config import Config
from kits_dist.data.samples import select_samples
from kits_dist.data.store import Store
from kits_dist.utils.errors import InputError


@dataclass(frozen=True)
class Args(RecipeArgs):
    """Arguments of the program; `optim.epochs` among its keys counts passes over the cases alone."""

    labels: str = ""
    """Folder of annotated cases; empty: phantoms with their label maps."""
    cases: int = 60
    """How many annotated cases, at most."""
    augment: int = 4
    """Variants of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment < 1 or self.cases < 5:
            raise InputError(f"augment={self.augment} cases={self.cases}: at least 1 variant, 5 cases.")


def main(args: Args) -> None:
    """Make the data, train with and without variants, and write the lines of the study."""
    study = args.study("synthesis")
    shape = args.default(gpu=(64, 256, 256), cpu=(24, 96, 96), quick=(8, 64, 64))
    cases, augment = (10, 1) if args.quick else (args.cases, args.augment)
    labels = args.labels or made_up(study.folder, cases, shape)
    alone, more = (painted(study.folder, labels, cases, count) for count in (0, augment))
    study = study._replace(store=alone)
    words = args.recipe(epochs=8)
    words += ("optim.epochs=2",) if args.quick else ()

    first = Training((*words, *args.keys))
    config = configuration(first, study)
    epochs, times = config.optim.epochs, slices_of(more, config) / slices_of(alone, config)
    trainings = {
        "annotated cases alone": first,
        f"{augment} variants a case, as many steps": longer(first, max(1, round(epochs / times)), more),
        f"{augment} variants a case, as many passes": longer(first, epochs, more),
        "annotated cases alone, as many steps as these": longer(first, round(epochs * times), alone),
    }
    arms = tuple(Arm(name, (training,)) for name, training in trainings.items())
    conduct(study._replace(arms=arms), args)


def longer(training: Training, epochs: int, store: str) -> Training:
    """Return the training with another number of epochs, on another store."""
    return Training((*training.words, f"optim.epochs={epochs}"), store=store)


def slices_of(store: str, config: Config) -> int:
    """Return the number of training slices of an epoch."""
    opened = Store(store)
    return len(select_samples(opened, opened.splits.select(config.data.fold)[0], config.data, training=True).rows)


if __name__ == "__main__":
    cli.run(main, Args)
