"""Recorded lines as one figure: ratios to their ceilings, speed relative to other libraries, curves of Dice."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.lib.lines import Line, key
from kits_dist.utils.errors import MissingPackage

OURS, THEIRS = "#1b6ca8", "#9aa0a6"
OTHERS = ("#d1495b", "#edae49", "#66a182", "#8d5a97")  # curves of other systems


def draw(lines: Iterable[Line], path: Path) -> None:
    """Write a PNG of the machine of the last line, with the latest line of each question.

    Raises MissingPackage without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage("no plot: matplotlib is not installed: pip install kits-dist[report]") from error
    latest = list({key(line): line for line in lines if line.value is not None}.values())
    if not latest:
        return
    env = latest[-1].env
    latest = [line for line in latest if (line.env["gpu"], line.env["cpu"]) == (env["gpu"], env["cpu"])]
    shares = [line for line in latest if line.ratio is not None]
    against = [line for line in latest if line.unit == "times"]
    curves = [line for line in latest if line.config.get("curves")]
    rows = max(len(shares), len(against), 8)
    figure = Figure(figsize=(16, 1.5 + 0.24 * rows), layout="constrained")
    figure.suptitle(
        f"{env['gpu'] or 'no GPU'}, {env['cpu_cores']} cores ({env['cpu']}), torch {env['torch']}; blue answers"
    )
    left, middle, *right = figure.subplots(1, 3 if curves else 2, width_ratios=[1.2, 1, 0.9][: 3 if curves else 2])
    _bars(left, shares, [line.ratio for line in shares], "value / its ceiling (1 is best)", most=2.0)
    _bars(middle, against, [line.value for line in against], "times as fast as the other (above 1: faster)")
    if curves:
        _curves(right[0], curves)
    figure.savefig(path, dpi=80)


def _curves(axes, lines: list[Line]) -> None:
    others = iter(OTHERS)
    for line in lines:
        color = OURS if line.config["variant"] == "kits_dist" else next(others)
        for number, curve in enumerate(line.config["curves"]):
            label = line.config["variant"] if number == 0 else None
            axes.plot(*zip(*curve, strict=True), marker=".", color=color, label=label)
    axes.axhline(lines[0].config["target_dice"], color="black", linewidth=0.5)
    axes.set(xlabel="seconds of training", ylabel="validation Dice", ylim=(0, 1), title="time_to_dice, each seed")
    axes.legend()


def _bars(axes, lines: list[Line], values: list[float], title: str, most: float | None = None) -> None:
    """Draw a bar for each line. most: where the axis ends; a longer bar is cut, its number still shows its length."""
    names = [f"{line.question}: {line.config.get('variant', '')}" for line in lines]
    axes.barh(range(len(lines)), values, color=[OURS if line.answer else THEIRS for line in lines])
    axes.set_yticks(range(len(lines)), names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.5)
    for row, (line, value) in enumerate(zip(lines, values, strict=True)):
        end = value
        if line.unit == "times":
            axes.plot(line.spread, [row, row], color="black", linewidth=0.8)
            end = max(value, line.spread[1])
        axes.text(min(end, 0.93 * most) if most else end, row, f" {value:.3g}", va="center", fontsize=7)
    axes.set_xlim(0, most)
    axes.set_title(title, fontsize=9)
