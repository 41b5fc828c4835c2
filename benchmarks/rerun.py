"""Does a recorded figure come again? `python -m benchmarks.rerun results=FILE.jsonl [variant=NAME]`.

Runs the commands of those lines once more and says of each figure whether it lies within twice its old spread: no
farther from the old median than twice the farthest old window. Exit code 1 when one does not. Check out the commit of
the lines first; it says when this is another.
"""

import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare import reach
from benchmarks.lib.lines import Line, asked, machine, read_all
from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.utils.errors import InputError, JobFailed

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Args:
    results: str = MISSING
    """File or folder of recorded lines."""
    variant: str = ""
    """Only lines of this variant; empty: all."""
    store: str = ""
    """What store=DIR in a recorded command stands for."""


def main(args: Args) -> None:
    lines = [line for line in read_all("results", args.results) if not line.quick and line.value is not None]
    lines = [line for line in lines if not args.variant or line.config.get("variant") == args.variant]
    if not lines:
        raise InputError(f"results={args.results}: no such line has a value.")
    for commit in sorted({str(line.env["commit"]) for line in lines} - {str(machine()["commit"])}):
        print(f"recorded at {commit}, this is {machine()['commit']}")
    missed = []
    for command in dict.fromkeys(line.command for line in lines):
        again = rerun(command, args.store)
        for old in (line for line in lines if line.command == command):
            words, good = verdict(old, again.get(asked(old)))
            print(words, flush=True)
            missed += [] if good else [words]
    if missed:
        raise JobFailed(f"{len(missed)} of {len(lines)} figures did not come again.")


def rerun(command: str, store: str) -> dict[str, Line]:
    """{what was asked: the new line}. Raises InputError for a store that is not named, JobFailed when it fails."""
    words = shlex.split(command)[1:]
    if "store=DIR" in words and not store:
        raise InputError(f"{command}: name that store with store=FOLDER")
    words = [f"store={store}" if word == "store=DIR" else word for word in words]
    with tempfile.TemporaryDirectory() as folder:
        print(f"$ {command}", flush=True)
        done = subprocess.run([sys.executable, *words, f"out={folder}"], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise JobFailed(f"{command} failed:\n" + "\n".join(done.stderr.strip().splitlines()[-15:]))
        return {asked(line): line for line in read_all("out", folder)}


def verdict(old: Line, new: Line | None) -> tuple[str, bool]:
    """In words, and whether the figure came again."""
    name = f"{old.question} {old.config.get('variant', '')}"
    if new is None or new.value is None:
        return f"{name}: no figure this time", False
    allowed = 2 * reach(old) * abs(old.value)
    good = abs(new.value - old.value) <= allowed
    return (
        f"{name}: {old.value:g} +- {allowed:.3g}, now {new.value:g} {new.unit}: {'again' if good else 'MISSED'}",
        good,
    )


if __name__ == "__main__":
    cli.run(main, Args)
