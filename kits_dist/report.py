"""One self-contained page for a run: `python -m kits_dist.report run=RUN_DIR` writes RUN_DIR/report.html.

Dice tables, worst cases, contours, curves, machine and configuration; it says what the cases were. Research use only.
RUN_DIR may also be the folder of launch/folds.sh: one page then holds all folds, out of fold and test tables.
"""

import base64
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, UndefinedError, select_autoescape

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.evaluation import cross_validation
from kits_dist.labels import innermost_region
from kits_dist.training.tracker import log_lines
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput

WORST = 5
GRID = "val/dice_grid/"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe-Ito


@dataclass(frozen=True)
class Args:
    run: str = MISSING
    """Folder of a trained run, or of the folds that launch/folds.sh trained."""
    images: bool = True
    """False leaves slices out, so that the page holds no patient images."""


class Chart(NamedTuple):
    svg: str
    caption: str


class Figure(NamedTuple):
    title: str
    png: str  # base64


FIGURES = {
    "contours.png": "Worst, median and best case: expected and predicted contours",
    "surfaces.png": "The same cases in three dimensions: kidney, tumor, cyst",
    "panel.png": "Slices of the first cases",
}


def main(args: Args) -> None:
    run = Path(args.run)
    of_folds = not (run / "config.yaml").is_file() and (run / "fold_0").is_dir()
    runs = cross_validation.fold_runs(run) if of_folds else [run]
    for one in runs:
        if not (one / "config.yaml").is_file():
            raise MissingInput(f"run={one}: no config.yaml there; name the folder that kits_dist.train made.")
    evaluations, worst, figures = {}, {}, {}
    for path in sorted(run.glob("evaluation/*/summary.json")):
        split = path.parent.name
        evaluations[split] = files.read_json(path)
        try:
            worst[split] = _worst(path.parent / "cases.csv", list(evaluations[split]["regions"]))
        except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"{path.parent}: damaged tables ({type(error).__name__}: {error}). Run evaluate again."
            ) from error
        # of test before the rules the numbers suffice
        figures[split] = _figures(path.parent) if args.images and split != cross_validation.TEST_RAW else []
    environment = files.read_json(runs[0] / "environment.json")
    page = Environment(
        loader=PackageLoader("kits_dist.figures", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
    )
    try:
        text = page.get_template("report.html.j2").render(
            name=f"{run.resolve().parent.name}/{run.name}",
            data=environment.get("data", "unknown"),
            folds=cross_validation.table(run) if of_folds else [],
            folds_note=cross_validation.NOTE,
            titles={cross_validation.OUT_OF_FOLD: "out of fold", cross_validation.TEST_RAW: "test before the rules"},
            evaluations=evaluations,
            worst=worst,
            figures=figures,
            pictures=any(figures.values()),
            rules=files.read_json(run / "postprocess.json") if (run / "postprocess.json").is_file() else {},
            charts=_charts_of_folds(runs) if of_folds else _charts(run / "log.jsonl"),
            environment=environment,
            config=(runs[0] / "config.yaml").read_text(encoding="utf-8", errors="replace"),
        )
    except (KeyError, TypeError, UndefinedError) as error:
        raise InputError(
            f"{run}: damaged tables ({error}). Run evaluate again, and postprocess where it was run."
        ) from error
    files.write_bytes(run / "report.html", text.encode())
    print(f"report: {run / 'report.html'}")


def _figures(evaluation: Path) -> list[Figure]:
    """The pictures that evaluate left, in order."""
    found = {title: evaluation / name for name, title in FIGURES.items() if (evaluation / name).is_file()}
    return [Figure(title, base64.b64encode(path.read_bytes()).decode()) for title, path in found.items()]


def _worst(path: Path, regions: list[str]) -> dict:
    """The cases with the lowest Dice of the hardest region that the run predicts."""
    region = innermost_region(regions)
    with open(path, encoding="utf-8") as file:
        rows = [
            {"case": row["case"]} | {key: float(row[f"{region}_{key}"]) for key in ("dice", "truth_ml", "predicted_ml")}
            for row in csv.DictReader(file)
        ]
    return {"region": region, "rows": sorted(rows, key=lambda row: row["dice"])[:WORST]}


def _charts_of_folds(runs: list[Path]) -> list[Chart]:
    """One chart a quantity, one curve a fold."""
    logs = {run.name.replace("_", " "): log_lines(run / "log.jsonl") for run in runs}
    dice = sorted({key for lines in logs.values() for line in lines for key in line if key.startswith(GRID)})
    wanted = {"train/loss": "train/loss by step", "val/loss": "val/loss by step"}
    wanted |= {key: f"{key} by step: the network's grid, not the table's" for key in dice}
    charts = [({name: _series(lines, key) for name, lines in logs.items()}, caption) for key, caption in wanted.items()]
    return [Chart(line_chart(curves), caption) for curves, caption in charts if any(curves.values())]


def _charts(path: Path) -> list[Chart]:
    """Curves by optimiser step from log.jsonl."""
    lines = log_lines(path)

    def series(key: str) -> list[tuple[float, float]]:
        return _series(lines, key)

    dice = sorted({key for line in lines for key in line if key.startswith(GRID)})
    wanted = (
        ({"train": series("train/loss"), "val": series("val/loss")}, "loss by step"),
        (
            {key.split("/")[-1]: series(key) for key in dice},
            "val/dice_grid by step: the network's grid, not the table's",
        ),
        ({"images/s": series("perf/images_per_s")}, "throughput by step, all processes"),
        ({"data wait": series("perf/data_wait")}, "share of the step spent waiting for data"),
    )
    return [Chart(line_chart(curves), caption) for curves, caption in wanted if any(curves.values())]


def _series(lines: list[dict], key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in lines if key in line]


def line_chart(curves: dict[str, list[tuple[float, float]]], width: int = 440, height: int = 220) -> str:
    """{name: [(x, y), ...]} -> an SVG with axes from 0 (or the lowest y, if below) and a legend."""
    points = [point for curve in curves.values() for point in curve]
    right, top = max(x for x, _ in points) or 1, max(y for _, y in points) * 1.05 or 1
    low = min(0.0, min(y for _, y in points))
    left_px, bottom_px, top_px = 48, height - 24, 28  # room for numbers, the step, the legend

    def at(x: float, y: float) -> str:
        across = left_px + (width - left_px - 8) * x / right
        return f"{across:.1f},{bottom_px - (bottom_px - top_px) * (y - low) / (top - low):.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-size="11" fill="#555">']
    for share in (0.0, 0.5, 1.0):
        y = low + (top - low) * share
        x_px, y_px = at(0, y).split(",")
        parts.append(f'<line x1="{x_px}" y1="{y_px}" x2="{width - 8}" y2="{y_px}" stroke="#ddd"/>')
        parts.append(f'<text x="{left_px - 6}" y="{float(y_px) + 4}" text-anchor="end">{y:.3g}</text>')
    parts.append(f'<text x="{width - 8}" y="{height - 8}" text-anchor="end">step {right:g}</text>')
    legend_px = min(120, (width - left_px - 8) / len(curves))
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        path = " ".join(at(x, y) for x, y in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(f'<text x="{left_px + 8 + legend_px * number:g}" y="18" fill="{color}">{name}</text>')
    return "".join([*parts, "</svg>"])


if __name__ == "__main__":
    cli.run(main, Args)
