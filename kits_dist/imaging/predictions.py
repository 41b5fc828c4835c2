"""Label maps of any system, by name: ours and nnU-Net's NAME.nii.gz, MONAI's NAME/NAME_seg.nii.gz, KiTS folders."""

from collections.abc import Iterable
from pathlib import Path

from kits_dist.imaging.datasets import find_cases, stem
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed

# What stands behind the case in the name: MONAI's SaveImage adds _seg or _trans to the name of the scan it read, which
# in nnU-Net's folders ends with _0000.
_ENDINGS = ("_seg", "_trans", "_0000")


def find_truths(folder: Path, key: str = "truth") -> dict[str, Path]:
    """{case: its label map} of CASE.nii.gz files, or of a folder of cases. Raises MissingInput / InputError."""
    return _by_case(_files(_existing(folder, key)), key, set()) or _of_cases(folder, key)


def find_predictions(folder: Path, cases: Iterable[str], key: str = "predictions") -> dict[str, Path]:
    """{case: its label map} of whatever `folder` holds. Raises MissingInput / InputError.

    cases   the true ones: NAME_seg is the case NAME where there is such a case
    """
    files = _files(_existing(folder, key))
    if not files:  # MONAI makes a folder for each scan
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        files = [file for case in inner for file in _files(case) if file.name.startswith(case.name)]
    return _by_case(files, key, set(cases)) or _of_cases(folder, key)


def _existing(folder: Path, key: str) -> Path:
    if not folder.is_dir():
        raise MissingInput(f"{key}={folder}: no such folder.")
    return folder


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.name.endswith((".nii", ".nii.gz")) and not p.name.startswith(".")]


def _by_case(files: list[Path], key: str, cases: set[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        case = _case_of(stem(path), cases)
        if case in found:
            raise InputError(f"{key}: both {found[case]} and {path} are {case}. Keep one of them.")
        found[case] = path
    return found


def _case_of(name: str, cases: set[str]) -> str:
    short = name
    while short not in cases:
        ending = next((ending for ending in _ENDINGS if short.endswith(ending)), None)
        if ending is None:
            return name
        short = short.removesuffix(ending)
    return short


def _of_cases(folder: Path, key: str) -> dict[str, Path]:
    # a mean over cases is one over patients: synthetic variants are for training
    found = {case.case_id: case.label for case in find_cases(folder).cases if case.label and not case.made_from}
    if not found:
        raise InputError(f"{key}={folder}: no label maps. Expected CASE.nii.gz files or folders of cases.")
    return found


def pair(
    predictions: dict[str, Path], truths: Iterable[str], folder: Path, missing: str, key: str = "predictions"
) -> list[str]:
    """The true cases that have no prediction. Raises InputError naming them unless missing="zero", and cases that no
    truth is there for."""
    if extra := sorted(set(predictions) - set(truths)):
        raise InputError(f"{key}={folder}: no truth for {listed(extra)}. Add the truth or remove the files.")
    absent = sorted(set(truths) - set(predictions))
    if absent and missing == "error":
        raise InputError(f"{key}={folder}: nothing for {listed(absent)}. Predict them, or pass missing=zero.")
    return absent
