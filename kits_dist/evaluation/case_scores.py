"""The label maps of a case, as files or arrays -> its metrics. All definitions: kits_dist/evaluation/README.md.

A metric that is undefined for a case (a distance where one mask is empty) is None, and counted next to the mean.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from kits_dist.evaluation.lesions import detect
from kits_dist.evaluation.metrics import SIZES, WEIGHTS, CaseScore, Metrics, column, dice, size_of, slice_counts
from kits_dist.evaluation.poster import poster_metrics
from kits_dist.evaluation.surface_distance import Surface, surface_of, surface_scores
from kits_dist.imaging import annotators
from kits_dist.imaging.foreground import Foreground, check_grids, crop_to_common_box, foreground_of, read_foreground
from kits_dist.imaging.nifti import Geometry, Volume, kits_geometry
from kits_dist.labels import REGIONS, TOLERANCES_MM
from kits_dist.utils.components import bounding_box
from kits_dist.utils.errors import InputError

Regions = dict[str, tuple[int, ...]]
Reference = Literal["file", "majority", "samples"]


class Job(NamedTuple):
    """The files of a case to read and score; small enough to be sent to another process."""

    case_id: str
    prediction: Path | None  # None: missing, which scores 0
    truth: Path  # a label map, a store's label.npy, or (majority, samples) the case's folder with segmentations/
    regions: Regions
    reference: Reference = "file"
    geometry: Geometry | None = None  # of the scan, where truth is an array


def score_job(job: Job) -> CaseScore | str:
    """Read and score a case; a fault of its files is returned as a message, so that the other cases are scored."""
    try:
        references = _references(job)
        truth = references[0][0]
        if job.prediction is None:
            empty = Foreground(np.zeros((0, 0, 0), np.uint8), (0, 0, 0), truth.grid)
            return missed(score_foreground(job.case_id, empty, references, job.regions))
        predicted = read_foreground(job.prediction)
        check_grids(predicted, truth, job.prediction, job.truth)
    except InputError as error:
        return str(error)
    return score_foreground(job.case_id, predicted, references, job.regions)


def score_rater_job(job: Job) -> CaseScore | str:
    """Score each annotator of the case job.truth against the majority of the others, and average over annotators."""
    try:
        pairs = annotators.leave_one_out_pairs(annotators.read_annotations(job.truth))
    except InputError as error:
        return str(error)
    scores = [score_foreground(job.case_id, own, [(others, 1)], job.regions) for own, others in pairs]
    return mean_score(scores, [1] * len(scores))


def _references(job: Job) -> list[tuple[Foreground, int]]:
    """Return the reference label maps, each with its number of repeats."""
    if job.reference == "samples":
        return annotators.samples(annotators.read_annotations(job.truth))
    if job.reference == "majority":
        return [(annotators.majority(annotators.read_annotations(job.truth)), 1)]
    if job.geometry is not None:
        return [(foreground_of(Volume(np.load(job.truth, mmap_mode="r"), job.geometry)), 1)]
    return [(read_foreground(job.truth), 1)]


def score_case(
    case_id: str, predicted: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, float, float], regions: Regions
) -> CaseScore:
    """Score two (D, H, W) uint8 label maps of one grid; spacing_mm is (d, h, w)."""
    if predicted.shape != truth.shape:
        raise ValueError(f"score_case: predicted is {predicted.shape} but truth is {truth.shape}.")
    geometry = kits_geometry(truth.shape, spacing_mm)
    maps = [foreground_of(Volume(array, geometry)) for array in (predicted, truth)]
    return score_foreground(case_id, maps[0], [(maps[1], 1)], regions)


def score_foreground(
    case_id: str, predicted: Foreground, references: list[tuple[Foreground, int]], regions: Regions
) -> CaseScore:
    """Score a prediction against every reference, and average over the references with their repeats."""
    surfaces = _surfaces(predicted, regions)
    scores = [_score_pair(case_id, predicted, surfaces, truth, regions) for truth, _ in references]
    return mean_score(scores, [repeats for _, repeats in references])


def _surfaces(foreground: Foreground, regions: Regions) -> dict[str, Surface]:
    surfaces = {}
    for name, labels in regions.items():
        inside = region_mask(foreground.array, labels)
        box = bounding_box(inside)
        corner = tuple(c + part.start for c, part in zip(foreground.corner, box, strict=True))
        surfaces[name] = surface_of(inside[box], foreground.spacing_mm, corner)
    return surfaces


def region_mask(array: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
    """Return where `array` holds one of the labels; faster than np.isin for so few."""
    inside = array == labels[0]
    for label in labels[1:]:
        inside |= array == label
    return inside


def _score_pair(
    case_id: str, predicted: Foreground, surfaces: dict[str, Surface], truth: Foreground, regions: Regions
) -> CaseScore:
    spacing_mm = truth.spacing_mm
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    true_surfaces = _surfaces(truth, regions)
    (predicted_labels, true_labels), _ = crop_to_common_box([predicted, truth])

    scored: dict[str, Metrics] = {}
    by_slice = slice_counts(predicted_labels, true_labels, regions)
    poster = poster_metrics(by_slice, truth.grid.shape[0])
    for name, rows in by_slice.items():
        tp, fp, fn = counts = rows.sum(axis=0)
        rows = rows[rows.any(axis=1)]
        surface = surface_scores(surfaces[name], true_surfaces[name], spacing_mm, TOLERANCES_MM.get(name))
        scored[name] = {
            "dice": float(dice(counts)),
            **({"surface_dice": surface.surface_dice} if name in TOLERANCES_MM else {}),
            "dice_slice": float(dice(rows).mean()) if len(rows) else None,
            "hd95_mm": surface.hd95_mm,
            "assd_mm": surface.assd_mm,
            "miss": int((tp + fp > 0) != (tp + fn > 0)),
            "slices": len(rows),
            "true_positive": int(tp),
            "false_positive": int(fp),
            "false_negative": int(fn),
            "truth_ml": (tp + fn) * voxel_ml,
            "predicted_ml": (tp + fp) * voxel_ml,
            **poster.get(name, {}),
        }
    lesions = _lesions(predicted_labels, true_labels, voxel_ml) if "tumor" in regions else {}
    return CaseScore(case_id, scored, lesions)


def _lesions(predicted: np.ndarray, truth: np.ndarray, voxel_ml: float) -> Metrics:
    predicted_tumor, true_tumor = (region_mask(array, REGIONS["tumor"]) for array in (predicted, truth))
    box = bounding_box(predicted_tumor | true_tumor)
    detection = detect(predicted_tumor[box], true_tumor[box], voxel_ml)
    metrics: Metrics = {
        "true": len(detection.lesions),
        "found": sum(lesion.dice > 0 for lesion in detection.lesions),
        "false_positives": detection.false_positives,
    }
    for size in SIZES:
        of_size = [lesion.dice for lesion in detection.lesions if size_of(lesion.ml) == size]
        metrics |= {
            size: len(of_size),
            f"{size}_found": sum(score > 0 for score in of_size),
            f"{size}_dice": float(np.mean(of_size)) if of_size else None,
        }
    return metrics


def missed(score: CaseScore) -> CaseScore:
    """Score a case without a prediction: 0 in every region, also where the truth is empty too."""
    zero = {"dice": 0.0, "surface_dice": 0.0, "dice_poster": 0.0, "miss": 1}
    regions = {
        name: metrics | {key: value for key, value in zero.items() if key in metrics}
        for name, metrics in score.regions.items()
    }
    return score._replace(regions=regions)


def mean_score(scores: list[CaseScore], repeats: list[int]) -> CaseScore:
    """Average the scores of one case, each counted `repeats` times.

    A distance that is undefined in one of them is undefined for the case, and a miss in one is a miss.
    """
    if len(scores) == 1:
        return scores[0]
    regions = {}
    for name in scores[0].regions:
        rows = [score.regions[name] for score in scores]
        regions[name] = _mean_metrics(rows, repeats) | {"miss": int(column(rows, "miss").max())}
    return CaseScore(scores[0].case_id, regions, _mean_metrics([score.lesions for score in scores], repeats))


def _mean_metrics(rows: list[Metrics], repeats: list[int]) -> Metrics:
    means: Metrics = {}
    for key in rows[0]:
        values = column(rows, key)
        weights = np.array(repeats, float)
        if key in WEIGHTS:  # without slices, or lesions of a size, the value is undefined but has no weight either
            values = np.nan_to_num(values)
            weights *= column(rows, WEIGHTS[key])
        known = weights.sum() > 0 and not np.isnan(values).any()
        means[key] = float(values @ weights / weights.sum()) if known else None
    return means
