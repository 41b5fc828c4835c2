"""What does each ingredient of the training do to Dice? `python -m benchmarks.ablation store=DIR`.

One reference configuration, and arms that change one ingredient each: loss, start of the head, weights, optimizer,
schedule, averaged weights, sampler, neighboring slices, augmentation. Options that the reference has already are left
out. Each row is compared with the reference patient by patient (benchmarks/lib/studies.py).

Without a GPU the reference is configs/demo.yaml cut down to less than a minute on one core, with one it is
configs/demo_gpu.yaml. So small a budget shows what helps early, not whether it still helps after hours of training.
"""

from dataclasses import dataclass

from benchmarks.lib.studies import Arm, Study, Training, conduct
from benchmarks.lib.study_runs import configuration
from benchmarks.lib.study_setup import RecipeArgs, phantoms
from kits_dist import cli
from kits_dist.utils.errors import InputError

AUGMENTATIONS = ("rotate_p", "flip", "scale_p", "crop", "shift_p", "blur_p", "brightness_p", "contrast_p", "gamma_p")
AUGMENTATIONS += ("noise_p",)


def ingredients(regions: int) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return {ingredient: {option: keys}} for a network of so many regions, the innermost region last."""
    others = "1," * (regions - 1)
    return {
        "loss": {name: (f"optim.loss={name}",) for name in ("bce", "dice", "bce_dice", "focal", "tversky")},
        "prior": {"off": ("model.prior=0.5",), "on": ("model.prior=0.01",)},
        "pos_weight": {"off": ("optim.pos_weight=none",), "on": (f"optim.pos_weight=[{others}4]",)},
        "region_weight": {"off": ("optim.region_weight=none",), "on": (f"optim.region_weight=[{others}2]",)},
        "optimiser": {  # this spelling is part of the names of recorded lines
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
class Args(RecipeArgs):
    """Arguments of the program."""

    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 160 of 24x96x96, on a GPU 100 of 64x256x256."""
    only: tuple[str, ...] = ()
    """Ingredients, as [loss,context]; empty: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := [name for name in self.only if name not in INGREDIENTS]:
            raise InputError(f"only={wrong}: choose from {list(INGREDIENTS)}.")


def main(args: Args) -> None:
    """Train all arms, and write the lines of the study."""
    study = args.study("ablation")
    cases, size = args.default(gpu=(100, (64, 256, 256)), cpu=(160, (24, 96, 96)), quick=(10, (8, 64, 64)))
    study = study._replace(store=args.store or phantoms(study.folder, cases, size))
    chosen = arms((*args.recipe(), *args.keys), study, args.only or INGREDIENTS)
    conduct(study._replace(arms=chosen[:2] if args.quick else chosen), args)


def arms(reference: tuple[str, ...], study: Study, only: tuple[str, ...]) -> tuple[Arm, ...]:
    """Return the reference, then each option of the ingredients `only` that makes another training.

    Raises InputError for arguments that kits_dist.train would refuse.
    """
    same = configuration(Training(reference), study)
    found = [Arm("reference", (Training(reference),))]
    options = ingredients(len(same.model.regions))
    for ingredient in only:
        for option, words in options[ingredient].items():
            training = Training((*reference, *words))
            if configuration(training, study) != same:
                found.append(Arm(f"{ingredient} {option}", (training,)))
    return tuple(found)


if __name__ == "__main__":
    cli.run(main, Args)
