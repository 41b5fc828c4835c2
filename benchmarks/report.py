"""Recorded lines -> tables: `python -m benchmarks.report` prints markdown; nobody types a number.

`update=README.md` puts the lines that answer a question between the markers of that file, all lines into README.md
beside them, and a plot of them. Lines with quick=true never reach a table: they prove that a benchmark runs and say
nothing else. Rows of different machines stand in different tables, and studies of Dice have tables of their own. Of
lines that ask the same on the same machine and torch, the latest is taken.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.lines import RESULTS, Line, asked, read_all, setting
from benchmarks.lib.plot import draw
from kits_dist import cli
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput, MissingPackage

BEGIN, END = "<!-- results: python -m benchmarks.report update=README.md -->", "<!-- end of results -->"
QUESTIONS = {  # what a line's file asks, in words
    "feed": "slices from the store, nothing done to them",
    "loader": "augmented batches, nobody training",
    "model": "training step on a batch that is there",
    "end_to_end": "training step on the real data path",
    "overhead": "what the trainer adds to a bare loop",
    "core_seconds": "an image against its parts, in CPU time",
    "settings": "defaults against other settings",
    "scaling": "several processes",
    "prepare": "CT files to a slice store",
    "predict": "segmenting a volume, file to file",
    "evaluate": "scoring a volume",
    "agreement": "pixels as defined, on an idle and a busy device",
    "time_to_dice": "training to a validation Dice",
    "nnunet": "beside nnU-Net v2's own trainer",
    "phantom_dice": "a short training's test Dice",
}
STUDIES = {  # the same of studies of Dice (studies.py), which have tables of their own
    "table1": "The poster's Table 1",
    "ablation": "Each ingredient of the training changed alone",
    "planes": "One plane and three",
    "synthesis": "Cases synthesised from annotations",
}
NOTES = {  # what a reader must know of a study's rows
    "table1": (
        "The rows `phase1` and `phase2` of a cascade are its parts alone, phase 2 in the boxes of the annotation; the "
        "row without such a word is the whole, which finds its boxes itself. The poster's own figures, on KiTS cases: "
        "simple U-Net kidney 0.736; ResNet34 U-Net kidney 0.932, tumor 0.793; tuned 0.961, 0.811. Other data and "
        "another measure: not comparable. On a CPU (size=small) the simple U-Net has width 8, the ResNet34 U-Net width "
        "16 and no ImageNet weights, for a few epochs: too little for the deeper network to lead at the kidney."
    ),
}
DATA = {"phantom": "phantoms", "painted": "painted CTs", "kits": "KiTS cases"}
HEAD = ["question", "variant", "setting", "value", "spread", "of its ceiling", "date", "commit"]


@dataclass(frozen=True)
class Args:
    results: str = ""
    """Folder or file of recorded lines; empty: benchmarks/results."""
    question: str = ""
    """Only this one; empty: all."""
    update: str = ""
    """A markdown file with the two markers: its section is written anew, with README.md and plot.png."""


def main(args: Args) -> None:
    where = Path(args.results) if args.results else RESULTS
    lines = [line for line in read_all("results", where) if not line.quick]
    if args.update:
        update(Path(args.update), lines)
        folder = where.parent if where.is_file() else where
        files.write_bytes(folder / "README.md", f"{everything(lines)}\n".encode())
        try:
            draw(lines, folder / "plot.png")
        except MissingPackage as error:
            print(error)
        return
    chosen = [line for line in lines if not args.question or line.question == args.question]
    print(table(chosen) or "No lines but quick ones: run a benchmark without quick=true.")


def update(path: Path, lines: list[Line]) -> None:
    """Replace what stands between the markers. Raises MissingInput / InputError where there is nothing to replace."""
    if not path.is_file():
        raise MissingInput(f"update={path}: no such file.")
    before, after = split(path)
    files.write_bytes(path, f"{before}{BEGIN}\n\n{section(lines)}\n\n{END}{after}".encode())


def split(path: Path) -> tuple[str, str]:
    """What stands before the first marker and after the second. Raises InputError."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"update={path}: it must hold these two lines once, in this order:\n{BEGIN}\n{END}")
    return text.partition(BEGIN)[0], text.partition(END)[2]


def section(lines: Iterable[Line]) -> str:
    """One table a machine, of the lines that answer a question; of a machine that has none, all lines. Then the
    studies, each folded up."""
    lines, parts = list(lines), []
    for name, latest in _machines(_throughput(lines)).items():
        answers = [line for line in latest if line.answer]
        if not answers:
            parts.append(f"{name}\n\n{_markdown([HEAD, *map(_row, latest)])}")
            continue
        head = ["question", "variant", "setting", "value [windows]", "of its ceiling", "measured"]
        parts.append(f"{name}\n\n{_markdown([head, *map(_answer, answers)])}")
    return "\n\n".join([*parts, *_studies(lines, folded=True)])


def everything(lines: Iterable[Line]) -> str:
    """The page of all lines."""
    return (
        "# Every recorded line\n\nWritten by `python -m benchmarks.report update=README.md` from the `.jsonl` files "
        f"here; what the columns mean: [../README.md](../README.md).\n\n![all ratios](plot.png)\n\n{table(lines)}"
    )


def table(lines: Iterable[Line]) -> str:
    """One markdown table a machine, in the order of the lines, then the studies; empty without lines."""
    lines = list(lines)
    machines = _machines(_throughput(lines))
    parts = [f"{name}\n\n{_markdown([HEAD, *map(_row, latest)])}" for name, latest in machines.items()]
    return "\n\n".join([*parts, *_studies(lines)])


def studies(lines: Iterable[Line]) -> str:
    """The studies among the lines: each a heading that names the kind of data, and a table a machine."""
    return "\n\n".join(_studies(lines))


def _studies(lines: Iterable[Line], folded: bool = False) -> list[str]:
    found: dict[str, dict[str, list[Line]]] = {}
    for machine, latest in _machines(line for line in lines if line.question in STUDIES).items():
        scored = {(line.question, line.config["variant"]) for line in latest if line.value is not None}
        for line in latest:
            if line.value is None and (line.question, line.config["variant"]) in scored:
                continue  # it failed another time
            title = f"{STUDIES[line.question]}: Dice on {DATA.get(line.config['data'], line.config['data'])}"
            found.setdefault(title, {}).setdefault(machine, []).append(line)
    head = ["variant", "region", "Dice [95 % interval]", "difference to the reference", "sd between seeds (seeds)"]
    head += ["cases", "seconds of training", "measured"]
    begin, end = ("<details><summary><b>{}</b></summary>", "\n\n</details>") if folded else ("### {}", "")
    return [
        f"{begin.format(title)}\n\n{machine}\n\n{_about(rows[0])}\n\n{_markdown([head, *map(_study_row, rows)])}{end}"
        for title, machines in found.items()
        for machine, rows in machines.items()
    ]


def _throughput(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if line.question not in STUDIES]


def _machines(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """{machine in words: the latest line of each thing that was asked}."""
    machines: dict[str, dict[str, Line]] = {}
    for line in lines:
        machines.setdefault(_machine(line), {})[asked(line)] = line
    order = [*QUESTIONS, *STUDIES]
    place = {question: number for number, question in enumerate(order)}
    return {
        name: sorted(latest.values(), key=lambda line: place.get(line.question, len(place)))
        for name, latest in machines.items()
    }


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def _machine(line: Line) -> str:
    env = line.env
    gpu = f"{env['gpus']} x {env['gpu']}" if env["gpu"] else "no GPU"
    limit = f" ({env['power_limit_w']:g} W)" if env.get("power_limit_w") else ""
    driver = f", driver {env['driver']}" if env.get("driver") else ""
    return (
        f"**{gpu}{limit}, {env['cpu_cores']} cores ({env['cpu']}), torch {env['torch']}, DALI {env['dali']}{driver}**"
    )


def _answer(line: Line) -> list[str]:
    question, name, words, value, spread, share, date, commit = _row(line)
    windows = f" [{spread}]" if spread else ""
    if " against " in name and "choices" in line.config:  # whose other network may be another
        words += f"; theirs: {line.config['choices']}"
    return [QUESTIONS.get(question, question), name, words, f"{value}{windows}", share, f"{date}, {commit}"]


def _about(line: Line) -> str:
    """What the rows of a study have in common, from its first one."""
    of, words = line.config, [setting(line.config | {"region": ""})]
    words += [f"{count} {part} cases" for part, count in of.get("cases", {}).items()]
    words += [f"seeds {', '.join(map(str, of['seeds']))}"] if "seeds" in of else []
    note = f" {NOTES[line.question]}" if line.question in NOTES else ""
    return (
        f"{', '.join(words)}. `{line.command}`. Intervals are over cases, of the mean over seeds; differences are "
        "paired by case. The sd between seeds tells what another seed would change, which no interval over cases does."
        + note
    )


def _study_row(line: Line) -> list[str]:
    of = line.config
    name, region = of["variant"], of.get("region", "")
    when = f"{line.time_utc[:10]}, {line.env['commit']}{' (dirty)' if line.env['dirty'] else ''}"
    if line.value is None:
        return [name, region, "failed", of.get("failed", ""), "", "", "", when]
    low, high = line.spread
    difference = "reference"
    if "difference" in of:
        difference = f"{of['difference']:+.3f} [{of['difference_ci95'][0]:+.3f} .. {of['difference_ci95'][1]:+.3f}]"
    elif of.get("reference"):
        difference = "-"
    sd = "-" if of["sd_between_seeds"] is None else f"{of['sd_between_seeds']:.3f}"
    seconds = [one for one in of["training_s"] if one is not None]
    took = f"{statistics.median(seconds):.0f}" if seconds else "-"
    dice = f"{line.value:.3f} [{low:.3f} .. {high:.3f}]"
    return [name, region, dice, difference, f"{sd} ({len(of['seeds'])})", str(line.windows), took, when]


def _row(line: Line) -> list[str]:
    name, words = str(line.config.get("variant", "")), setting(line.config)
    when = [line.time_utc[:10], f"{line.env['commit']}{' (dirty)' if line.env['dirty'] else ''}"]
    if line.value is None:
        return [line.question, name, words, "failed", "", line.config.get("failed", ""), *when]
    share = f"{line.ratio:.3f} of {line.ceiling.name}" if line.ratio is not None else "-"
    value, spread = f"{line.value:g} {line.unit}", f"{line.spread[0]:g} .. {line.spread[1]:g}"
    return [line.question, name, words, value, spread, share, *when]


if __name__ == "__main__":
    cli.run(main, Args)
