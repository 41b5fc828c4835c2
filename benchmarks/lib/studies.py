"""Dice of several ways of training, paired by patient: what every study of segmentation quality here is built on.

A study trains each variant with each seed and evaluates it on the native grid (study_runs.py). Here its scores become
lines: every row is compared with the first one, per case the mean over seeds, then a bootstrap over cases of the
difference. That interval is about other patients; what another seed would change is the sd between seeds, beside it.
"""

import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.lib.lines import Ceiling, Line, line, record, rounded
from benchmarks.lib.study_runs import (
    STATE,
    Evaluation,
    Study,
    Training,
    Variant,
    configuration,
    mean_dice,
    run,
    tables_of,
)
from benchmarks.report import studies as as_tables
from kits_dist.config import as_plain
from kits_dist.data.store import Store
from kits_dist.evaluation import comparison
from kits_dist.evaluation.bootstrap import Bootstrap
from kits_dist.evaluation.metrics import Metrics
from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed

__all__ = ["Evaluation", "Study", "Training", "Variant", "conduct", "record_lines", "rows"]

NO_CEILING = Ceiling("none", None, "a score: nobody knows the best one on these cases")


class Row(NamedTuple):
    """What one evaluation of one variant scored; Dice of the challenge's regions."""

    name: str
    variant: Variant
    cases: dict[str, Metrics]  # {case: {REGION_dice: mean over seeds}}
    by_seed: dict[str, list[float]]  # {region: mean over cases, one a seed}
    training_s: list[float | None]  # one a seed, start of Python included; None where it was interrupted

    @property
    def sd(self) -> dict[str, float | None]:
        """{region: sd between seeds of the mean over cases}; None of one seed."""
        return {name: statistics.stdev(means) if len(means) > 1 else None for name, means in self.by_seed.items()}


def conduct(study: Study, args: Any, out: str | Path = "", jobs: int = 0) -> list[Line]:
    """Run the study, write its lines to `out` and print its table. `args` are the program's, with a field `quick`.

    Raises JobFailed at the end when a variant failed: the others are in the lines.
    """
    failed = run(study, jobs)
    lines = record_lines(study, args, out, failed)
    print(f"\n{as_tables(lines)}\n\nruns, curves and predictions: {study.folder}", flush=True)
    if failed:
        raise JobFailed(f"{len(failed)} of {len(study.variants)} variants failed: {', '.join(failed)}. See above.")
    return lines


def rows(study: Study, failed: dict[str, str] | None = None) -> list[Row]:
    """Of every evaluation of every variant that did not fail, in the order of the study."""
    return [row for variant in study.variants if variant.name not in (failed or {}) for row in _rows_of(study, variant)]


def _rows_of(study: Study, variant: Variant) -> Iterator[Row]:
    by_seed = [tables_of(study, variant, seed) for seed in variant.seeds]
    states = [files.read_json(study.seed_folder(variant, seed) / STATE) for seed in variant.seeds]
    seconds = [_total([state["training_s"].get(one.name) for one in variant.trainings]) for state in states]
    for evaluation in variant.evaluations:
        tables = [tables[evaluation.name] for tables in by_seed]
        means = [mean_dice(table) for table in tables]
        per_seed = {region: [mean[region] for mean in means] for region in means[0]}
        name = ", ".join(filter(None, (variant.name, evaluation.name)))
        yield Row(name, variant, mean_over_seeds(tables), per_seed, seconds)


def _total(seconds: list[float | None]) -> float | None:
    return None if None in seconds else sum(seconds)


def mean_over_seeds(tables: list[dict[str, Metrics]]) -> dict[str, Metrics]:
    """Several cases.csv of the same cases -> {case: {REGION_dice: mean}}. Raises InputError where cases differ."""
    if any(table.keys() != tables[0].keys() for table in tables):
        raise InputError("the seeds of one variant were scored on different cases: delete its folder, run it again.")
    columns = [f"{name}_dice" for name in REGIONS if f"{name}_dice" in next(iter(tables[0].values()))]
    return {
        case: {column: float(np.mean([table[case][column] for table in tables])) for column in columns}
        for case in tables[0]
    }


def record_lines(study: Study, args: Any, out: str | Path, failed: dict[str, str]) -> list[Line]:
    """A line a row and region, written to `out` (benchmarks/lib/lines.py), and one without value a failed variant."""
    found = rows(study, failed)
    first = study.variants[0].name
    reference = None if first in failed else found[0]
    made = [one for row in found for one in _lines(study, row, reference, args)]
    for variant in (variant for variant in study.variants if variant.name in failed):
        data = Store(study.store_of(variant.trainings[0])).meta["data"]
        config = {"variant": variant.name, "data": data, "failed": failed[variant.name].splitlines()[0].rstrip(":")}
        made.append(line(study.name, [], "Dice", NO_CEILING, config, args))
    for one in made:
        record(one, out)
    return made


def _lines(study: Study, row: Row, reference: Row | None, args: Any) -> Iterator[Line]:
    about = _about(study, row.variant)
    bootstrap = Bootstrap(len(row.cases))
    compared = _differences(row, reference) if reference and row is not reference else {}
    for region, by_seed in row.by_seed.items():
        dice = np.array([figures[f"{region}_dice"] for figures in row.cases.values()])
        low, high = bootstrap.interval(dice)
        sd = row.sd[region]
        config = {
            "variant": row.name,
            "region": region,
            **about,
            "seeds": list(row.variant.seeds),
            "by_seed": [rounded(mean) for mean in by_seed],
            "sd_between_seeds": None if sd is None else rounded(sd),
            "training_s": row.training_s,
            "spread_is": "95 % interval over cases",
        }
        config["cases"] = about["cases"] | {study.split: len(row.cases)}
        config["reference"] = study.variants[0].name if row is not reference else None
        config |= compared.get(region, {})
        made = line(study.name, [float(dice.mean())], "Dice", NO_CEILING, config, args, answer=True)
        yield dataclasses.replace(made, spread=(rounded(low), rounded(high)), windows=len(dice))


def _differences(row: Row, reference: Row) -> dict[str, dict[str, Any]]:
    """{region that both have: {"difference", "difference_ci95", "p"}}, row minus reference, paired by case. Raises
    InputError where their cases differ."""
    if not row.by_seed.keys() & reference.by_seed.keys():
        return {}
    compared = comparison.compare(row.cases, reference.cases, (row.name, reference.name))
    return {
        region: {
            "difference": rounded(figures["dice"]["difference"]),
            "difference_ci95": [rounded(bound) for bound in figures["dice"]["difference_ci95"]],
            "p": rounded(figures["dice"]["p"]),
        }
        for region, figures in compared.items()
    }


def _about(study: Study, variant: Variant) -> dict[str, Any]:
    """Network, sizes, kind and number of cases, of its first training; the words of all; no folder of this machine."""
    first = variant.trainings[0]
    config, store = configuration(first, study), Store(study.store_of(first))
    train, val = store.splits.select(config.data.fold)
    model = as_plain(config.model)
    model["encoder_weights"] = Path(model["encoder_weights"]).name
    folders = [study.seed_folder(variant, seed) / one.name for seed in variant.seeds for one in variant.trainings]
    commits = {str(files.read_json(folder / "environment.json").get("commit")) for folder in folders}
    return {
        "data": store.meta["data"],
        "split": study.split,
        "cases": {"train": len(train), "val": len(val)},
        "model": model,
        "size_px": list(config.data.size_px),
        "context": config.data.context,
        "batch_size": config.data.batch_size,
        "epochs": config.optim.epochs,
        "trainings": {one.name or "run": [_without_folder(word) for word in one.words] for one in variant.trainings},
        "trained_at": sorted(commits),
    }


def _without_folder(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key}={Path(value).name}" if "/" in value else word
