"""Dice of several trainings, paired by patient: the basis of every study of segmentation quality here.

A study trains each arm with each seed and evaluates it on the native grid (study_runs.py). Here its scores become
lines: every row is compared with the first one, for each case the mean over seeds, then a bootstrap over cases of the
difference. That interval is about other patients; what another seed would change is the sd between seeds.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.lib.lines import Line, line, no_ceiling, record, rounded
from benchmarks.lib.study_runs import STATE, Arm, Evaluation, Study, Training, configuration, mean_dice, run, tables_of
from benchmarks.lib.tables import studies as as_tables
from kits_dist.config import as_plain
from kits_dist.data.store import Store
from kits_dist.evaluation import comparison
from kits_dist.evaluation.bootstrap import Bootstrap
from kits_dist.evaluation.metrics import Metrics
from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed

__all__ = ["Arm", "Evaluation", "Study", "Training", "about", "conduct", "lines_of", "rows"]

NO_CEILING = no_ceiling("a score: the best possible one on these cases is unknown")


class Row(NamedTuple):
    """Scores of one evaluation of an arm; Dice of the challenge's regions."""

    name: str
    arm: Arm
    cases: dict[str, Metrics]  # {case: {REGION_dice: mean over seeds}}
    by_seed: dict[str, list[float]]  # {region: mean over cases, one a seed}
    poster: dict[str, Metrics]  # {region: what `poster_scores` returns}
    training_s: list[float | None]  # one a seed, start of Python included; None where it was interrupted

    @property
    def sd(self) -> dict[str, float | None]:
        """{region: sd between seeds of the mean over cases}; None for one seed."""
        return {name: statistics.stdev(means) if len(means) > 1 else None for name, means in self.by_seed.items()}


def conduct(
    study: Study, args: Any, make_lines: Callable[[Study, Any, dict[str, str]], list[Line]] | None = None
) -> list[Line]:
    """Run the study, write its lines and print its table; `args` are `StudyArgs`.

    make_lines   (study, args, {arm: why it failed}) -> lines, for scores of another kind than Dice of cases

    Raises JobFailed at the end when an arm failed: the others are in the lines.
    """
    failed = run(study, args.jobs)
    lines = (make_lines or lines_of)(study, args, failed)
    for one in lines:
        record(one, args.out)
    print(f"\n{as_tables(lines)}\n\nruns, curves and predictions: {study.folder}", flush=True)
    if failed:
        raise JobFailed(f"{len(failed)} of {len(study.arms)} arms failed: {', '.join(failed)}. See above.")
    return lines


def rows(study: Study, failed: dict[str, str] | None = None) -> list[Row]:
    """Return the rows of every evaluation of every arm that did not fail, in the order of the study."""
    return [row for arm in study.arms if arm.name not in (failed or {}) for row in _rows_of(study, arm)]


def _rows_of(study: Study, arm: Arm) -> Iterator[Row]:
    by_seed = [tables_of(study, arm, seed) for seed in study.seeds]
    states = [files.read_json(study.seed_folder(arm, seed) / STATE) for seed in study.seeds]
    seconds = [_total([state["training_s"].get(one.name) for one in arm.trainings]) for state in states]
    for evaluation in arm.evaluations:
        tables = [tables[evaluation.name] for tables in by_seed]
        means = [mean_dice(table) for table in tables]
        per_seed = {region: [mean[region] for mean in means] for region in means[0]}
        name = ", ".join(filter(None, (arm.name, evaluation.name)))
        yield Row(name, arm, mean_over_seeds(tables), per_seed, poster_scores(tables), seconds)


def _total(seconds: list[float | None]) -> float | None:
    return None if None in seconds else sum(seconds)


def mean_over_seeds(tables: list[dict[str, Metrics]]) -> dict[str, Metrics]:
    """Return {case: {REGION_dice: mean}} of several cases.csv. Raises InputError if their cases differ."""
    if any(table.keys() != tables[0].keys() for table in tables):
        raise InputError("the seeds of one arm were scored on different cases. Delete its folder and run it again.")
    columns = [f"{name}_dice" for name in REGIONS if f"{name}_dice" in next(iter(tables[0].values()))]
    return {
        case: {column: float(np.mean([table[case][column] for table in tables])) for column in columns}
        for case in tables[0]
    }


def poster_scores(tables: list[dict[str, Metrics]]) -> dict[str, dict[str, Any]]:
    """Return {region: dice_poster, its interval over cases, and dice_poster_empty}, over the slices of all seeds.

    tables   cases.csv of each seed; regions that have no such columns are left out
    """
    found, bootstrap = {}, Bootstrap(len(tables[0]))
    for region in REGIONS:
        if not all(f"{region}_dice_poster" in row for table in tables for row in table.values()):
            continue
        slices = _columns(tables, f"{region}_poster_slices")
        score, empty = (_columns(tables, f"{region}_{key}") for key in ("dice_poster", "dice_poster_empty"))
        total = slices.sum(axis=0)
        if not total.any():  # the tumor, where no kidney was predicted at all
            continue
        of_cases = (score * slices).sum(axis=0)
        found[region] = {
            "dice_poster": rounded(float(of_cases.sum() / total.sum())),
            "dice_poster_ci95": [rounded(bound) for bound in bootstrap.interval(of_cases, total) or ()],
            "dice_poster_empty": rounded(float((empty * slices).sum() / total.sum())),
        }
    return found


def _columns(tables: list[dict[str, Metrics]], name: str) -> np.ndarray:
    """Return (seeds, cases) values of a column, 0 where it is undefined."""
    return np.array([[row[name] or 0.0 for row in table.values()] for table in tables], float)


def lines_of(study: Study, args: Any, failed: dict[str, str]) -> list[Line]:
    """Return a line for each row and region, and one without a value for each arm that failed."""
    found = rows(study, failed)
    reference = None if study.arms[0].name in failed else found[0]
    made = [one for row in found for one in _lines(study, row, reference, args)]
    for arm in (arm for arm in study.arms if arm.name in failed):
        data = Store(study.store_of(arm.trainings[0])).meta["data"]
        config = {"variant": arm.name, "data": data, "failed": failed[arm.name].splitlines()[0].rstrip(":")}
        made.append(line(study.name, [], "Dice", NO_CEILING, config, args))
    return made


def _lines(study: Study, row: Row, reference: Row | None, args: Any) -> Iterator[Line]:
    described = about(study, row.arm)
    bootstrap = Bootstrap(len(row.cases))
    compared = _differences(row, reference) if reference and row is not reference else {}
    for region, by_seed in row.by_seed.items():
        dice = np.array([figures[f"{region}_dice"] for figures in row.cases.values()])
        low, high = bootstrap.interval(dice)
        sd = row.sd[region]
        config = {
            "variant": row.name,
            "region": region,
            **described,
            "seeds": list(study.seeds),
            "by_seed": [rounded(mean) for mean in by_seed],
            "sd_between_seeds": None if sd is None else rounded(sd),
            "training_s": row.training_s,
            "spread_is": "95 % interval over cases",
        }
        config["cases"] = described["cases"] | {study.split: len(row.cases)}
        config["reference"] = study.arms[0].name if row is not reference else None
        config |= compared.get(region, {}) | row.poster.get(region, {})
        made = line(study.name, [float(dice.mean())], "Dice", NO_CEILING, config, args, answer=True)
        yield dataclasses.replace(made, spread=(rounded(low), rounded(high)), windows=len(dice))


def _differences(row: Row, reference: Row) -> dict[str, dict[str, Any]]:
    """Return {region that both have: {"difference", "difference_ci95", "p"}}, row minus reference, paired by case.

    Raises InputError if their cases differ.
    """
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


def about(study: Study, arm: Arm) -> dict[str, Any]:
    """Describe an arm: network, sizes and cases of its first training, arguments of all; no folder of this machine."""
    first = arm.trainings[0]
    config, store = configuration(first, study), Store(study.store_of(first))
    train, val = store.splits.select(config.data.fold)
    model = as_plain(config.model)
    model["encoder_weights"] = Path(model["encoder_weights"]).name
    folders = [study.seed_folder(arm, seed) / one.name for seed in study.seeds for one in arm.trainings]
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
        "trainings": {one.name or "run": [_without_folder(word) for word in one.words] for one in arm.trainings},
        "trained_at": sorted(commits),
    }


def _without_folder(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key}={Path(value).name}" if "/" in value else word
