"""The label maps of a case, as files or arrays -> its figures. Definitions: README, "How it scores".

A figure that a case does not have (a distance where one side is empty) is None, and counted beside the mean.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from kits_dist.evaluation.lesions import detect
from kits_dist.evaluation.metrics import SIZES, WEIGHTS, CaseScore, Figures, dice, size_of, slice_counts
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
    """What to read and score; small enough to be sent to another process."""

    case_id: str
    prediction: Path | None  # None: there is none, which scores 0
    truth: Path  # a label map, a store's label.npy, or (majority, samples) the case's folder with segmentations/
    regions: Regions
    reference: Reference = "file"
    geometry: Geometry | None = None  # of the scan, where truth is an array


def score_job(job: Job) -> CaseScore | str:
    """Read and score a case; what is wrong with its files is returned as text, so that others go on."""
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


def score_raters(job: Job) -> CaseScore | str:
    """Each annotator of the case job.truth against the majority of the others: the mean over annotators."""
    try:
        pairs = annotators.leave_one_out_pairs(annotators.read_annotations(job.truth))
    except InputError as error:
        return str(error)
    scores = [score_foreground(job.case_id, own, [(others, 1)], job.regions) for own, others in pairs]
    return mean_score(scores, [1] * len(scores))


def _references(job: Job) -> list[tuple[Foreground, int]]:
    """The reference label maps, each with how often it counts."""
    if job.reference == "samples":
        return annotators.samples(annotators.read_annotations(job.truth))
    if job.reference == "majority":
        return [(annotators.majority(annotators.read_annotations(job.truth)), 1)]
    if job.geometry is not None:
        return [(foreground_of(Volume(np.load(job.truth, mmap_mode="r"), job.geometry)), 1)]
    return [(read_foreground(job.truth), 1)]


def score_case(
    case_id: str, predicted: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, ...], regions: Regions
) -> CaseScore:
    """(D, H, W) uint8 label maps of one grid -> the figures of the case."""
    if predicted.shape != truth.shape:
        raise ValueError(f"score_case: predicted is {predicted.shape} but truth is {truth.shape}.")
    geometry = kits_geometry(truth.shape, tuple(spacing_mm))
    maps = [foreground_of(Volume(array, geometry)) for array in (predicted, truth)]
    return score_foreground(case_id, maps[0], [(maps[1], 1)], regions)


def score_foreground(
    case_id: str, predicted: Foreground, references: list[tuple[Foreground, int]], regions: Regions
) -> CaseScore:
    """The mean over the references of the figures of the prediction against each."""
    surfaces = _surfaces(predicted, regions)
    scores = [_score_pair(case_id, predicted, surfaces, truth, regions) for truth, _ in references]
    return mean_score(scores, [often for _, often in references])


def _surfaces(one: Foreground, regions: Regions) -> dict[str, Surface]:
    surfaces = {}
    for name, labels in regions.items():
        inside = region_mask(one.array, labels)
        box = bounding_box(inside)
        corner = tuple(c + part.start for c, part in zip(one.corner, box, strict=True))
        surfaces[name] = surface_of(inside[box], one.spacing_mm, corner)
    return surfaces


def region_mask(array: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
    inside = array == labels[0]
    for label in labels[1:]:
        inside |= array == label
    return inside


def _score_pair(
    case_id: str, predicted: Foreground, surfaces: dict[str, Surface], truth: Foreground, regions: Regions
) -> CaseScore:
    spacing_mm, voxel_ml = truth.spacing_mm, float(np.prod(truth.spacing_mm)) / 1000
    true_surfaces = _surfaces(truth, regions)
    (ours, theirs), _ = crop_to_common_box([predicted, truth])
    figures = {}
    for name, rows in slice_counts(ours, theirs, regions).items():
        tp, fp, fn = counts = rows.sum(axis=0)
        rows = rows[rows.any(axis=1)]
        surface = surface_scores(surfaces[name], true_surfaces[name], spacing_mm, TOLERANCES_MM.get(name))
        figures[name] = {
            "dice": float(dice(counts)),
            "surface_dice": surface.surface_dice,
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
        }
        if name not in TOLERANCES_MM:
            del figures[name]["surface_dice"]
    lesions = _lesions(ours, theirs, voxel_ml) if "tumor" in regions else {}
    return CaseScore(case_id, figures, lesions)


def _lesions(predicted: np.ndarray, truth: np.ndarray, voxel_ml: float) -> Figures:
    ours, theirs = (region_mask(array, REGIONS["tumor"]) for array in (predicted, truth))
    box = bounding_box(ours | theirs)
    found = detect(ours[box], theirs[box], voxel_ml)
    figures: Figures = {
        "true": len(found.lesions),
        "found": sum(one.dice > 0 for one in found.lesions),
        "false_positives": found.false_positives,
    }
    for size in SIZES:
        of_size = [one.dice for one in found.lesions if size_of(one.ml) == size]
        figures |= {
            size: len(of_size),
            f"{size}_found": sum(score > 0 for score in of_size),
            f"{size}_dice": float(np.mean(of_size)) if of_size else None,
        }
    return figures


def missed(score: CaseScore) -> CaseScore:
    """A case without prediction, scored as empty: 0 in every region, also where the truth is empty too."""
    zero = {"dice": 0.0, "surface_dice": 0.0, "miss": 1}
    regions = {
        name: figures | {key: value for key, value in zero.items() if key in figures}
        for name, figures in score.regions.items()
    }
    return score._replace(regions=regions)


def mean_score(scores: list[CaseScore], often: list[int]) -> CaseScore:
    """One case scored several times -> the mean of every figure, each score counted `often`.

    A distance that one of them lacks is not known of the case, and a miss in one is a miss.
    """
    if len(scores) == 1:
        return scores[0]
    regions = {name: _mean_figures([one.regions[name] for one in scores], often) for name in scores[0].regions}
    for name, figures in regions.items():
        figures["miss"] = max(one.regions[name]["miss"] for one in scores)
    return CaseScore(scores[0].case_id, regions, _mean_figures([one.lesions for one in scores], often))


def _mean_figures(rows: list[Figures], often: list[int]) -> Figures:
    means: Figures = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        weights = [n * (row[WEIGHTS[key]] if key in WEIGHTS else 1) for row, n in zip(rows, often, strict=True)]
        if key in WEIGHTS:  # where there are no slices, or no lesions of a size, there is nothing to know
            values = [value or 0.0 for value in values]
        known = None not in values and sum(weights) > 0
        means[key] = float(np.dot(values, weights) / sum(weights)) if known else None
    return means
