"""How many cases a minute does `kits_dist.prepare` turn into a slice store? `python -m benchmarks.prepare`.

The whole command, from its start to its end, on as many processes as there are cores, against the least that the job
can be: unpacking the same files and writing as many bytes (benchmarks/lib/gunzip.py). `peers=true` adds what users of
MONAI and nnU-Net run instead; that is different work, and their lines say which.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers
from benchmarks.lib.harness import Ceiling, Variant, interleave, line, median, record, rounds
from kits_dist import cli, phantom
from kits_dist.imaging.datasets import find_cases
from kits_dist.utils.errors import JobFailed
from kits_dist.utils.parallel import available_cores

ROOT = Path(__file__).resolve().parent.parent
# name -> (package, program, what differs)
PEERS = {
    "monai": (
        "monai",
        "benchmarks.peers.monai_prepare",
        "different work: float32 volumes in a PersistentDataset; no checks, statistics or slice table",
    ),
    "nnunet": (
        "nnunetv2",
        "benchmarks.peers.nnunet",
        "different work: fingerprint, plan, resampling to one spacing, float32 in blosc2",
    ),
}


@dataclass(frozen=True)
class Args:
    source: str = ""
    """Folder of cases; empty: phantoms, 12 of 32x256x256."""
    peers: tuple[str, ...] = ()
    """Other systems, of monai, nnunet; true: both."""
    windows: int = 5
    """Times each is run, at least 5."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """Few tiny cases: proves that it runs."""


def main(args: Args) -> None:
    names = peers.chosen(args.peers, PEERS)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(args.source or Path(folder) / "raw")
        if not args.source:
            cases, size = (3, (8, 64, 64)) if args.quick else (12, (32, 256, 256))
            phantom.main(phantom.Args(output=str(source), cases=cases, size=size))
        found = find_cases(source).cases
        packed = sum(path.stat().st_size for case in found for path in (case.image, case.label))
        target = Path(folder) / "made"
        programs = {
            "prepare": ["kits_dist.prepare", f"source={source}", f"store={target}"],
            "gunzip": ["benchmarks.lib.gunzip", f"source={source}", f"output={target}"],
        }
        missing = {name for name in names if find_spec(PEERS[name][0]) is None}
        for name in (name for name in names if name not in missing):
            programs[name] = [PEERS[name][1], f"source={source}", f"output={target}"]
        timed = interleave(
            {name: Variant(_runner(words), after=lambda: _gone(target)) for name, words in programs.items()},
            torch.device("cpu"),
            windows=args.windows,
            window_s=0.0,
            warmup_steps=0,
        )
    rates = {name: [60 * rate for rate in timed[name].rates(len(found))] for name in programs}
    common = {"cases": len(found), "packed_mb": round(packed / 1e6, 2), "workers": available_cores(), "cache": "warm"}
    common["data"] = "phantom" if not args.source else "as named by source="
    floor = Ceiling("gunzip and write as many bytes", median(rates["gunzip"])[0])

    def one(name: str, values: list[float], ceiling: Ceiling, **more: Any) -> None:
        ratio = more.pop("ratio", None)
        config = {"variant": name, **common, **more}
        done = line("prepare", values, "cases/min", ceiling, config, args, ratio=ratio, answer=name == "prepare")
        record(done, args.out)

    one("gunzip", rates["gunzip"], Ceiling("none", None, "this is the floor itself"))
    for name in (name for name in programs if name != "gunzip"):
        what = PEERS[name][2] if name in PEERS else "uint8 slices, checked, with statistics and a table of slices"
        one(name, rates[name], floor, ratio=median(rounds(rates[name], rates["gunzip"]))[0], work=what)
    for name in sorted(missing):
        one(name, [], floor, failed=f"{PEERS[name][0]} is not installed", work=PEERS[name][2])


def _runner(words: list[str]) -> Callable[[], None]:
    """Runs `python -m WORDS` to its end. Raises JobFailed with its last words."""

    def run() -> None:
        _gone(Path(words[-1].partition("=")[2]))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise JobFailed(f"{words[0]} failed:\n" + "\n".join(done.stderr.strip().splitlines()[-15:]))

    return run


def _gone(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    cli.run(main, Args)
