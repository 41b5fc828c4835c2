"""Every benchmark, one after another, to one table: `python -m benchmarks.all`.

Each is a process of its own; one that fails or takes too long is named at the end, the others are measured, and the
exit code is 1. Lines go to `out` as they come, with a plot of all of them; `python -m benchmarks.report
update=README.md` puts them into the README. quick=true runs all of it on tiny images, in `runs/benchmarks`: its figures
mean nothing.
"""

import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.lib.lines import RESULTS, Line, read
from benchmarks.lib.plot import draw
from benchmarks.lib.steps import Runner, Task
from benchmarks.report import table
from kits_dist import cli
from kits_dist.utils.errors import InputError, JobFailed, MissingPackage

# in the order in which they explain each other: what a step is made of, the step, what surrounds it
ORDER = {
    "feed": [],
    "loader": ["size_px=352x448"],
    "model": [],
    "end_to_end": [],
    "overhead": [],
    "core_seconds": [],
    "settings": [],
    "scaling": [],
    "prepare": [],
    "predict": [],
    "evaluate": [],
    "agreement": [],
    "time_to_dice": [],
    "nnunet": [],
}
WITH_PEERS = {"loader", "end_to_end", "prepare", "time_to_dice"}
WITH_STORE = {"feed", "loader", "end_to_end", "core_seconds", "settings", "agreement", "time_to_dice"}
LIMIT_S = 1800.0


@dataclass(frozen=True)
class Args:
    only: tuple[str, ...] = ()
    """Some of them; empty: all."""
    store: str = ""
    """Folder written by kits_dist.prepare, for those that read one; empty: phantoms."""
    peers: bool = True
    """Other libraries beside ours; those that are not installed get a line that says so."""
    out: str = ""
    """Folder for lines and plot; empty: benchmarks/results, or runs/benchmarks with quick=true."""
    quick: bool = False
    """Tiny images, single steps: proves that they run."""

    def __post_init__(self) -> None:
        if wrong := [name for name in self.only if name not in ORDER]:
            raise InputError(f"only={wrong}: choose from {list(ORDER)}.")


def main(args: Args) -> None:
    out = Path(args.out or ("runs/benchmarks" if args.quick else RESULTS))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        everything = Everything(args, out, Path(folder))
        everything.run_all(everything.tasks())
    print(f"\n{table(everything.lines)}\n", flush=True)
    try:
        draw(everything.lines, out / "plot.png")
        print(f"plot: {out / 'plot.png'}")
    except MissingPackage as error:
        print(error)
    print(*(words for words in everything.notes if not words.startswith("    ")), sep="\n")
    if everything.failed:
        raise JobFailed(f"{len(everything.failed)} benchmarks failed: {', '.join(everything.failed)}. See above.")


class Everything(Runner):
    def __init__(self, args: Args, out: Path, work: Path):
        super().__init__(work / "log.txt", work, 1e9)
        self.args, self.out = args, out
        self.lines: list[Line] = []

    def tasks(self) -> list[Task]:
        there = [name for name in ORDER if find_spec(f"benchmarks.{name}") and (self.args.peers or name != "nnunet")]
        names = self.args.only or there
        return [Task(name, self._words(name), LIMIT_S, after=self._keep) for name in names]

    def _words(self, name: str) -> list[str]:
        words = [f"benchmarks.{name}", f"out={self.work / 'lines'}"]
        words += ["quick=true"] if self.args.quick else ORDER[name]
        words += [f"peers={str(self.args.peers).lower()}"] if name in WITH_PEERS else []
        return words + ([f"store={self.args.store}"] if self.args.store and name in WITH_STORE else [])

    def _keep(self) -> None:
        """Lines of the benchmark that just ran -> OUT, one file a question."""
        for path in sorted((self.work / "lines").glob("*.jsonl")):
            self.lines += read(path)
            with open(self.out / path.name, "a", encoding="utf-8") as file:
                file.write(path.read_text(encoding="utf-8"))
            path.unlink()


if __name__ == "__main__":
    cli.run(main, Args)
