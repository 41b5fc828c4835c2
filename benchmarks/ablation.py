"""What does each ingredient of the training do to Dice? `python -m benchmarks.ablation store=DIR`.

One reference configuration, and beside it each ingredient changed alone: loss, start of the head, weights, optimiser,
schedule, averaged weights, sampler, neighbouring slices, augmentation. Options that the reference has already are left
out. Each row is compared with the reference patient by patient (studies.py).

Without a GPU the reference is configs/demo.yaml cut down to less than a minute of one core, with one it is
configs/demo_gpu.yaml. So small a budget says what helps early, not whether it still helps after hours of training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.lib.harness import pick_device
from benchmarks.lib.studies import Study, Training, Variant, conduct
from benchmarks.lib.study_runs import check_counts, configuration
from benchmarks.lib.study_setup import phantoms, recipe
from kits_dist import cli
from kits_dist.utils.errors import InputError

AUGMENTATIONS = ("rotate_p", "flip", "scale_p", "crop", "shift_p", "blur_p", "brightness_p", "contrast_p", "gamma_p")
AUGMENTATIONS += ("noise_p",)


def ingredients(regions: int) -> dict[str, dict[str, tuple[str, ...]]]:
    """{ingredient: {option: keys of the configuration}} for a network of so many regions, the innermost one last."""
    others = "1," * (regions - 1)
    return {
        "loss": {name: (f"optim.loss={name}",) for name in ("bce", "dice", "bce_dice", "focal", "tversky")},
        "prior": {"off": ("model.prior=0.5",), "on": ("model.prior=0.01",)},
        "pos_weight": {"off": ("optim.pos_weight=none",), "on": (f"optim.pos_weight=[{others}4]",)},
        "region_weight": {"off": ("optim.region_weight=none",), "on": (f"optim.region_weight=[{others}2]",)},
        "optimiser": {
            "adam": ("optim.name=adam", "optim.weight_decay=0"),
            "adamw": ("optim.name=adamw", "optim.weight_decay=0.01"),
            # lr / (1 - momentum) is 1, as in nnU-Net (0.01 with momentum 0.99; Isensee et al. 2021)
            "sgd": ("optim.name=sgd", "optim.weight_decay=0", "optim.lr=0.1"),
        },
        "schedule": {name: (f"optim.schedule={name}",) for name in ("constant", "cosine", "poly")},
        "warm-up": {"off": ("optim.warmup_steps=0",), "on": ("optim.warmup_steps=50",)},
        "ema": {"off": ("optim.ema=0",), "on": ("optim.ema=0.99",)},
        "sampler": {name: (f"data.sampler={name}",) for name in ("natural", "tumor")},
        "context": {str(slices): (f"data.context={slices}",) for slices in (0, 1)},
        "augmentation": {"off": tuple(f"augment.{key}=0" for key in AUGMENTATIONS)},
    }


INGREDIENTS = tuple(ingredients(1))


@dataclass(frozen=True)
class Args:
    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 160 of 24x96x96, on a GPU 100 of 64x256x256."""
    config: str = ""
    """Yaml of the reference; empty: configs/demo_gpu.yaml on a GPU, configs/demo.yaml cut down without."""
    keys: tuple[str, ...] = ()
    """Further keys of every training, the budget above all: [optim.epochs=4,model.width=12]."""
    seeds: int = 3
    """Trainings of each variant."""
    only: tuple[str, ...] = ()
    """Ingredients, as [loss,context]; empty: all."""
    split: Literal["test", "val"] = "test"
    """Cases that are scored."""
    jobs: int = 0
    """Trainings at a time; 0: one a GPU, or one a core without."""
    runs: str = "runs/studies"
    """Folder of the trainings; what is finished there is not done again."""
    out: str = ""
    """Folder for the lines; empty: benchmarks/results, with quick=true runs/benchmarks."""
    quick: bool = False
    """One ingredient, one seed, one tiny epoch: proves that it runs."""

    def __post_init__(self) -> None:
        if wrong := [name for name in self.only if name not in INGREDIENTS]:
            raise InputError(f"only={wrong}: choose from {list(INGREDIENTS)}.")
        check_counts(self.seeds, self.jobs)


def main(args: Args) -> None:
    on_gpu = pick_device().type == "cuda"
    folder = Path(args.runs).absolute() / ("ablation_quick" if args.quick else "ablation")
    cases, size = (10, (8, 64, 64)) if args.quick else (100, (64, 256, 256)) if on_gpu else (160, (24, 96, 96))
    store = args.store or phantoms(folder, cases, size)
    words = (*recipe(args.config, on_gpu, args.quick), *args.keys)
    seeds = tuple(range(1 if args.quick else args.seeds))
    study = Study("ablation", store, (), folder, args.split)
    only = args.only or (("loss",) if args.quick else INGREDIENTS)
    chosen = variants(words, study, only, seeds)
    study = study._replace(variants=chosen[:2] if args.quick else chosen)
    conduct(study, args, args.out or ("runs/benchmarks" if args.quick else ""), args.jobs)


def variants(
    reference: tuple[str, ...], study: Study, only: tuple[str, ...], seeds: tuple[int, ...]
) -> tuple[Variant, ...]:
    """The reference, then each option of the ingredients `only` that makes another training. Raises InputError."""
    same = configuration(Training(reference), study)
    found = [Variant("reference", (Training(reference),), seeds)]
    options = ingredients(len(same.model.regions))
    for ingredient in only:
        for option, words in options[ingredient].items():
            training = Training((*reference, *words))
            if configuration(training, study) != same:
                found.append(Variant(f"{ingredient} {option}", (training,), seeds))
    return tuple(found)


if __name__ == "__main__":
    cli.run(main, Args)
