"""Predict a folder of scans: one thread reads ahead, the networks run, another thread writes behind.

For each scan OUTPUT/NAME.nii.gz holds the labels, NAME.json the measurements and how they were made, and where wanted
NAME_REGION.nii.gz the probabilities of a region.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kits_dist.data.store import Case
from kits_dist.imaging.checks import check_image
from kits_dist.imaging.nifti import write_nifti
from kits_dist.imaging.scans import Scan
from kits_dist.inference.measurements import NOTE, measure_label_map
from kits_dist.inference.postprocessing import Rules, clean
from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.parallel import progress_bar
from kits_dist.utils.pipeline import run_pipeline

if TYPE_CHECKING:
    from kits_dist.inference.predictor import Predictor


class LoadedScan(NamedTuple):
    """A scan that is ready for the networks."""

    scan: Scan
    levels: np.ndarray  # (D, H, W) uint8
    case: Case
    warnings: list[str]  # what is peculiar with the CT, as `audit` says it


class PredictedScan(NamedTuple):
    """A scan that is ready to be written."""

    scan: Scan
    labels: np.ndarray  # (D, H, W) uint8
    probabilities: np.ndarray | None  # (R, D, H, W) uint8, in steps of 1/255
    case: Case
    warnings: list[str]


class Outcome(NamedTuple):
    """What one process has done."""

    slices: int
    failed: list[str]  # names of scans that could not be read
    network_s: float
    total_s: float


def check_output(source: Path, output: Path, scans: list[Scan], probabilities: bool) -> None:
    """Refuse an output folder before anything is predicted.

    Raises InputError where an output would replace a CT or another output, or where the label maps would be taken for
    CTs the next time `source` is predicted.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"output={output} is a file. Name a folder.")
    targets = [output / name for name in _label_files(scans, probabilities)]
    inputs = {scan.source.resolve() for scan in scans if isinstance(scan.source, Path)}
    overwritten = [path for path in targets if path.resolve() in inputs]
    if overwritten:
        raise InputError(f"output={output} would overwrite the CT {overwritten[0]}. Name another folder.")
    if source.is_dir() and output.resolve() in {scan.root.resolve() for scan in scans}:
        raise InputError(f"output={output} is the input folder; next time labels would pass for CTs. Name another.")
    if len(set(targets)) < len(targets):
        twice = next(path for index, path in enumerate(targets) if path in targets[:index])
        raise InputError(f"two files would be called {twice.name}. Rename a scan, or leave out probabilities=true.")


def make_output(output: Path, scans: list[Scan], probabilities: bool) -> None:
    """Make the output folder. Raises InputError where it cannot be written to, or cannot hold the files of a scan."""
    files.make_folder(output, "output")
    files.check_names(output, _label_files(scans, probabilities), "output")


def _label_files(scans: list[Scan], probabilities: bool) -> list[str]:
    endings = ["", *(f"_{region}" for region in REGIONS)] if probabilities else [""]
    return [f"{scan.name}{ending}.nii.gz" for scan in scans for ending in endings]


def predict_scans(
    scans: list[Scan], predictor: "Predictor", rules: Rules, output: Path, probabilities: bool, skip_unreadable: bool
) -> Outcome:
    """Predict `scans` and write their files to `output`, with bounded memory however many there are.

    skip_unreadable   report a scan that cannot be read and continue; else raise its InputError
    """

    def read(scan: Scan) -> LoadedScan | InputError:
        try:
            image = scan.read()
        except InputError as error:
            return error  # raised here, it would end the pipeline
        levels = predictor.levels_of(image)
        warnings = [message for severity, _, message in check_image(image) if severity == "warning"]
        return LoadedScan(scan, levels, predictor.case_of(levels, image), warnings)

    def predict(loaded: LoadedScan | InputError) -> PredictedScan | InputError:
        if isinstance(loaded, InputError):
            return loaded
        scan, levels, case, warnings = loaded
        shares = np.empty((len(predictor.regions), *levels.shape), np.uint8) if probabilities else None
        return PredictedScan(scan, predictor.predict_levels(levels, case, shares), shares, case, warnings)

    def write(predicted: PredictedScan | InputError) -> tuple[int, list[str]] | InputError:
        if isinstance(predicted, InputError):
            return predicted
        return write_scan(predicted, predictor, rules, output), predicted.warnings

    began = time.perf_counter()
    slices = 0
    failed = []
    with progress_bar("predict", "scan", total=len(scans)) as bar:
        for scan, result in run_pipeline(scans, read, predict, write):
            if isinstance(result, InputError):
                if not skip_unreadable:
                    raise result
                bar.write(f"error    {result}")
                failed.append(scan.name)
            else:
                count, warnings = result
                slices += count
                bar.write("".join(f"warning  {scan.name}: {message}\n" for message in warnings), end="")
            bar.update()
    return Outcome(slices, failed, predictor.network_s, time.perf_counter() - began)


def write_scan(predicted: PredictedScan, predictor: "Predictor", rules: Rules, output: Path) -> int:
    """Apply `rules` and write the files of one scan, the JSON last. Return the number of slices."""
    scan, labels, probabilities, case, warnings = predicted
    labels = clean(labels, case.spacing_mm, rules)
    write_nifti(output / f"{scan.name}.nii.gz", labels, case.geometry)
    if probabilities is not None:
        for region, array in zip(predictor.regions, probabilities, strict=True):
            write_nifti(output / f"{scan.name}_{region}.nii.gz", array, case.geometry, slope=1 / 255)

    midline = case.body["axial"].center[1]
    content = {
        "note": NOTE,
        "labels": f"{scan.name}.nii.gz",
        "findings": measure_label_map(labels, case.spacing_mm, predictor.regions, midline),
        "warnings": warnings,
        "spacing_mm": [round(mm, 5) for mm in case.spacing_mm],
        "regions": list(predictor.regions),
        "runs": [member.run.resolve().name for member in predictor.members],
        "step": predictor.step,
        "trained_on": predictor.data,
        "tta": predictor.tta,
        "precision": predictor.precision,
        "fusion": predictor.fusion,
        "postprocess": rules.active,
    }
    files.write_json(output / f"{scan.name}.json", content)
    return len(labels)
