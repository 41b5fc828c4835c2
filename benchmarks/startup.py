"""How long until a program answers a question or refuses an argument? `python -m benchmarks.startup`.

Whole processes, from their start to their end. `before=DIR` times the same questions to another checkout in turns, as
the one before a change, and says how many times faster this one answers.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.lib.arguments import RunArgs
from benchmarks.lib.harness import Candidate, interleave
from benchmarks.lib.lines import A_RATIO, Recorder, no_ceiling, rounds
from benchmarks.lib.programs import ROOT
from kits_dist import cli
from kits_dist.utils.errors import InputError, JobFailed

ASKED = {  # what, and its exit code
    "train help": (["kits_dist.train", "help"], 0),
    "train, a wrong key": (["kits_dist.train", "optim.lrr=1"], 2),
    "train, no such store": (["kits_dist.train", "data.store=nowhere", "run=run"], 2),
    "predict help": (["kits_dist.predict", "help"], 0),
    "predict, no such run": (["kits_dist.predict", "run=nowhere", "input=.", "output=labels"], 2),
    "evaluate help": (["kits_dist.evaluate", "help"], 0),
    "prepare help": (["kits_dist.prepare", "help"], 0),
}


@dataclass(frozen=True)
class Args(RunArgs):
    """Arguments of the program."""

    before: str = ""
    """Another checkout to compare with."""
    windows: int = 7
    """How often each is run, at least 5."""

    def __post_init__(self) -> None:
        if self.before and not (Path(self.before) / "kits_dist" / "cli.py").is_file():
            raise InputError(f"before={self.before}: no checkout of kits_dist there.")


def main(args: Args) -> None:
    """Ask every question in turns, and write the lines."""
    checkouts = {"": ROOT} | ({"before": Path(args.before).absolute()} if args.before else {})
    asked = dict(list(ASKED.items())[:1]) if args.quick else ASKED
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            (question, name): Candidate(partial(ask, words, code, checkout, folder))
            for question, (words, code) in asked.items()
            for name, checkout in checkouts.items()
        }
        timed = interleave(steps, torch.device("cpu"), windows=args.windows, window_s=0.0, warmup_steps=1)

    recorder = Recorder("startup", args, {"cache": "warm"}, unit="s")
    none = no_ceiling("Python alone starts in 0.02 s; what a program needs beyond is its own")
    for question in asked:
        seconds = {name: [1 / rate for rate in timed[question, name].rates(1)] for name in checkouts}
        recorder.write(question, seconds[""], none, answer=True)
        if args.before:
            recorder.write(f"{question}, before", seconds["before"], none)
            faster = rounds(seconds["before"], seconds[""])
            recorder.write(f"{question}, against before", faster, A_RATIO, unit="times", answer=True)


def ask(words: list[str], code: int, checkout: Path, folder: str) -> None:
    """Run `python -m WORDS` of a checkout. Raises JobFailed where it does not end with `code`."""
    environ = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environ, capture_output=True, text=True)
    if done.returncode != code:
        raise JobFailed(f"{' '.join(words)} ended with exit code {done.returncode}, not {code}: {done.stderr[-500:]}")


if __name__ == "__main__":
    cli.run(main, Args)
