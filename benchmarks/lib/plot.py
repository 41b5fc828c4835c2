"""All recorded lines as one picture: ratios to their ceilings, how many times faster than others, curves of Dice."""

import math
from collections.abc import Iterable
from pathlib import Path

from benchmarks.lib.lines import Line, asked
from kits_dist.utils.errors import MissingPackage

OURS, THEIRS = "#1b6ca8", "#9aa0a6"
OTHERS = ("#d1495b", "#edae49", "#66a182", "#8d5a97")  # curves of other systems


def draw(lines: Iterable[Line], path: Path) -> None:
    """A PNG. Of lines that ask the same, the latest; the machine of the last line, for one picture shows one machine.

    Raises MissingPackage without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage("no plot: matplotlib is not installed: pip install kits-dist[report]") from error
    latest = list({asked(line): line for line in lines if line.value is not None}.values())
    if not latest:
        return
    env = latest[-1].env
    latest = [line for line in latest if (line.env["gpu"], line.env["cpu"]) == (env["gpu"], env["cpu"])]
    shares = [line for line in latest if line.ratio is not None]
    times = [line for line in latest if line.unit == "times"]
    raced = [line for line in latest if line.config.get("curves")]
    rows = max(len(shares), len(times), 8)
    figure = Figure(figsize=(16, 1.5 + 0.24 * rows), layout="constrained")
    figure.suptitle(
        f"{env['gpu'] or 'no GPU'}, {env['cpu_cores']} cores ({env['cpu']}), torch {env['torch']}; blue answers"
    )
    left, middle, *right = figure.subplots(1, 3 if raced else 2, width_ratios=[1.2, 1, 0.9][: 3 if raced else 2])
    _bars(left, shares, [line.ratio for line in shares], "value / its ceiling (1 is best)", most=2.0)
    _bars(middle, times, [line.value for line in times], "times as fast as the other (above 1: faster)")
    if raced:
        _curves(right[0], raced)
    figure.savefig(path, dpi=80)


def _curves(axes, lines: list[Line]) -> None:
    others = iter(OTHERS)
    for line in lines:
        colour = OURS if line.config["variant"] == "kits_dist" else next(others)
        for number, curve in enumerate(line.config["curves"]):
            label = line.config["variant"] if number == 0 else None
            axes.plot(*zip(*curve, strict=True), marker=".", color=colour, label=label)
    axes.axhline(lines[0].config["target_dice"], color="black", linewidth=0.5)
    axes.set(xlabel="seconds of training", ylabel="validation Dice", ylim=(0, 1), title="time_to_dice, each seed")
    axes.legend()


def _bars(axes, lines: list[Line], values: list[float], title: str, most: float | None = None) -> None:
    """most: where the axis ends; a longer bar is cut, its figure still says how long it is."""
    names = [f"{line.question}: {line.config.get('variant', '')}" for line in lines]
    axes.barh(range(len(lines)), values, color=[OURS if line.answer else THEIRS for line in lines])
    axes.set_yticks(range(len(lines)), names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.5)
    for place, (line, value) in enumerate(zip(lines, values, strict=True)):
        if line.unit == "times":
            axes.plot(line.spread, [place, place], color="black", linewidth=0.8)
        axes.text(
            min(max(value, line.spread[1]) if line.unit == "times" else value, 0.93 * most if most else math.inf),
            place,
            f" {value:.3g}",
            va="center",
            fontsize=7,
        )
    axes.set_xlim(0, most)
    axes.set_title(title, fontsize=9)
