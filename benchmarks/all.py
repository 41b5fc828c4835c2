"""Run every benchmark, one after another, and make one table: `python -m benchmarks.all`.

Each is a process of its own; one that fails or takes too long is named at the end, the others are measured, and the
exit code is 1. Lines go to `out` as they come; `python -m benchmarks.report update=README.md` puts the headlines
into the README. quick=true runs all of it on tiny images, into `runs/benchmarks`: its values mean nothing.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.lines import QUICK_RESULTS, RESULTS, Line
from benchmarks.lib.programs import Runner, Task
from benchmarks.lib.tables import table
from kits_dist import cli
from kits_dist.utils.errors import InputError, JobFailed

# in the order in which they explain each other: the parts of a step, the step, what surrounds it
ORDER = {
    "feed": [],
    "loader": ["size_px=352x448"],
    "model": [],
    "end_to_end": [],
    "epoch": [],
    "scaling": [],
    "startup": [],
    "prepare": [],
    "predict": [],
    "evaluate": [],
    "time_to_dice": [],
}
WITH_PEERS = {"loader", "end_to_end", "time_to_dice"}
WITH_STORE = {"feed", "loader", "end_to_end", "epoch", "time_to_dice"}
LIMIT_S = 1800.0


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    only: tuple[str, ...] = ()
    """Only these; empty: all."""
    store: str = ""
    """Folder written by kits_dist.prepare, for those that read one; empty: phantoms."""
    peers: bool = True
    """Compare with other libraries; those that are not installed get a line that says so."""
    out: str = ""
    """Folder for lines; empty: benchmarks/results, or runs/benchmarks with quick=true."""
    quick: bool = False
    """Tiny images, single steps: proves that they run."""

    def __post_init__(self) -> None:
        if wrong := [name for name in self.only if name not in ORDER]:
            raise InputError(f"only={wrong}: choose from {list(ORDER)}.")


def main(args: Args) -> None:
    """Run all, and print the table. Raises JobFailed naming those that failed."""
    out = Path(args.out or (QUICK_RESULTS if args.quick else RESULTS))
    out.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder) / "log.txt", Path(folder), limit_s=1e9)

        def keep() -> None:
            lines.extend(runner.take_lines(lambda name: out / name))

        runner.run_all(tasks(args, runner.lines_folder, keep))
    print(f"\n{table(lines)}\n", flush=True)
    print(*(note for note in runner.notes if not note.startswith("    ")), sep="\n")
    if runner.failed:
        raise JobFailed(f"{len(runner.failed)} benchmarks failed: {', '.join(runner.failed)}. See above.")


def tasks(args: Args, out: Path, after: Callable[[], None]) -> list[Task]:
    """Return a task for each benchmark; its lines go to `out`."""
    found = []
    for name in args.only or ORDER:
        words = [f"benchmarks.{name}", f"out={out}"]
        words += ["quick=true"] if args.quick else ORDER[name]
        words += [f"peers={str(args.peers).lower()}"] if name in WITH_PEERS else []
        words += [f"store={args.store}"] if args.store and name in WITH_STORE else []
        found.append(Task(name, words, LIMIT_S, after=after))
    return found


if __name__ == "__main__":
    cli.run(main, Args)
