"""One self-contained page for a run: `python -m kits_dist.report run=RUN_DIR` writes RUN_DIR/report.html.

It holds Dice tables, worst cases, contours, training curves, machine and configuration, and says what kind of data the
cases were. RUN_DIR may also be the folder of launch/folds.sh: one page then holds all folds, out of fold and test
tables. Research use only.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, UndefinedError, select_autoescape

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.evaluation import cross_validation
from kits_dist.evaluation.tables import read_cases
from kits_dist.figures.charts import fold_charts, run_charts
from kits_dist.labels import innermost_region
from kits_dist.training.tracker import log_lines
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import utf8

WORST = 5  # cases in the table of worst cases
IMAGES = {
    "contours.png": "Worst, median and best case: expected and predicted contours",
    "surfaces.png": "The same cases in three dimensions: kidney, tumor, cyst",
    "panel.png": "Slices of the first cases",
}


@dataclass(frozen=True)
class Args:
    """Arguments of `kits_dist.report`."""

    run: str = MISSING
    """Folder of a trained run, or of the folds that launch/folds.sh trained."""
    images: bool = True
    """False leaves slices out, so that the page holds no patient images."""


class EmbeddedImage(NamedTuple):
    """A picture inside the page."""

    title: str
    png: str  # base64


def main(args: Args) -> None:
    """Write the page."""
    folder = Path(args.run)
    has_folds = not (folder / "config.yaml").is_file() and (folder / "fold_0").is_dir()
    runs = cross_validation.fold_runs(folder) if has_folds else [folder]
    for run in runs:
        if not (run / "config.yaml").is_file():
            raise MissingInput(f"run={run}: no config.yaml there; name the folder that kits_dist.train made.")

    evaluations = {path.parent.name: path.parent for path in sorted(folder.glob("evaluation/*/summary.json"))}
    # of the test cases before the rules the numbers suffice
    with_images = [split for split in evaluations if args.images and split != cross_validation.TEST_RAW]
    images = {split: _images(evaluations[split]) if split in with_images else [] for split in evaluations}
    summaries = {split: files.read_json(path / "summary.json") for split, path in evaluations.items()}
    worst = {split: _worst_cases(path, summaries[split]) for split, path in evaluations.items()}
    logs = {run.name.replace("_", " "): log_lines(run / "log.jsonl") for run in runs}
    environment = files.read_json(runs[0] / "environment.json")
    rules = folder / "postprocess.json"

    template = Environment(
        loader=PackageLoader("kits_dist.figures", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
    ).get_template("report.html.j2")
    try:
        page = template.render(
            name=f"{folder.resolve().parent.name}/{folder.name}",
            data=environment.get("data", "unknown"),
            folds=cross_validation.table(folder) if has_folds else [],
            folds_note=cross_validation.NOTE,
            titles={cross_validation.OUT_OF_FOLD: "out of fold", cross_validation.TEST_RAW: "test before the rules"},
            evaluations=summaries,
            worst=worst,
            images=images,
            has_images=any(images.values()),
            rules=files.read_json(rules) if rules.is_file() else {},
            charts=fold_charts(logs) if has_folds else run_charts(next(iter(logs.values()))),
            environment=environment,
            config=(runs[0] / "config.yaml").read_text(encoding="utf-8", errors="replace"),
        )
    except (KeyError, TypeError, UndefinedError) as error:
        raise InputError(
            f"{folder}: damaged tables ({error}). Run evaluate again, and postprocess where it was run."
        ) from error
    files.write_bytes(folder / "report.html", utf8(page).encode())
    print(f"report: {folder / 'report.html'}")


def _images(evaluation: Path) -> list[EmbeddedImage]:
    """Read the pictures that evaluate wrote, in the order of IMAGES."""
    paths = {title: evaluation / name for name, title in IMAGES.items() if (evaluation / name).is_file()}
    return [EmbeddedImage(title, base64.b64encode(path.read_bytes()).decode()) for title, path in paths.items()]


def _worst_cases(evaluation: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the cases with the lowest Dice of the innermost region that the run predicts."""
    table = read_cases(evaluation / "cases.csv")
    try:
        region = innermost_region(summary["regions"])
        keys = ("dice", "truth_ml", "predicted_ml")
        rows: list[dict[str, Any]] = [
            {"case": case} | {key: row[f"{region}_{key}"] for key in keys} for case, row in table.items()
        ]
        return {"region": region, "rows": sorted(rows, key=lambda row: row["dice"])[:WORST]}
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{evaluation}: damaged tables ({type(error).__name__}: {error}). Run evaluate again."
        ) from error


if __name__ == "__main__":
    cli.run(main, Args)
