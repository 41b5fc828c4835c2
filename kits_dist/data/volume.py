"""NIfTI <-> arrays in one orientation: (D, H, W) = cranial to caudal, anterior to posterior, patient's right to left.

That is KiTS's own array order (axis codes I P L). Any other axis order or flip is turned into it on reading and
turned back on writing, so nothing after this file knows about affines.
"""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from kits_dist import files
from kits_dist.errors import InputError, MissingInput
from kits_dist.labels import LABELS

AXIS_CODES = "IPL"
_CANONICAL = axcodes2ornt(tuple(AXIS_CODES))


class Geometry(NamedTuple):
    """Where a file's voxels lie; enough to write a label map back onto the same grid."""

    shape: tuple[int, int, int]  # as stored
    affine: np.ndarray  # (4, 4) voxel index as stored -> mm, RAS+

    @property
    def axis_codes(self) -> str:
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(d, h, w) in our orientation."""
        stored = nib.affines.voxel_sizes(self.affine)
        axis_of = io_orientation(self.affine)[:, 0]
        return tuple(float(stored[list(axis_of).index(world)]) for world in (2, 1, 0))


class Volume(NamedTuple):
    array: np.ndarray  # (D, H, W)
    geometry: Geometry

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return self.geometry.spacing_mm

    def canonical_geometry(self) -> Geometry:
        """Geometry of `array` itself: (D, H, W) index -> mm."""
        turn = inv_ornt_aff(ornt_transform(io_orientation(self.geometry.affine), _CANONICAL), self.geometry.shape)
        return Geometry(self.array.shape, self.geometry.affine @ turn)


def read_image(path: Path) -> Volume:
    """CT in HU, (D, H, W) int16 where the file holds integers, else float32. Raises InputError naming `path`."""
    array, geometry = _read(path)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError(
                f"{path}: {np.count_nonzero(~np.isfinite(array))} voxels are NaN or infinite. Export the CT again."
            )
        array = array.astype(np.float32, copy=False)
        if -(2**15) <= array.min(initial=0) and array.max(initial=0) < 2**15 and np.array_equal(array, np.rint(array)):
            array = array.astype(np.int16)  # whole HU behind a slope and an intercept
    elif -(2**15) <= array.min(initial=0) and array.max(initial=0) < 2**15:
        array = array.astype(np.int16, copy=False)
    else:
        array = array.astype(np.float32)
    return Volume(_to_canonical(array, geometry), geometry)


def read_labels(path: Path) -> Volume:
    """Label map, (D, H, W) uint8 in 0..3. Raises InputError naming `path` and the labels that KiTS does not have."""
    array, geometry = _read(path)
    values = np.unique(array)
    wrong = [float(v) for v in values if v not in LABELS.values()]
    if wrong:
        raise InputError(f"{path}: label values {wrong[:5]} are not KiTS labels {LABELS}. Convert the file first.")
    return Volume(_to_canonical(array.astype(np.uint8), geometry), geometry)


def to_native(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(D, H, W) in our orientation -> the axis order and direction of the file."""
    stored = apply_orientation(array, ornt_transform(_CANONICAL, io_orientation(geometry.affine)))
    if stored.shape != tuple(geometry.shape):
        raise ValueError(f"to_native: {array.shape} does not fit a file of shape {tuple(geometry.shape)}.")
    return np.ascontiguousarray(stored)


def write_nifti(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """(D, H, W) -> .nii.gz on the grid of `geometry`, in one step. Nothing but voxels and geometry is written."""
    image = nib.Nifti1Image(to_native(array, geometry), geometry.affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(geometry.affine, code=1)
    image.set_sform(geometry.affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Level 1: labels shrink 200-fold at any level, CT noise at none. mtime=0: the same voxels are the same bytes.
    files.write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def kits_geometry(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Geometry:
    """Geometry of an array that is already (D, H, W), stored as KiTS stores it: axis codes I P L."""
    d, h, w = spacing_mm
    affine = np.array([[0, 0, -w, 0], [0, -h, 0, 0], [-d, 0, 0, 0], [0, 0, 0, 1]], float)
    return Geometry(tuple(shape), affine)


def same_grid(a: Geometry, b: Geometry) -> bool:
    """Shape equal and affine within 1e-3 (the tolerance of the challenge's evaluator)."""
    return tuple(a.shape) == tuple(b.shape) and bool(np.allclose(a.affine, b.affine, rtol=0, atol=1e-3))


def _read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Scaled voxels as stored, read to the last byte so that the gzip CRC is checked (nibabel alone skips it)."""
    raw = _bytes(path)
    try:
        kind = nib.Nifti2Image if raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
        image = kind.from_bytes(raw)
        header = image.header
        shape = header.get_data_shape()
        offset = int(header["vox_offset"])
        needed = offset + int(np.prod(shape, dtype=object)) * header.get_data_dtype().itemsize
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: not a NIfTI file ({error}).") from error
    if needed > len(raw):
        raise InputError(
            f"{path}: the header claims {'x'.join(map(str, shape))} voxels, {needed} bytes; the file has {len(raw)}."
        )
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise InputError(
            f"{path}: shape {shape}; a CT or label map has three axes. Split 4-D files into volumes first."
        )
    if header.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: voxels of type {header.get_data_dtype()}; use an integer or floating point type.")
    affine = np.asarray(image.affine, float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{path}: the affine is not invertible: {affine.tolist()}. Repair the header.")
    array = np.asanyarray(image.dataobj).reshape(shape[:3])
    if array.dtype == np.float64 and header.get_data_dtype().kind in "iu":
        array = array.astype(np.float32)  # nibabel scales in float64, which doubles the memory for nothing
    return array, Geometry(tuple(int(n) for n in shape[:3]), affine)


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise MissingInput(f"{path}: no such file.")
    content = path.read_bytes()
    if not content:
        raise InputError(f"{path}: the file is empty (0 bytes). Copy or download it again.")
    if content[:2] == b"\x1f\x8b":
        try:
            return gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(f"{path}: damaged or truncated ({error}). Copy or download it again.") from error
    if path.name.endswith(".gz"):
        raise InputError(f"{path}: named .gz but is not gzip. Rename it, or compress it again.")
    return content


def _to_canonical(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    return np.ascontiguousarray(apply_orientation(array, ornt_transform(io_orientation(geometry.affine), _CANONICAL)))
