"""Find label maps by case: ours and nnU-Net's NAME.nii.gz, MONAI's NAME/NAME_seg.nii.gz, KiTS folders."""

from collections.abc import Iterable
from pathlib import Path

from kits_dist.imaging.datasets import find_cases, holds_cases
from kits_dist.imaging.nifti import by_name, nifti_files, stem
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed

# MONAI's SaveImage appends _seg or _trans to the name of the scan, which in nnU-Net's folders ends with _0000.
_ENDINGS = ("_seg", "_trans", "_0000")


def find_truths(folder: Path, key: str = "truth") -> dict[str, Path]:
    """Return {case: label map} of CASE.nii.gz files or of a folder of cases.

    Raises MissingInput / InputError, also for a folder that holds both: a mean over one kind would lack the other.
    """
    _check_folder(folder, key)
    found = by_name(nifti_files(folder), stem)
    if found and holds_cases(folder):
        raise InputError(f"{key}={folder} holds folders of cases and single label maps. Keep one kind in it.")
    return found or _of_cases(folder, key)


def find_predictions(folder: Path, cases: Iterable[str], key: str = "predictions") -> dict[str, Path]:
    """Return {case: label map} of whatever layout `folder` has. Raises MissingInput / InputError.

    cases   the true case ids: NAME_seg is the case NAME where there is such a case
    """
    _check_folder(folder, key)
    files = nifti_files(folder)
    if not files:  # MONAI makes a folder for each scan
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        files = [file for case in inner for file in nifti_files(case) if file.name.startswith(case.name)]
    known = set(cases)
    return by_name(files, lambda path: _case_of(stem(path), known)) or _of_cases(folder, key)


def find_unpredicted(
    predictions: dict[str, Path],
    truths: Iterable[str],
    folder: Path,
    missing: str,
    key: str = "predictions",
    all_cases: bool = False,
) -> list[str]:
    """Return the true cases without a prediction.

    all_cases   the truth is not limited to the test cases of a store

    Raises InputError naming them unless missing="zero", and naming predictions without a true label map.
    """
    truths = set(truths)
    extra = sorted(predictions.keys() - truths)
    if extra:
        raise InputError(f"{key}={folder}: no truth for {listed(extra)}. Add the truth or remove the files.")
    absent = sorted(truths - predictions.keys())
    if absent and missing == "error":
        advice = "Predict them, or pass missing=zero."
        if all_cases:
            advice = f"If these are the test cases of a store, name it: store=DIR. Else {advice[0].lower()}{advice[1:]}"
        raise InputError(f"{key}={folder}: nothing for {listed(absent)}. {advice}")
    return absent


def _check_folder(folder: Path, key: str) -> None:
    if not folder.is_dir():
        raise MissingInput(f"{key}={folder}: no such folder.")


def _case_of(name: str, cases: set[str]) -> str:
    """Strip endings until `name` is a known case; a name that never becomes one is returned unchanged."""
    short = name
    while short not in cases:
        ending = next((ending for ending in _ENDINGS if short.endswith(ending)), None)
        if ending is None:
            return name
        short = short.removesuffix(ending)
    return short


def _of_cases(folder: Path, key: str) -> dict[str, Path]:
    # Synthetic variants are for training: a mean over cases is a mean over patients.
    found = {case.case_id: case.label for case in find_cases(folder).cases if case.label and not case.made_from}
    if not found:
        raise InputError(f"{key}={folder}: no label maps. Expected CASE.nii.gz files or folders of cases.")
    return found
