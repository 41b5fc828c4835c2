"""How long until the network is good, against what a user would run instead? `python -m benchmarks.time_to_dice`.

Seconds of training until the validation Dice of kidney and mass reaches `target`, on one store, for kits_dist, plain
PyTorch (the same network) and MONAI (its own), three seeds each, every training in a process of its own
(benchmarks/lib/race.py). All have the same slices, augmentation, loss, learning rate and precision. The curves are in
the lines.
"""

from dataclasses import dataclass

from benchmarks import peers
from benchmarks.lib import programs
from benchmarks.lib.arguments import NetworkArgs
from benchmarks.lib.harness import pick_device
from benchmarks.lib.lines import A_RATIO, Recorder, no_ceiling, rounds
from benchmarks.lib.stores import open_store, plain
from kits_dist import cli
from kits_dist.config import AugmentConfig
from kits_dist.utils.errors import MissingPackage

LESS = no_ceiling("seconds to a score: less is better")


@dataclass(frozen=True)
class Args(NetworkArgs):
    """Arguments of the program."""

    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 40 of 32x256x256 on a GPU, else 24 of 16x96x96."""
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the images; 0x0: 256x256 on a GPU, 96x96 without."""
    batch_size: int = 0
    """Images per step; 0: 32 on a GPU, 8 without."""
    arch: str = ""
    """As model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 8 without."""
    peers: tuple[str, ...] = ("true",)
    """Of plain_pytorch, monai; true: both."""
    seeds: int = 3
    """Trainings of each."""
    target: float = 0.85
    """Validation Dice to reach, mean over cases on the network's grid."""
    check_s: float = 0.0
    """Seconds of training between validations; 0: 2 on a GPU, 4 without."""
    limit_s: float = 90.0
    """Seconds of training after which one stops without reaching the target."""


def main(args: Args) -> None:
    """Run the trainings, systems in turns, and write their lines."""
    size = args.size_px if all(args.size_px) else args.default(gpu=(256, 256), cpu=(96, 96), quick=(64, 64))
    batch_size = args.batch_size or args.default(gpu=32, cpu=8, quick=4)
    network = args.network(width=8, quick_width=4)
    cases, shape = args.default(gpu=(40, (32, 256, 256)), cpu=(24, (16, 96, 96)), quick=(6, (8, 64, 64)))
    seeds, target = (1, 0.0) if args.quick else (args.seeds, args.target)
    check_s = args.check_s or args.default(gpu=2.0, cpu=4.0, quick=0.5)
    systems, missing = ["kits_dist"], {}
    for name in peers.chosen(args.peers, peers.TRAININGS):
        try:
            with peers.usable(peers.TRAININGS[name][1]):
                systems.append(name)
        except MissingPackage as error:
            missing[name] = str(error)

    found: dict[str, list[dict]] = {name: [] for name in systems}
    with open_store(args.store, cases, shape) as store:
        words = [f"store={store.path}", f"size_px={size[0]}x{size[1]}", f"batch_size={batch_size}"]
        words += [f"arch={network.arch}", f"width={network.width}"]
        words += [f"target={target}", f"check_s={check_s}", f"limit_s={args.limit_s}"]
        for seed in range(seeds):  # systems take turns: a machine that slows down affects all of them
            for name in systems:
                one = [f"system={name}", f"seed={seed}"]
                run = programs.result_of(["benchmarks.lib.race", *one, *words], " ".join(one))
                found[name].append(run)
                print(f"  {name}, seed {seed}: {run['curve'][-1]}", flush=True)
        train, val = store.splits.select(0)

    common = {
        "device": pick_device().type,
        "model": plain(network),
        "size_px": list(size),
        "batch_size": batch_size,
        "augment": plain(AugmentConfig()),
        "target_dice": target,
        "check_s": check_s,
        "cases": {"train": len(train), "val": len(val)},
        "data": store.meta["data"],
    }
    recorder = Recorder("time_to_dice", args, common, unit="s")
    seconds = {name: [run["curve"][-1][0] for run in runs] for name, runs in found.items()}
    for name, runs in found.items():
        config = {key: runs[0][key] for key in ("pixels_per_image", "forward_gflop", "precision", "choices")}
        config |= {key: [run[key] for run in runs] for key in ("images_per_s", "startup_s", "steps")}
        config["curves"] = [run["curve"] for run in runs]
        late = sum(run["curve"][-1][1] < target for run in runs)
        if late:
            config["failed"] = f"{late} of {seeds} seeds stayed below Dice {target:g} in {args.limit_s:g} s of training"
            seconds.pop(name)
        recorder.write(name, seconds.get(name, []), LESS, config, answer=name == "kits_dist")
    for name, reason in missing.items():
        recorder.write(name, [], LESS, {"failed": reason})

    for name in (name for name in systems[1:] if {name, "kits_dist"} <= seconds.keys()):
        ours, theirs = (found[system][0]["forward_gflop"] for system in ("kits_dist", name))
        config = {"different_work": f"forward GFLOP an image: {ours} ours, {theirs} theirs"}
        times = rounds(seconds[name], seconds["kits_dist"])
        recorder.write(f"kits_dist against {name}", times, A_RATIO, config, unit="times", answer=True)


if __name__ == "__main__":
    cli.run(main, Args)
