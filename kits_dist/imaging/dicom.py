"""DICOM series -> the same `Volume` as a NIfTI file: HU and geometry, nothing of the patient.

Read by SimpleITK (extra `dicom`), which also unpacks what GDCM can of compressed transfer syntaxes. ITK's own series
reader stacks what it is given; here a series is refused when its slices do not make one straight, evenly spaced stack.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.imaging.nifti import Geometry, Volume, to_canonical
from kits_dist.utils.errors import InputError, MissingPackage

# Tags by what is asked of them. No name, id, date or free text is ever read.
_TAGS = {
    "modality": "0008|0060",
    "image_type": "0008|0008",
    "series_uid": "0020|000e",
    "series_number": "0020|0011",
    "position": "0020|0032",
    "orientation": "0020|0037",
    "pixel_spacing": "0028|0030",
    "rescale": "0028|1052",
}
# CT, enhanced CT and legacy converted enhanced CT (PS3.4 B.5); "": the file is so damaged that it does not say
_CT_CLASSES = {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2", ""}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Slice(NamedTuple):
    path: Path
    tags: dict[str, str]  # those of _TAGS that the file has
    shape: tuple[int, ...]  # columns, rows, frames
    components: int  # 1 grey, 3 colour


class Series(NamedTuple):
    number: str  # as the scanner counts them; may be empty
    folder: Path  # the deepest that holds all its files
    slices: list[Slice]
    skip: str = ""  # why it is nothing to predict: not a CT, a localizer
    fault: str = ""  # why it cannot be read, where that showed already


def is_dicom(path: Path) -> bool:
    """By the four letters behind the preamble (PS3.10)."""
    return _head(path)[128:132] == b"DICM"


def files_below(folder: Path) -> list[Path]:
    """Every DICOM file in `folder` and its folders; hidden ones and directory files (DICOMDIR) left out."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = (name for name in sorted(names) if not name.startswith(".") and name.upper() != "DICOMDIR")
        found += [path for name in shown if ".nii" not in name and is_dicom(path := Path(root, name))]
    return found


def series_of(paths: Iterable[Path]) -> list[Series]:
    """Files, in whatever folders, by the series they belong to; half a millisecond a file, no pixels are read.

    A CT slice that cannot be read is the fault of the series beside it: without it a slice could be missing at an end,
    where nobody would notice. What is no picture (a structure set, a report) is left out. Raises MissingPackage without
    SimpleITK.
    """
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    damaged: dict[Path, str] = {}  # {folder: message}
    for path in paths:
        try:
            one = _header(path)
        except InputError as error:
            if isinstance(error, MissingPackage):
                raise
            if _sop_class(path) in _CT_CLASSES:
                damaged.setdefault(path.parent, str(error))
            continue
        by_uid[one.tags.get("series_uid", "")].append(one)
    found = []
    for slices in by_uid.values():
        folders = {one.path.parent for one in slices}
        fault = next((words for folder, words in damaged.items() if folder in folders), "")
        tags = slices[0].tags
        found.append(
            Series(tags.get("series_number", ""), Path(os.path.commonpath(folders)), slices, _skip(tags), fault)
        )
    beside = {one.path.parent for series in found for one in series.slices}
    return found + [Series("", folder, [], "", words) for folder, words in damaged.items() if folder not in beside]


def _skip(tags: dict[str, str]) -> str:
    if (modality := tags.get("modality", "")) != "CT":
        return f"its modality is {modality or 'not given'}, not CT"
    return "it is a localizer" if "LOCALIZER" in tags.get("image_type", "").upper().split("\\") else ""


def read_series(series: Series) -> Volume:
    """(D, H, W) int16 HU where the scanner wrote integers, else float32, and where the voxels lie.

    Raises InputError naming the folder and what is wrong: not one straight stack of slices (missing, doubled, uneven,
    tilted gantry), not in HU, several frames in a file, or a file that cannot be read.
    """
    if series.fault or series.skip:
        raise InputError(series.fault or f"{series.folder}: {series.skip}. Name the folder of a CT series.")
    folder, slices = series.folder, series.slices
    _check_alike(folder, slices)
    slices, affine = _stacked(folder, slices)
    columns, rows = slices[0].shape[:2]
    array = np.empty((len(slices), rows, columns), np.int16)
    for k, one in enumerate(slices):
        hu = _pixels(one)
        if array.dtype.kind == "i" and not (np.array_equal(hu, np.rint(hu)) and abs(hu).max() < 2**15):
            array = array.astype(np.float32)
        array[k] = hu
    geometry = Geometry((columns, rows, len(slices)), affine)
    return Volume(to_canonical(array.transpose(2, 1, 0), geometry), geometry)


def _check_alike(folder: Path, slices: list[Slice]) -> None:
    for one in slices:
        if one.components != 1 or len(one.shape) > 2 and one.shape[2] > 1:
            what = "a colour picture" if one.components != 1 else f"{one.shape[2]} frames in one file"
            raise InputError(f"{one.path}: {what}; a CT series has a grey slice a file. Convert it first (dcm2niix).")
        for tag, words in (
            ("position", "no position (0020,0032)"),
            ("orientation", "no orientation (0020,0037)"),
            ("pixel_spacing", "no pixel spacing (0028,0030)"),
            ("rescale", "no RescaleIntercept (0028,1052), so its values are not known to be HU"),
        ):
            if tag not in one.tags:
                raise InputError(f"{one.path}: {words}. Export the original CT series again.")
    for tag in ("orientation", "pixel_spacing"):
        values = np.array([_numbers(one, tag) for one in slices])
        apart = np.abs(values - values[0]).max(axis=1)
        if apart.max() > 1e-3:
            k = int(apart.argmax())
            raise InputError(
                f"{folder}: slices of one series differ in {tag.replace('_', ' ')}: {values[0].tolist()} in "
                f"{slices[0].path.name}, {values[k].tolist()} in {slices[k].path.name}. Keep the files of one stack."
            )
    if len(sizes := {one.shape[:2] for one in slices}) > 1:
        raise InputError(f"{folder}: slices of one series have {sorted(sizes)} pixels. Keep the files of one stack.")


def _stacked(folder: Path, slices: list[Slice]) -> tuple[list[Slice], np.ndarray]:
    """The slices in the order of their places, and the (4, 4) affine of (column, row, slice) -> mm, RAS+."""
    if len(slices) < 2:
        raise InputError(f"{folder}: the series is a single slice, not a volume. Name a folder with the whole series.")
    across, down = _numbers(slices[0], "orientation").reshape(2, 3)
    normal = np.cross(across, down)
    places = np.array([_numbers(one, "position") for one in slices])
    order = np.argsort(places @ normal, kind="stable")
    slices, places = [slices[k] for k in order], places[order]
    steps = np.diff(places @ normal)
    usual = float(np.median(steps))
    name = [one.path.name for one in slices]
    if (again := steps < 0.01).any():  # mm
        k = int(again.argmax())
        raise InputError(
            f"{folder}: {again.sum()} slices lie where another lies ({name[k]} and {name[k + 1]}, for one): several "
            "phases or reconstructions in one series. Keep the files of one."
        )
    if (uneven := np.abs(steps - usual) > 0.1 * usual).any():
        k = int(uneven.argmax())
        raise InputError(
            f"{folder}: slices are missing or unevenly spaced: {steps[k]:.4g} mm from {name[k]} to {name[k + 1]}, "
            f"the usual step is {usual:.4g} mm. Export the series again: all slices, one spacing."
        )
    step = (places[-1] - places[0]) / (len(slices) - 1)
    tilt = float(np.degrees(np.arccos(min(1.0, step @ normal / np.linalg.norm(step)))))
    if tilt > 0.6:  # as for a NIfTI file's axes
        raise InputError(
            f"{folder}: tilted gantry: the slices are stacked {tilt:.1f} degrees off their normal. Straighten it first "
            "(dcm2niix does)."
        )
    between_rows, between_columns = _numbers(slices[0], "pixel_spacing")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([across * between_columns, down * between_rows, step], axis=1)
    affine[:3, 3] = places[0]
    return slices, (_LPS_TO_RAS @ affine).astype(np.float32).astype(float)


def _numbers(one: Slice, tag: str) -> np.ndarray:
    count = {"position": 3, "orientation": 6, "pixel_spacing": 2}[tag]
    try:
        values = np.array([float(text) for text in one.tags[tag].split("\\")])
        if len(values) != count or not np.isfinite(values).all():
            raise ValueError("not so many finite numbers")
    except ValueError as error:
        raise InputError(f"{one.path}: {tag.replace('_', ' ')} is {one.tags[tag]!r}. Export it again.") from error
    return values


def _header(path: Path) -> Slice:
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: a DICOM file without a readable image ({_last_line(error)}).") from error
    tags = {name: reader.GetMetaData(key).strip(" \0") for name, key in _TAGS.items() if reader.HasMetaDataKey(key)}
    return Slice(path, tags, tuple(reader.GetSize()), reader.GetNumberOfComponents())


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1024)
    except OSError:
        return b""


def _sop_class(path: Path) -> str:
    """What kind of object a file holds: tag (0002,0002), which is always explicit VR, little endian (PS3.10)."""
    head = _head(path)
    at = head.find(b"\x02\x00\x02\x00UI")
    return (
        head[at + 8 : at + 8 + int.from_bytes(head[at + 6 : at + 8], "little")].strip(b"\0 ").decode("ascii", "replace")
        if at >= 0
        else ""
    )


def _pixels(one: Slice) -> np.ndarray:
    """(H, W) in HU: GDCM applies slope and intercept."""
    import SimpleITK as sitk

    try:
        return sitk.GetArrayFromImage(_reader(one.path).Execute()).reshape(one.shape[1::-1])
    except RuntimeError as error:
        raise InputError(
            f"{one.path}: its pixels cannot be read ({_last_line(error)}): damaged, or a compression that GDCM does "
            "not know. Copy it again, or unpack it first (gdcmconv --raw)."
        ) from error


def _reader(path: Path):
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise MissingPackage(
            "DICOM needs SimpleITK, which is not installed. pip install 'kits-dist[dicom]', or convert the series to "
            "NIfTI (dcm2niix)"
        ) from error
    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
