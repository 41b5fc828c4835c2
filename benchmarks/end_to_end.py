"""Does the data path keep the training step busy? `python -m benchmarks.end_to_end`.

The training step of kits_dist.train (Accelerate, autocast, loss, optimizer, a log step every ten) with the real loader
and with one batch repeated (data.backend=fixed), window by window in turns. The answer is their ratio: 1 means that no
step waits for data. Validation, checkpoints and TensorBoard are outside. `peers=true` adds the trainings that a user
would write in plain PyTorch and in MONAI, on the same slices.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers
from benchmarks.lib.arguments import StepArgs
from benchmarks.lib.harness import pick_device
from benchmarks.lib.lines import A_RATIO, Baseline, Recorder, no_ceiling, rounds
from benchmarks.lib.stores import dataset_of, described, open_store, plain
from benchmarks.lib.timed_training import EVERY_STEPS, TimedTraining, profile_trainings, time_trainings
from benchmarks.lib.training import OurStep, Setup, Training, Watch, build_ours, with_backend
from kits_dist import cli
from kits_dist.config import AugmentConfig, DataConfig, OptimConfig, PrecisionName, TrainConfig
from kits_dist.distributed.runtime import start
from kits_dist.utils.errors import InputError, MissingPackage

OURS = {"dali": ("dali", "mmap"), "dali_resident": ("dali", "gpu"), "opencv": ("opencv", "mmap")}  # backend, residency


@dataclass(frozen=True)
class Args(StepArgs):
    """Arguments of the program."""

    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 24 of 32x512x512 on a GPU, else 10 of 24x128x128."""
    precision: PrecisionName = "auto"
    """As train.precision."""
    compile: bool = False
    """As train.compile."""
    ways: tuple[str, ...] = ()
    """Data paths, of dali, dali_resident, opencv; empty: dali, and dali_resident on a GPU, else opencv."""
    peers: tuple[str, ...] = ()
    """Other trainings, of plain_pytorch, monai; true: both."""
    windows: int = 7
    """Timed windows per candidate, at least 5."""
    window_s: float = 2.5
    """Seconds per window, approximately."""


def main(args: Args) -> None:
    """Time our data paths, the repeated batch and the peers in turns, and write their lines."""
    paths = args.ways or ("dali", "dali_resident" if pick_device().type == "cuda" else "opencv")
    if wrong := [path for path in paths if path not in OURS]:
        raise InputError(f"ways={wrong}: choose from {list(OURS)}.")
    names = peers.chosen(args.peers, peers.TRAININGS)
    size, network = args.image_size(), args.network()
    batch_size = args.batch_size or args.default(gpu=128, cpu=8, quick=4)
    cases, shape = args.default(gpu=(24, (32, 512, 512)), cpu=(10, (24, 128, 128)), quick=(6, (8, 64, 64)))
    train = TrainConfig(precision=args.precision, compile=args.compile)
    timing = args.timing(warmup_steps=10)

    with open_store(args.store, cases, shape) as store, tempfile.TemporaryDirectory() as run:
        data = DataConfig(store=str(store.path), size_px=size, batch_size=batch_size)
        setup = Setup(start(train, 1, Path(run), 0), store, data, AugmentConfig(), network, OptimConfig(), train)
        trainings, missing = _build_all(setup, paths, names)
        watches = {name: Watch(training.model) for name, training in trainings.items()}
        runs = {name: TimedTraining(training, name, batch_size, setup.device) for name, training in trainings.items()}
        timed = time_trainings(runs, setup.device, timing, data.prefetch + 2)
        work = {name: watch.work_per_image() for name, watch in watches.items()}
        idle = profile_trainings(runs, timed, setup.device, timing, data.prefetch + 2)
        common = {
            "device": setup.device.type,
            "precision": setup.runtime.precision.mode,
            "train": plain(train),
            **plain(data),
            "augment": plain(AugmentConfig()),
            "log_every_steps": EVERY_STEPS,
            **described(store, dataset_of(store, data)),
        }
        setup.runtime.accelerator.end_training()

    recorder = Recorder("end_to_end", args, common, warmup_steps=timing["warmup_steps"])
    rates = {name: timed[name].rates(batch_size) for name in runs}
    for name, run in runs.items():
        config = run.summary(timed[name]) | work[name]
        if name in idle:
            config["gpu_idle"] = idle[name]
        config["backend"], config["residency"] = OURS.get(name, (name, "mmap"))
        config["model"] = {"arch": trainings[name].choices} if name in names else plain(network)
        if name == "fixed":
            ceiling = no_ceiling("the peak of the model is the question of benchmarks.model")
        elif name in names:
            ceiling = no_ceiling("another network or loop than ours: see the lines `against` it")
            config["choices"] = trainings[name].choices
        else:
            ceiling = Baseline("fixed (one batch repeated)", rates["fixed"])
        recorder.write(name, rates[name], ceiling, config, answer=name in paths)
        print(f"  {run.describe(config)}")

    for name, reason in missing.items():
        recorder.write(name, [], no_ceiling("not measured: the package is missing"), {"failed": reason})
    for name in (name for name in names if name not in missing):
        for path in paths:
            times, config = rounds(rates[path], rates[name]), {"choices": trainings[name].choices}
            recorder.write(f"{path} against {name}", times, A_RATIO, config, unit="times", answer=True)


def _build_all(setup: Setup, paths: tuple[str, ...], names: list[str]) -> tuple[dict[str, Training], dict[str, str]]:
    """Return {"fixed", each data path, each peer} and {peer: why it is missing}. Ours share one network.

    Peers come first: their workers are forked, which must happen before DALI has threads.
    """
    dataset = dataset_of(setup.store, setup.data)
    others, missing = {}, {}
    for name in names:
        try:
            others[name] = peers.build_training(name, setup, dataset)
        except MissingPackage as error:
            missing[name] = str(error)
    step = OurStep(setup)
    ours = {name: build_ours(with_backend(setup, *OURS.get(name, (name,))), step) for name in ("fixed", *paths)}
    return ours | others, missing


if __name__ == "__main__":
    cli.run(main, Args)
