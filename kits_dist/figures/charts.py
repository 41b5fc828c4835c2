"""Line charts of a training as SVG, from the lines of log.jsonl."""

from typing import Any, NamedTuple

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe-Ito
DICE = "val/dice_grid/"  # on the network's grid, not on the original voxels

Line = dict[str, Any]
Curve = list[tuple[float, float]]


class Chart(NamedTuple):
    """A chart and the caption below it."""

    svg: str
    caption: str


def run_charts(lines: list[Line]) -> list[Chart]:
    """Draw loss, Dice, throughput and data wait of one run by optimizer step; what was not logged is left out."""
    charts = [
        ({"train": _curve(lines, "train/loss"), "val": _curve(lines, "val/loss")}, "loss by step"),
        (
            {key.removeprefix(DICE): _curve(lines, key) for key in _dice_keys(lines)},
            "val/dice_grid by step: the network's grid, not the table's",
        ),
        ({"images/s": _curve(lines, "perf/images_per_s")}, "throughput by step, all processes"),
        ({"data wait": _curve(lines, "perf/data_wait")}, "share of the step spent waiting for data"),
    ]
    return [Chart(line_chart(curves), caption) for curves, caption in charts if any(curves.values())]


def fold_charts(logs: dict[str, list[Line]]) -> list[Chart]:
    """Draw one chart per quantity with one curve per fold; logs are {fold's name: lines}."""
    captions = {"train/loss": "train/loss by step", "val/loss": "val/loss by step"}
    for key in _dice_keys([line for lines in logs.values() for line in lines]):
        captions[key] = f"{key} by step: the network's grid, not the table's"
    charts = [({name: _curve(lines, key) for name, lines in logs.items()}, text) for key, text in captions.items()]
    return [Chart(line_chart(curves), caption) for curves, caption in charts if any(curves.values())]


def _curve(lines: list[Line], key: str) -> Curve:
    return [(line["step"], line[key]) for line in lines if key in line]


def _dice_keys(lines: list[Line]) -> list[str]:
    return sorted({key for line in lines for key in line if key.startswith(DICE)})


def line_chart(curves: dict[str, Curve], width: int = 440, height: int = 220) -> str:
    """Draw {name: [(x, y), ...]} as an SVG with a legend and axes from 0, or from the lowest y if that is negative."""
    points = [point for curve in curves.values() for point in curve]
    x_max = max(x for x, _ in points) or 1
    y_max = max(y for _, y in points) * 1.05 or 1
    y_min = min(0.0, min(y for _, y in points))
    # room for the numbers, the step and the legend
    left = 48
    right = width - 8
    top = 28
    bottom = height - 24

    def position(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / x_max, bottom - (bottom - top) * (y - y_min) / (y_max - y_min)

    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-size="11" fill="#555">']
    for share in (0.0, 0.5, 1.0):
        value = y_min + (y_max - y_min) * share
        _, y = position(0, value)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{right}" y="{height - 8}" text-anchor="end">step {x_max:g}</text>')

    legend_width = min(120, (right - left) / len(curves))
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (position(*point) for point in curve))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(f'<text x="{left + 8 + legend_width * number:g}" y="18" fill="{color}">{name}</text>')
    return "".join([*parts, "</svg>"])
