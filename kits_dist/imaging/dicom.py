"""Read a DICOM series as the same `Volume` as a NIfTI file: HU and geometry, no patient data.

SimpleITK (extra `dicom`) reads the files, including the compressed transfer syntaxes that GDCM knows. ITK's series
reader stacks whatever it is given; here a series is refused when its slices are not one straight, even stack.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.imaging.nifti import Geometry, Volume, to_canonical
from kits_dist.utils.errors import InputError
from kits_dist.utils.packages import optional_package
from kits_dist.utils.text import utf8

# The only tags that are read: no name, id, date or free text.
_TAGS = {
    "modality": "0008|0060",
    "sop_class": "0008|0016",
    "image_type": "0008|0008",
    "series_uid": "0020|000e",
    "series_number": "0020|0011",
    "position": "0020|0032",
    "orientation": "0020|0037",
    "pixel_spacing": "0028|0030",
    "rescale": "0028|1052",
}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Slice(NamedTuple):
    """The header of one file."""

    path: Path
    tags: dict[str, str]  # those of _TAGS that the file has
    shape: tuple[int, ...]  # columns, rows, frames
    components: int  # 1 gray, 3 color


class Series(NamedTuple):
    """The slices of one CT series."""

    number: str  # as the scanner counts them; may be empty
    folder: Path  # the deepest folder that holds all files
    slices: list[Slice]
    fault: str = ""  # why it cannot be read, where the search for files already showed it


def read_series(series: Series) -> Volume:
    """Read (D, H, W) HU, int16 where the scanner wrote integers, else float32, and its geometry.

    Raises InputError naming the folder and what is wrong: not one straight stack of slices (missing, duplicate or
    uneven slices, tilted gantry), not in HU, several frames in a file, or a file that cannot be read.
    """
    if series.fault:
        raise InputError(series.fault)
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
                f"{_name(folder, slices[0])}, {values[k].tolist()} in {_name(folder, slices[k])}. Keep the files of "
                "one stack."
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
    name = [_name(folder, header) for header in slices]
    duplicate = steps < 0.01  # mm
    if duplicate.any():
        k = int(duplicate.argmax())
        raise InputError(
            f"{folder}: {duplicate.sum()} slices have the position of another ({name[k]} and {name[k + 1]}, for one) "
            "and other content: several phases or reconstructions, or two patients, in one series. Keep the files of "
            "one."
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


def _name(folder: Path, header: Slice) -> str:
    """Return the file of a slice as a person finds it in the folder of its series."""
    return str(header.path.relative_to(folder))


def read_header(path: Path) -> Slice:
    """Read the header of a DICOM file. Raises InputError where it holds no image, MissingPackage without SimpleITK."""
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(
            f"{path}: a DICOM file without a readable image ({_last_line(error)}): cut off or damaged, it has "
            f"{path.stat().st_size} bytes, or packed in a way that GDCM does not know."
        ) from error
    tags = {name: reader.GetMetaData(key).strip(" \0") for name, key in _TAGS.items() if reader.HasMetaDataKey(key)}
    return Slice(path, tags, tuple(reader.GetSize()), reader.GetNumberOfComponents())


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
    if utf8(str(path)) != str(path):  # SimpleITK would end the process
        raise InputError(f"{path}: this path is not UTF-8. Rename the file or its folder.")
    install = "pip install 'kits-dist[dicom]', or convert the series to NIfTI (dcm2niix)"
    with optional_package("SimpleITK", "DICOM needs SimpleITK", install):
        import SimpleITK as sitk
    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _last_line(error: Exception) -> str:
    """Return what GDCM says, without the address of its reader."""
    line = str(error).strip().splitlines()[-1].strip()
    return re.sub(r"^ITK ERROR: (\w+)\(0x[0-9a-f]+\)", r"\1", line)
