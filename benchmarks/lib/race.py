"""One training of benchmarks.time_to_dice, in a process of its own: no caches, threads or memory of another one.

Trains one system with one seed until its validation Dice reaches the target, and writes the curve to `result`. The
clock starts before the data path is built (MONAI fills its cache then) and stops during validation, which is the same
for all: every slice of the validation cases, with our loader and our counts.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers
from benchmarks.lib.harness import drain
from benchmarks.lib.stores import dataset_of
from benchmarks.lib.training import Setup, Training, Watch, build_ours, with_backend
from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data.loaders import build_val_loader
from kits_dist.data.store import Store
from kits_dist.distributed.runtime import start
from kits_dist.training.losses import RegionLoss
from kits_dist.training.validation import validate
from kits_dist.utils import files


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    system: str = MISSING
    """Kits_dist, or a name of peers.TRAININGS."""
    seed: int = MISSING
    """Seed of weights, order and augmentation."""
    store: str = MISSING
    """Folder written by kits_dist.prepare."""
    size_px: tuple[int, int] = MISSING
    """(height, width) of the images."""
    batch_size: int = MISSING
    """Images per step."""
    arch: str = MISSING
    """As model.arch."""
    width: int = MISSING
    """As model.width."""
    target: float = MISSING
    """Validation Dice to reach."""
    check_s: float = MISSING
    """Seconds of training between validations."""
    limit_s: float = MISSING
    """Seconds of training after which it stops without reaching the target."""
    result: str = MISSING
    """JSON file to write."""


def main(args: Args) -> None:
    """Train until the target or the limit, and write what was found."""
    store = Store(args.store)
    network = ModelConfig(arch=args.arch, width=args.width, encoder_weights="none")
    data = DataConfig(store=args.store, size_px=args.size_px, batch_size=args.batch_size)
    optim = OptimConfig(loss="bce_dice")
    with tempfile.TemporaryDirectory() as run:
        runtime = start(TrainConfig(), 1, Path(run), args.seed)
        setup = Setup(runtime, store, data, AugmentConfig(), network, optim, TrainConfig(), args.seed)
        if setup.device.type == "cpu":
            setup = with_backend(setup, "opencv")
        mean_dice = _validation(setup)
        begin = time.perf_counter()
        training = _build(args.system, setup)
        watch = Watch(training.model)
        curve: list[list[float]] = []  # seconds, Dice
        trained_s = startup_s = 0.0
        steps, check_at = 0, args.check_s

        while not curve or (curve[-1][1] < args.target and trained_s < args.limit_s):
            training.step(next(training.batches), False)
            steps += 1
            startup_s = startup_s or time.perf_counter() - begin
            if trained_s + time.perf_counter() - begin >= check_at:
                drain(setup.device)
                trained_s += time.perf_counter() - begin
                images = watch.images
                curve.append([round(trained_s, 3), round(mean_dice(training), 5)])
                watch.images = images  # without those of the validation
                check_at = trained_s + args.check_s
                begin = time.perf_counter()
        found = {
            "curve": curve,
            "startup_s": round(startup_s, 3),
            "steps": steps,
            "images_per_s": round(watch.images / trained_s, 2),
            **watch.work_per_image(),
            "precision": runtime.precision.mode,
            "choices": training.choices,
        }
        files.write_json(Path(args.result), found)
        print(json.dumps(found["curve"]))
        runtime.accelerator.end_training()


def _build(system: str, setup: Setup) -> Training:
    if system == "kits_dist":
        return build_ours(setup)
    return peers.build_training(system, setup, dataset_of(setup.store, setup.data))


def _validation(setup: Setup):
    """Return what turns a training into the mean Dice of its network over the validation cases, on its grid."""
    store, accelerator = setup.store, setup.runtime.accelerator
    cases = store.splits.select(setup.data.fold)[1]
    loader, dataset = build_val_loader(
        store, setup.data, cases, setup.runtime.ranks, device=setup.device, dtype=setup.runtime.image_dtype
    )
    loss_fn = RegionLoss(setup.optim.loss, setup.network.regions).to(setup.device)
    rows = [store.row[case] for case in cases]

    def mean_dice(training: Training) -> float:
        found = validate(training.model, loss_fn, loader, rows, len(dataset.rows), accelerator)
        return sum(found.dice.values()) / len(found.dice)

    return mean_dice


if __name__ == "__main__":
    cli.run(main, Args)
