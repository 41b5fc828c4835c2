"""How many cases a minute does `kits_dist.prepare` turn into a slice store? `python -m benchmarks.prepare`.

The whole command, from its start to its end, on as many processes as there are cores, against the least work possible:
unpacking the same files and writing as many bytes (benchmarks/lib/gunzip.py).
"""

import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.lib import programs
from benchmarks.lib.arguments import RunArgs
from benchmarks.lib.harness import Candidate, interleave
from benchmarks.lib.lines import Baseline, Recorder, no_ceiling
from kits_dist import cli, phantom
from kits_dist.imaging.datasets import find_cases
from kits_dist.utils.limits import available_cores

OURS = "uint8 slices, checked, with statistics and a table of slices"


@dataclass(frozen=True)
class Args(RunArgs):
    """Arguments of the program."""

    source: str = ""
    """Folder of cases; empty: phantoms, 12 of 32x256x256."""
    windows: int = 5
    """How often each is run, at least 5."""


def main(args: Args) -> None:
    """Run the programs in turns, and write their lines."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(args.source or Path(folder) / "raw"), Path(folder) / "made"
        if not args.source:
            cases, size = (3, (8, 64, 64)) if args.quick else (12, (32, 256, 256))
            phantom.main(phantom.Args(output=str(source), cases=cases, size=size))
        found = find_cases(source).cases
        packed = sum(path.stat().st_size for case in found for path in (case.image, case.label))

        commands = {
            "prepare": ["kits_dist.prepare", f"source={source}", f"store={target}"],
            "gunzip": ["benchmarks.lib.gunzip", f"source={source}", f"output={target}"],
        }
        remove = partial(shutil.rmtree, target, ignore_errors=True)
        candidates = {name: Candidate(partial(programs.run, words), after=remove) for name, words in commands.items()}
        cpu = torch.device("cpu")
        timed = interleave(candidates, cpu, windows=args.windows, window_s=0.0, warmup_steps=0)

    common = {"cases": len(found), "packed_mb": round(packed / 1e6, 2), "workers": available_cores(), "cache": "warm"}
    common["data"] = "phantom" if not args.source else "as named by source="
    recorder = Recorder("prepare", args, common, unit="cases/min")
    rates = {name: [60 * rate for rate in timed[name].rates(len(found))] for name in commands}
    recorder.write("gunzip", rates["gunzip"], no_ceiling("this is the least work possible"))
    floor = Baseline("gunzip and write as many bytes", rates["gunzip"])
    recorder.write("prepare", rates["prepare"], floor, {"work": OURS}, answer=True)


if __name__ == "__main__":
    cli.run(main, Args)
