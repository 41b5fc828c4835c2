"""Recorded lines as markdown tables: headlines for the README, and one page with every line.

Lines with quick=true never reach a table. Of lines that ask the same question on the same machine and torch, the
latest is taken. Different machines have different tables, and so have studies of Dice.
"""

import fnmatch
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.lib.lines import Line, key, setting

QUESTIONS = {  # a benchmark, and what it measures
    "feed": "reading slices from the store",
    "loader": "augmented batches without training",
    "model": "training step on a batch in device memory",
    "end_to_end": "training step with the data path",
    "epoch": "training steps as a share of an epoch",
    "scaling": "several processes",
    "prepare": "CT files to a slice store",
    "predict": "segmenting a volume, file to file",
    "evaluate": "scoring a volume",
    "startup": "seconds until a program answers",
    "time_to_dice": "training to a validation Dice",
    "phantom_dice": "test Dice of a short training",
}
STUDIES = {  # a study of Dice, and the heading of its table
    "table1": "The poster's Table 1",
    "ablation": "Each ingredient of the training changed alone",
    "planes": "One plane and three",
    "synthesis": "Cases synthesized from annotations",
    "real_slices": "Trained on painted CTs, scored on single slices",
}
NOTES = {  # what a reader must know about the rows of a study
    "table1": (
        "A row is a whole cascade: the tumor is looked for where phase 1 found a kidney. The poster's measure is the "
        "mean Dice of 2D slices, empty ones that are left empty score 1; for the tumor, of the slices with a predicted "
        "kidney. By it, predicting nothing scores 0.632 (kidney) and 0.601 (tumor) on the poster's KiTS21 cases, and "
        "0.961 and 0.811 are about 0.894 and 0.53 on the slices that hold the region; its tumor was scored on the "
        "validation cases. With size=small networks are narrow, without ImageNet weights, and trained for a few epochs."
    ),
    "real_slices": (
        "Dice of single slices, over those that have the region, whose number is under cases: not comparable with "
        "KiTS results. Intervals resample patients. Even case numbers were looked at while the painter was made."
    ),
}
POSTER_REPORTS = {  # (variant, region): the poster's Table 1, on KiTS21, by its own measure
    ("poster, plain U-Net", "kidney_and_mass"): 0.736,
    ("poster, first run", "kidney_and_mass"): 0.932,
    ("poster, first run", "tumor"): 0.793,
    ("poster, optimized", "kidney_and_mass"): 0.961,
    ("poster, optimized", "tumor"): 0.811,
}
DATA = {"phantom": "phantoms", "painted": "painted CTs", "kits": "KiTS cases"}
HEAD = ["question", "variant", "setting", "value", "spread", "of its ceiling", "date", "commit"]


class Headline(NamedTuple):
    """A row of the README: the lines it may come from, and what it says about them."""

    question: str
    variant: str  # a shell pattern
    says: str
    region: str = ""


HEADLINES = (
    Headline("end_to_end", "opencv", "Training step with the real data path, of the same step on one repeated batch"),
    Headline("loader", "opencv_*_augmented against monai", "Augmented batches a second, against MONAI"),
    Headline("time_to_dice", "kits_dist against plain_pytorch", "Training to Dice 0.85, against plain PyTorch"),
    Headline("scaling", "weak_*", "N processes with a batch each, of N times one process"),
    Headline("evaluate", "ours against official, 256 slices", "Scoring a CT of 256 slices, against the KiTS code"),
)


def headlines(lines: Iterable[Line]) -> str:
    """Return the README's table: the latest line of each headline, with its hardware."""
    rows = [["what", "result", "setting", "hardware", "measured"]]
    lines = list(lines)
    for headline in HEADLINES:
        found = [line for line in lines if _belongs(line, headline)]
        if found:
            line = max(found, key=lambda line: line.time_utc)
            rows.append([headline.says, _result(line), setting(line.config), _hardware(line), " ".join(_when(line))])
    return _markdown(rows) if len(rows) > 1 else "No line of a headline was recorded yet."


def everything(lines: Iterable[Line]) -> str:
    """Return the page of all lines."""
    return (
        "# Every recorded line\n\nWritten by `python -m benchmarks.report update=README.md` from the `.jsonl` files "
        f"here. The columns are explained in [../README.md](../README.md).\n\n{table(lines)}"
    )


def table(lines: Iterable[Line]) -> str:
    """Return one table per machine in the order of the lines, then the studies; empty without lines."""
    lines = list(lines)
    timed = _by_machine(line for line in lines if line.question not in STUDIES)
    parts = [f"{machine}\n\n{_markdown([HEAD, *map(_row, latest)])}" for machine, latest in timed.items()]
    return "\n\n".join(filter(None, [*parts, studies(lines)]))


def studies(lines: Iterable[Line]) -> str:
    """Return the studies among the lines: each a heading that names the kind of data, and one table per machine."""
    found: dict[str, dict[str, list[Line]]] = {}
    for machine, latest in _by_machine(line for line in lines if line.question in STUDIES).items():
        scored = {(line.question, line.config["variant"]) for line in latest if line.value is not None}
        for line in latest:
            # A variant that failed once and was scored later has lost its reason to be listed as failed.
            if line.value is None and (line.question, line.config["variant"]) in scored:
                continue
            title = f"{STUDIES[line.question]}: Dice on {DATA.get(line.config['data'], line.config['data'])}"
            found.setdefault(title, {}).setdefault(machine, []).append(line)

    return "\n\n".join(
        f"### {title}\n\n{machine}\n\n{_about(rows[0])}\n\n{_study_table(rows)}"
        for title, machines in found.items()
        for machine, rows in machines.items()
    )


def _belongs(line: Line, headline: Headline) -> bool:
    variant, region = str(line.config.get("variant")), line.config.get("region", "")
    same = line.question == headline.question and region == headline.region and line.value is not None
    return same and fnmatch.fnmatchcase(variant, headline.variant)


def _result(line: Line) -> str:
    """Return the ratio where there is one, else the value, with the spread of what is shown."""
    if line.ratio is not None:
        spread = line.config.get("ratio_spread")
        return f"{line.ratio:.3f}" + (f" [{spread[0]:.3f} .. {spread[1]:.3f}]" if spread else "")
    low, high = line.spread
    unit = "" if line.unit == "Dice" else f" {line.unit}"
    return f"{line.value:.3g}{unit} [{low:.3g} .. {high:.3g}]"


def _by_machine(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Return {machine: the latest line of each question}, in the order of QUESTIONS and STUDIES."""
    machines: dict[str, dict[str, Line]] = {}
    for line in lines:
        env = line.env
        name = f"**{_hardware(line)}, torch {env['torch']}, DALI {env['dali']}"
        name += f", driver {env['driver']}**" if env.get("driver") else "**"
        machines.setdefault(name, {})[key(line)] = line

    order = [*QUESTIONS, *STUDIES]
    place = {question: number for number, question in enumerate(order)}
    return {
        name: sorted(latest.values(), key=lambda line: place.get(line.question, len(place)))
        for name, latest in machines.items()
    }


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def _hardware(line: Line) -> str:
    env = line.env
    gpu = f"{env['gpus']} x {env['gpu']}" if env["gpu"] else "no GPU"
    limit = f" ({env['power_limit_w']:g} W)" if env.get("power_limit_w") else ""
    return f"{gpu}{limit}, {env['cpu_cores']} cores ({env['cpu']})"


def _when(line: Line) -> list[str]:
    """Return [date, commit]."""
    return [line.time_utc[:10], f"{line.env['commit']}{' (dirty)' if line.env['dirty'] else ''}"]


def _row(line: Line) -> list[str]:
    begin = [line.question, str(line.config.get("variant", "")), setting(line.config)]
    if line.value is None:
        return [*begin, "failed", "", line.config.get("failed", ""), *_when(line)]
    share = f"{line.ratio:.3f} of {line.ceiling.name}" if line.ratio is not None else "-"
    return [*begin, f"{line.value:g} {line.unit}", f"{line.spread[0]:g} .. {line.spread[1]:g}", share, *_when(line)]


def _about(line: Line) -> str:
    """Return what the rows of a study have in common, from its first line."""
    config = line.config
    parts = [setting(config | {"region": ""})]
    parts += [f"{count} {part} cases" for part, count in config.get("cases", {}).items()]
    parts += [f"seeds {', '.join(map(str, config['seeds']))}"] if "seeds" in config else []
    return (
        f"{', '.join(parts)}. `{line.command}`. Intervals are over cases, of the mean over seeds; differences are "
        "paired by case. The sd between seeds tells what another seed would change, which no interval over cases does. "
        + NOTES.get(line.question, "")
    ).strip()


def _study_table(lines: list[Line]) -> str:
    head = ["variant", "region", "Dice [95 % interval]", "difference to the reference", "sd between seeds (seeds)"]
    head += ["cases", "seconds of training", "measured"]
    rows = [head, *map(_study_row, lines)]
    if lines[0].question == "table1":
        parts = [["poster's measure [95 % interval]", "predicting nothing", "the poster reports"]]
        parts += map(_poster_cells, lines)
        rows = [row[:3] + part + row[3:] for row, part in zip(rows, parts, strict=True)]
    return _markdown(rows)


def _poster_cells(line: Line) -> list[str]:
    config = line.config
    reported = POSTER_REPORTS.get((config["variant"], config.get("region", "")))
    said = "-" if reported is None else f"{reported:.3f}"
    if "dice_poster" not in config:
        return ["-", "-", said]
    low, high = config["dice_poster_ci95"]
    measured = f"{config['dice_poster']:.3f} [{low:.3f} .. {high:.3f}]"
    return [measured, f"{config['dice_poster_empty']:.3f}", said]


def _study_row(line: Line) -> list[str]:
    config = line.config
    begin, when = [config["variant"], config.get("region", "")], ", ".join(_when(line))
    if line.value is None:
        return [*begin, "failed", config.get("failed", ""), "", "", "", when]
    low, high = line.spread
    difference = "-" if config.get("reference") else "reference"
    if "difference" in config:
        lower, upper = config["difference_ci95"]
        difference = f"{config['difference']:+.3f} [{lower:+.3f} .. {upper:+.3f}]"
    sd = "-" if config["sd_between_seeds"] is None else f"{config['sd_between_seeds']:.3f}"
    seconds = [one for one in config["training_s"] if one is not None]
    took = f"{statistics.median(seconds):.0f}" if seconds else "-"
    dice = f"{line.value:.3f} [{low:.3f} .. {high:.3f}]"
    return [*begin, dice, difference, f"{sd} ({len(config['seeds'])})", str(line.windows), took, when]
