"""Turn recorded lines into tables, so that no number is typed: `python -m benchmarks.report` prints markdown.

`update=README.md` writes the headlines between the two markers of that file, and all lines into README.md
of the folder of results.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.lines import RESULTS, Line, read_all
from benchmarks.lib.tables import everything, headlines, table
from kits_dist import cli
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput

BEGIN, END = "<!-- results: python -m benchmarks.report update=README.md -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    results: str = ""
    """Folder or file of recorded lines; empty: benchmarks/results."""
    question: str = ""
    """Only this benchmark; empty: all."""
    update: str = ""
    """Markdown file with the two markers: the text between them is replaced, with README.md of the results."""


def main(args: Args) -> None:
    """Print the table, or update a file."""
    where = Path(args.results) if args.results else RESULTS
    lines = [line for line in read_all("results", where) if not line.quick]
    if not args.update:
        chosen = [line for line in lines if not args.question or line.question == args.question]
        print(table(chosen) or "There are only lines with quick=true: run a benchmark without it.")
        return

    update(Path(args.update), lines)
    folder = where.parent if where.is_file() else where
    files.write_bytes(folder / "README.md", f"{everything(lines)}\n".encode())


def update(path: Path, lines: Iterable[Line]) -> None:
    """Replace the text between the markers. Raises MissingInput, and InputError for a file without the markers."""
    if not path.is_file():
        raise MissingInput(f"update={path}: there is no such file.")
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"update={path}: it must hold these two lines once, in this order:\n{BEGIN}\n{END}")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    files.write_bytes(path, f"{before}{BEGIN}\n\n{headlines(lines)}\n\n{END}{after}".encode())


if __name__ == "__main__":
    cli.run(main, Args)
