"""Predict the cases of a split with a trained run, and score the label maps of every stage.

OUTPUT/predictions/CASE.nii.gz, cases.csv, challenge.csv, summary.json, contours.png, surfaces.png, panel.png. OUTPUT is
RUN/evaluation/SPLIT where it is not named; those of a cascade's phases end with _phase1 and _phase2.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kits_dist.data.store import Case, Store, array_path
from kits_dist.distributed.ranks import Ranks
from kits_dist.evaluation.case_scores import Job, Reference, score_job
from kits_dist.evaluation.held_out import Split, case_folders, held_out, intensity_warnings, select_cases
from kits_dist.evaluation.metrics import CaseScore
from kits_dist.evaluation.score_jobs import require_scores, score_jobs
from kits_dist.evaluation.summary import summarize
from kits_dist.evaluation.tables import print_summary, write_tables
from kits_dist.figures.cases import draw_cases
from kits_dist.figures.contours import PanelRow, contour_panel, save_png
from kits_dist.imaging.checks import Finding
from kits_dist.imaging.nifti import write_nifti
from kits_dist.inference.measurements import measure_label_map
from kits_dist.inference.postprocessing import Rules, clean
from kits_dist.labels import scored_regions, slice_with_most_tumor
from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.parallel import progress_bar

if TYPE_CHECKING:
    from kits_dist.inference.predictor import CascadeStage, Predictor

_STAGES = {
    "phase1": "phase 1 alone",
    "phase2": "phase 2 alone, in the boxes of the annotation: what it could do if phase 1 were perfect",
}


class RunCases(NamedTuple):
    """The cases that a run is scored on, and what each is scored against."""

    split: Split
    store: Store
    truths: dict[str, Path]  # {case: label.npy of the store, or folder with segmentations/}
    reference: Reference
    with_poster: bool = False  # print the poster's measure, too
    warnings: tuple[Finding, ...] = ()  # of cases that are not in HU


def run_cases(
    predictor: Predictor, split: Split, store: str = "", truth: str = "", reference: Reference = "file"
) -> RunCases:
    """Choose the cases of a split and their references.

    store   the run's store, where it has moved
    truth   for reference=samples or majority: KiTS21 folder with CASE/segmentations/

    Raises MissingInput / InputError where a case has no such reference, or the run must not be scored on it.
    """
    opened, case_ids = held_out(predictor, split, store)
    if reference == "file":
        truths = {case_id: array_path(opened.path, "axial", case_id, "label") for case_id in case_ids}
    else:
        truths = select_cases(case_folders(Path(truth), "truth"), case_ids, Path(truth))
    return RunCases(split, opened, truths, reference, warnings=tuple(intensity_warnings(opened, case_ids)))


def score_run(
    predictor: Predictor, cases: RunCases, rules: Rules, output: str, panel_cases: int, group: Ranks, workers: int = 0
) -> None:
    """Write label maps, tables and pictures of every stage, and print the tables. All processes must call it.

    predictor     opened with annotated=True
    rules         post-processing of the label maps
    output        folder of the tables; "": in the run folder
    panel_cases   number of cases with a slice in panel.png
    group         processes that share the cases
    workers       processes that score; 0: one per core where that pays off

    Raises InputError where several runs have no `output`, JobFailed where a case cannot be scored.
    """
    store = cases.store
    outputs = _outputs(predictor, cases, output)
    whole = "the whole cascade" if len(outputs) > 1 else ""
    stages = [_StageResults(stage, folder, _STAGES.get(stage.name, whole)) for stage, folder in outputs]
    for stage in stages:
        files.make_folder(stage.output / "predictions", "output")
        files.check_names(stage.output / "predictions", [f"{case_id}.nii.gz" for case_id in cases.truths], "output")
        if group.rank == 0:
            # written last: a folder without it is unfinished
            (stage.output / "summary.json").unlink(missing_ok=True)

    for number, case_id in progress_bar(
        f"predict {cases.split}", "case", items=group.share([*enumerate(cases.truths)])
    ):
        row = store.row[case_id]
        case = store.cases[row]
        for stage, labels in zip(stages, predictor.predict_stages(store.image(row), case), strict=True):
            cleaned = clean(labels, case.spacing_mm, rules)
            stage.add(case, cleaned, cases)
            if number < panel_cases:
                stage.tiles.append((number, _tile(store, row, cleaned)))

    about = {
        "reference": cases.reference,
        "step": predictor.step,
        "store_sha256": store.fingerprint(),
        "tta": predictor.tta,
        "precision": predictor.precision,
        "postprocess": rules.active,
        "runs": [run.resolve().name for run in _runs(predictor)],
        "tuned": {"checkpoint": _checkpoint_choice(predictor)},
    }
    if cases.warnings:
        about["warnings"] = {finding.case_id: finding.message for finding in cases.warnings}
    if predictor.fusion:
        about["fusion"] = predictor.fusion
        about["tuned"]["fusion"] = "by Dice of the validation cases"

    # gather every stage first: a case that cannot be scored ends the program on rank 0
    gathered = [stage.gather(group, workers) for stage in stages]
    for stage, results in zip(stages, gathered, strict=True):
        if results is not None:
            stage.write(require_scores(results), cases, about)


class _StageResults:
    """The label maps of one stage that this process made, and what is gathered of them."""

    def __init__(self, stage: CascadeStage, output: Path, title: str):
        self.name, self.predicted_regions = stage
        self.title = title
        self.output = output
        self.jobs: list[Job] = []
        self.tiles: list[tuple[int, PanelRow]] = []
        self.measurements: list[tuple[str, dict]] = []

    def add(self, case: Case, labels: np.ndarray, cases: RunCases) -> None:
        """Measure the (D, H, W) uint8 labels of a case, write them and note how to score them."""
        midline = case.body["axial"].center[1]
        measured = measure_label_map(labels, case.spacing_mm, self.predicted_regions, midline)
        self.measurements.append((case.case_id, measured))
        path = self.output / "predictions" / f"{case.case_id}.nii.gz"
        write_nifti(path, labels, case.geometry)
        regions = scored_regions(self.predicted_regions)
        truth = cases.truths[case.case_id]
        self.jobs.append(Job(case.case_id, path, truth, regions, cases.reference, case.geometry))

    def gather(self, group: Ranks, workers: int) -> list[CaseScore | str] | None:
        """Score the cases; rank 0 gets the results, measurements and tiles of all processes. All must call it."""
        self.tiles = sorted(group.gather(self.tiles) or [], key=lambda pair: pair[0])
        self.measurements = group.gather(self.measurements) or []
        return score_jobs(score_job, self.jobs, group, workers)

    def write(self, scores: list[CaseScore], cases: RunCases, about: dict) -> None:
        """Write the tables and pictures, and print the table."""
        summary = summarize(scores, cases.store.meta["data"], cases.split) | about
        if self.name:
            summary["stage"] = _STAGES[self.name]
        measurements = dict(self.measurements)
        scores = [score._replace(measurements=measurements[score.case_id]) for score in scores]
        write_tables(self.output, scores, summary)
        draw_cases(self.output, cases.store, self.predicted_regions)
        tiles = [tile for _, tile in self.tiles]
        save_png(self.output / "panel.png", contour_panel(tiles, f"data: {summary['data']}   split: {cases.split}"))
        print_summary(summary, self.output, cases.with_poster, self.title)


def _runs(predictor: Predictor) -> list[Path]:
    return [member.run for member in predictor.members]


def _checkpoint_choice(predictor: Predictor) -> str:
    configs = [member.config for member in predictor.members]
    choices = [f"by {config.optim.best_by} of the validation cases of fold {config.data.fold}" for config in configs]
    return "; ".join(dict.fromkeys(choices))


def _outputs(predictor: Predictor, cases: RunCases, output: str) -> list[tuple[CascadeStage, Path]]:
    """Return each stage with the folder of its tables. A cascade of two runs belongs to its second one."""
    stages = predictor.stages
    runs = _runs(predictor)
    if len(runs) > (2 if len(stages) > 1 else 1) and not output:
        raise InputError(
            f"run=[{','.join(map(str, runs))}] names several runs: say with output=DIR where their common scores go."
        )
    if output:
        folder = Path(output).resolve()
    else:
        home = next((member.run for member in predictor.members if member.is_second_phase), runs[0])
        # another reference gives another table, which the report shows next to this one
        folder = (
            home / "evaluation" / (cases.split if cases.reference == "file" else f"{cases.split}_{cases.reference}")
        )
    if output and len(stages) == 1:
        return [(stages[0], folder)]
    return [(stage, folder.with_name(f"{folder.name}_{stage.name}") if stage.name else folder) for stage in stages]


def _tile(store: Store, row: int, predicted: np.ndarray) -> PanelRow:
    """Draw the slice with the most true tumor: chosen by the truth, never by the score."""
    truth = np.asarray(store.label(row))
    index = slice_with_most_tumor(truth)
    image = np.asarray(store.image(row)[index], np.float32)
    gray = np.clip(image * 255 / store.window.levels, 0, 255).astype(np.uint8)
    return PanelRow(gray, truth[index], predicted[index], f"{store.cases[row].case_id} slice {index}")
