"""Read a DICOM series as the same `Volume` as a NIfTI file: HU and geometry, no patient data.

SimpleITK (extra `dicom`) reads the files, including the compressed transfer syntaxes that GDCM knows. ITK's series
reader stacks whatever it is given; here a series is refused when its slices are not one straight, even stack.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.imaging.nifti import Geometry, Volume, to_canonical
from kits_dist.utils.errors import InputError, MissingPackage
from kits_dist.utils.packages import optional_package

# The only tags that are read: no name, id, date or free text.
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
# CT, enhanced CT and legacy converted enhanced CT (PS3.4 B.5); "": the file is too damaged to name a class
_CT_CLASSES = {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2", ""}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Slice(NamedTuple):
    """The header of one file."""

    path: Path
    tags: dict[str, str]  # those of _TAGS that the file has
    shape: tuple[int, ...]  # columns, rows, frames
    components: int  # 1 gray, 3 color


class Series(NamedTuple):
    """The files of one series."""

    number: str  # as the scanner counts them; may be empty
    folder: Path  # the deepest folder that holds all files
    slices: list[Slice]
    skip: str = ""  # why it is not predicted: not a CT, a localizer
    fault: str = ""  # why it cannot be read, where the headers already show it


def is_dicom(path: Path) -> bool:
    """Return whether DICM follows the preamble (PS3.10)."""
    return _head(path)[128:132] == b"DICM"


def files_below(folder: Path) -> list[Path]:
    """Return every DICOM file at any depth below `folder`, without hidden files and directory files (DICOMDIR)."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = [name for name in sorted(names) if not name.startswith(".") and name.upper() != "DICOMDIR"]
        paths = [Path(root, name) for name in visible if ".nii" not in name]
        found += [path for path in paths if is_dicom(path)]
    return found


def series_of(paths: Iterable[Path]) -> list[Series]:
    """Group files from any folders by series, at half a millisecond per file; no pixels are read.

    A CT slice that cannot be read is a fault of the series in its folder: a slice missing at an end would otherwise go
    unnoticed. Files without an image (a structure set, a report) are left out. Raises MissingPackage without SimpleITK.
    """
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    damaged: dict[Path, str] = {}  # {folder: message}
    for path in paths:
        try:
            header = _header(path)
        except MissingPackage:
            raise
        except InputError as error:
            if _sop_class(path) in _CT_CLASSES:
                damaged.setdefault(path.parent, str(error))
            continue
        by_uid[header.tags.get("series_uid", "")].append(header)
    found = []
    for slices in by_uid.values():
        folders = {header.path.parent for header in slices}
        fault = next((message for folder, message in damaged.items() if folder in folders), "")
        tags = slices[0].tags
        folder = Path(os.path.commonpath(folders))
        found.append(Series(tags.get("series_number", ""), folder, slices, _skip(tags), fault))

    readable = {header.path.parent for series in found for header in series.slices}
    return [*found, *(Series("", folder, [], "", why) for folder, why in damaged.items() if folder not in readable)]


def _skip(tags: dict[str, str]) -> str:
    modality = tags.get("modality", "")
    if modality != "CT":
        return f"its modality is {modality or 'not given'}, not CT"
    return "it is a localizer" if "LOCALIZER" in tags.get("image_type", "").upper().split("\\") else ""


def read_series(series: Series) -> Volume:
    """Read (D, H, W) HU, int16 where the scanner wrote integers, else float32, and its geometry.

    Raises InputError naming the folder and what is wrong: not one straight stack of slices (missing, duplicate or
    uneven slices, tilted gantry), not in HU, several frames in a file, or a file that cannot be read.
    """
    if series.fault or series.skip:
        raise InputError(series.fault or f"{series.folder}: {series.skip}. Name the folder of a CT series.")
    folder, slices = series.folder, series.slices
    _check_alike(folder, slices)
    slices, affine = _stacked(folder, slices)
    columns, rows = slices[0].shape[:2]
    array = np.empty((len(slices), rows, columns), np.int16)
    for k, header in enumerate(slices):
        hu = _pixels(header)
        is_int16 = np.array_equal(hu, np.rint(hu)) and abs(hu).max() < 2**15
        if array.dtype.kind == "i" and not is_int16:  # keep what was read so far
            array = array.astype(np.float32)
        array[k] = hu
    geometry = Geometry((columns, rows, len(slices)), affine)
    return Volume(to_canonical(array.transpose(2, 1, 0), geometry), geometry)


def _check_alike(folder: Path, slices: list[Slice]) -> None:
    for header in slices:
        if header.components != 1:
            raise InputError(f"{header.path}: a color image; a CT is gray. Name the folder of the CT series.")
        if len(header.shape) > 2 and header.shape[2] > 1:
            raise InputError(
                f"{header.path}: {header.shape[2]} frames in one file; expected one slice per file. Convert it first "
                "(dcm2niix)."
            )
        for tag, problem in (
            ("position", "no position (0020,0032)"),
            ("orientation", "no orientation (0020,0037)"),
            ("pixel_spacing", "no pixel spacing (0028,0030)"),
            ("rescale", "no RescaleIntercept (0028,1052), so its values are not known to be HU"),
        ):
            if tag not in header.tags:
                raise InputError(f"{header.path}: {problem}. Export the original CT series again.")
    for tag in ("orientation", "pixel_spacing"):
        values = np.array([_numbers(header, tag) for header in slices])
        apart = np.abs(values - values[0]).max(axis=1)
        if apart.max() > 1e-3:
            k = int(apart.argmax())
            raise InputError(
                f"{folder}: slices of one series differ in {tag.replace('_', ' ')}: {values[0].tolist()} in "
                f"{slices[0].path.name}, {values[k].tolist()} in {slices[k].path.name}. Keep the files of one stack."
            )
    sizes = {header.shape[:2] for header in slices}
    if len(sizes) > 1:
        raise InputError(f"{folder}: slices of one series have {sorted(sizes)} pixels. Keep the files of one stack.")


def _stacked(folder: Path, slices: list[Slice]) -> tuple[list[Slice], np.ndarray]:
    """Sort the slices by position, and return the (4, 4) affine of (column, row, slice) -> mm, RAS+, with them."""
    if len(slices) < 2:
        raise InputError(f"{folder}: the series is a single slice, not a volume. Name a folder with the whole series.")
    across, down = _numbers(slices[0], "orientation").reshape(2, 3)
    normal = np.cross(across, down)
    positions = np.array([_numbers(header, "position") for header in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices = [slices[k] for k in order]
    positions = positions[order]

    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    name = [header.path.name for header in slices]
    duplicate = steps < 0.01  # mm
    if duplicate.any():
        k = int(duplicate.argmax())
        raise InputError(
            f"{folder}: {duplicate.sum()} slices have the position of another ({name[k]} and {name[k + 1]}, "
            "for one): several phases or reconstructions in one series. Keep the files of one."
        )
    uneven = np.abs(steps - usual) > 0.1 * usual
    if uneven.any():
        k = int(uneven.argmax())
        raise InputError(
            f"{folder}: slices are missing or unevenly spaced: {steps[k]:.4g} mm from {name[k]} to {name[k + 1]}, "
            f"the usual step is {usual:.4g} mm. Export the series again: all slices, one spacing."
        )

    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    tilt = float(np.degrees(np.arccos(min(1.0, step @ normal / np.linalg.norm(step)))))
    if tilt > 0.6:  # as for a NIfTI file's axes
        raise InputError(
            f"{folder}: tilted gantry: the slices are stacked {tilt:.1f} degrees off their normal. Straighten it first "
            "(dcm2niix does)."
        )
    between_rows, between_columns = _numbers(slices[0], "pixel_spacing")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([across * between_columns, down * between_rows, step], axis=1)
    affine[:3, 3] = positions[0]
    return slices, (_LPS_TO_RAS @ affine).astype(np.float32).astype(float)


def _numbers(header: Slice, tag: str) -> np.ndarray:
    count = {"position": 3, "orientation": 6, "pixel_spacing": 2}[tag]
    try:
        values = np.array([float(text) for text in header.tags[tag].split("\\")])
        if len(values) != count or not np.isfinite(values).all():
            raise ValueError(f"expected {count} finite numbers")
    except ValueError as error:
        raise InputError(f"{header.path}: {tag.replace('_', ' ')} is {header.tags[tag]!r}. Export it again.") from error
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
    """Return the SOP class: tag (0002,0002), which is always explicit VR, little endian (PS3.10); "" without it."""
    head = _head(path)
    at = head.find(b"\x02\x00\x02\x00UI")
    if at < 0:
        return ""
    size = int.from_bytes(head[at + 6 : at + 8], "little")
    return head[at + 8 : at + 8 + size].strip(b"\0 ").decode("ascii", "replace")


def _pixels(header: Slice) -> np.ndarray:
    """Read (H, W) HU: GDCM applies slope and intercept."""
    import SimpleITK as sitk

    try:
        return sitk.GetArrayFromImage(_reader(header.path).Execute()).reshape(header.shape[1::-1])
    except RuntimeError as error:
        raise InputError(
            f"{header.path}: its pixels cannot be read ({_last_line(error)}): damaged, or a compression that GDCM does "
            "not know. Copy it again, or unpack it first (gdcmconv --raw)."
        ) from error


def _reader(path: Path):
    install = "pip install 'kits-dist[dicom]', or convert the series to NIfTI (dcm2niix)"
    with optional_package("SimpleITK", "DICOM needs SimpleITK", install):
        import SimpleITK as sitk
    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
