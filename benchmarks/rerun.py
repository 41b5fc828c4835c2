"""Can a recorded value be reproduced? `python -m benchmarks.rerun results=FILE.jsonl [variant=NAME]`.

Runs the commands of those lines again and says of each value whether it lies within twice its old spread: no farther
from the old median than twice the farthest old window. Exit code 1 when one does not. Check out the commit of the lines
first; the program warns when this is another one.
"""

import shlex
import tempfile
from dataclasses import dataclass

from benchmarks.lib import programs
from benchmarks.lib.lines import Line, key, machine, name_of, noise, read_all
from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.utils.errors import InputError, JobFailed


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    results: str = MISSING
    """File or folder of recorded lines."""
    variant: str = ""
    """Only lines of this variant; empty: all."""
    store: str = ""
    """Folder that store=DIR in a recorded command stands for."""


def main(args: Args) -> None:
    """Run the commands again and print a verdict on each value. Raises JobFailed for those not reproduced."""
    lines = [line for line in read_all("results", args.results) if not line.quick and line.value is not None]
    lines = [line for line in lines if not args.variant or line.config.get("variant") == args.variant]
    if not lines:
        raise InputError(f"results={args.results}: no such line has a value.")
    for commit in sorted({str(line.env["commit"]) for line in lines} - {str(machine()["commit"])}):
        print(f"recorded at {commit}, this is {machine()['commit']}")

    missed = 0
    for command in dict.fromkeys(line.command for line in lines):
        again = rerun(command, args.store)
        for old in (line for line in lines if line.command == command):
            text, reproduced = verdict(old, again.get(key(old)))
            print(text, flush=True)
            missed += not reproduced
    if missed:
        raise JobFailed(f"{missed} of {len(lines)} values were not reproduced.")


def rerun(command: str, store: str) -> dict[str, Line]:
    """Return {key of a line: the new line}. Raises InputError for a store that is not named, JobFailed if it fails."""
    words = shlex.split(command)[2:]
    if "store=DIR" in words and not store:
        raise InputError(f"{command}: name that store with store=FOLDER")
    words = [f"store={store}" if word == "store=DIR" else word for word in words]
    with tempfile.TemporaryDirectory() as folder:
        print(f"$ {command}", flush=True)
        programs.run([*words, f"out={folder}"], command)
        return {key(line): line for line in read_all("out", folder)}


def verdict(old: Line, new: Line | None) -> tuple[str, bool]:
    """Return a sentence, and whether the value was reproduced."""
    if new is None or new.value is None:
        return f"{name_of(old)}: no value this time", False
    allowed = 2 * noise(old) * abs(old.value)
    reproduced = abs(new.value - old.value) <= allowed
    end = "reproduced" if reproduced else "MISSED"
    return f"{name_of(old)}: {old.value:g} +- {allowed:.3g}, now {new.value:g} {new.unit}: {end}", reproduced


if __name__ == "__main__":
    cli.run(main, Args)
