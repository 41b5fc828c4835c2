"""How long until the network is good, against what a user would run instead? `python -m benchmarks.time_to_dice`.

Seconds of training until the validation Dice of kidney and mass reaches `target`, on one store, for kits_dist, plain
PyTorch (the same network) and MONAI (its own), three seeds each, every training in a process of its own
(benchmarks/lib/race.py). All have the same slices, changes, loss, rate and precision. The curves are in the lines.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.lib.harness import A_RATIO, Ceiling, line, pick_device, plain, record, rounds, store_or_phantoms
from kits_dist import cli
from kits_dist.config import AugmentConfig, ModelConfig
from kits_dist.data.store import Store
from kits_dist.utils.errors import JobFailed, MissingPackage

ROOT = Path(__file__).resolve().parent.parent
LESS = Ceiling("none", None, "seconds to a score: less is better")


@dataclass(frozen=True)
class Args:
    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 40 of 32x256x256 on a GPU, else 24 of 16x96x96."""
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the images; 0x0: 256x256 on a GPU, 96x96 without."""
    batch_size: int = 0
    """Images a step; 0: 32 on a GPU, 8 without."""
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
    """Seconds of training after which one is given up."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """One seed, a target anyone reaches: proves that it runs."""


def main(args: Args) -> None:
    on_gpu = pick_device().type == "cuda"
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (256, 256) if on_gpu else (96, 96)
    batch_size = args.batch_size or (4 if args.quick else 32 if on_gpu else 8)
    arch = args.arch or ("unet" if on_gpu and not args.quick else "simple_unet")
    network = ModelConfig(
        arch=arch, encoder_weights="none", width=(4 if args.quick else 8) if arch == "simple_unet" else 64
    )
    cases, shape = (6, (8, 64, 64)) if args.quick else (40, (32, 256, 256)) if on_gpu else (24, (16, 96, 96))
    seeds, target = (1, 0.0) if args.quick else (args.seeds, args.target)
    check_s = args.check_s or (0.5 if args.quick else 2 if on_gpu else 4)
    systems, missing = ["kits_dist"], {}
    for name in peers.chosen(args.peers, peers.TRAININGS):
        try:
            peers.version_of(peers.TRAININGS[name][1])
            systems.append(name)
        except MissingPackage as error:
            missing[name] = str(error)
    found: dict[str, list[dict]] = {name: [] for name in systems}
    with store_or_phantoms(args.store, cases, shape) as store:
        words = [f"store={store.path}", f"size_px={size[0]}x{size[1]}", f"batch_size={batch_size}", f"arch={arch}"]
        words += [f"width={network.width}", f"target={target}", f"check_s={check_s}", f"limit_s={args.limit_s}"]
        for seed in range(seeds):  # systems take turns: a machine that slows down meets all of them
            for name in systems:
                found[name].append(race([f"system={name}", f"seed={seed}", *words]))
                print(f"  {name}, seed {seed}: {found[name][-1]['curve'][-1]}", flush=True)
        common = _settings(store, network, size, batch_size, target, check_s)

    def one(name: str, values: list[float], unit: str, ceiling: Ceiling, more: dict[str, Any]) -> None:
        answer = name == "kits_dist" or unit == "times"
        record(
            line("time_to_dice", values, unit, ceiling, {"variant": name, **common, **more}, args, answer=answer),
            args.out,
        )

    seconds = {name: [run["curve"][-1][0] for run in runs] for name, runs in found.items()}
    for name, runs in found.items():
        more = {key: runs[0][key] for key in ("pixels_per_image", "forward_gflop", "precision", "choices")}
        more |= {key: [run[key] for run in runs] for key in ("images_per_s", "startup_s", "steps")}
        more["curves"] = [run["curve"] for run in runs]
        if late := sum(run["curve"][-1][1] < target for run in runs):
            more["failed"] = f"{late} of {seeds} seeds stayed below Dice {target:g} for {args.limit_s:g} s of training"
            seconds.pop(name)
        one(name, seconds.get(name, []), "s", LESS, more)
    for name, reason in missing.items():
        one(name, [], "s", LESS, {"failed": reason})
    for name in (name for name in systems[1:] if {name, "kits_dist"} <= seconds.keys()):
        more = {
            "different_work": f"forward GFLOP an image: {found['kits_dist'][0]['forward_gflop']} ours, "
            f"{found[name][0]['forward_gflop']} theirs"
        }
        one(f"kits_dist against {name}", rounds(seconds[name], seconds["kits_dist"]), "times", A_RATIO, more)


def race(words: list[str]) -> dict[str, Any]:
    """What benchmarks.lib.race found. Raises JobFailed with its last words."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.lib.race", *words, f"result={result}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode or not result.is_file():
            raise JobFailed(f"{words[0]} {words[1]} failed:\n" + "\n".join(done.stderr.strip().splitlines()[-15:]))
        return json.loads(result.read_text())


def _settings(
    store: Store, network: ModelConfig, size: tuple[int, int], batch_size: int, target: float, check_s: float
) -> dict[str, Any]:
    train, val = store.splits.select(0)
    return {
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


if __name__ == "__main__":
    cli.run(main, Args)
