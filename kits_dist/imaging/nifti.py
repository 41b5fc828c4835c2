"""NIfTI <-> arrays in one orientation: (D, H, W) = cranial to caudal, anterior to posterior, patient's right to left.

That is KiTS's array order (axis codes I P L). Reading converts any other axis order or flip to it and writing converts
back, so no other module needs affines. A header that does not define left and right, or contradicts itself, is refused,
because programs differ in what they assume (see `_affine`).
"""

import gzip
import io
import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from kits_dist.labels import LABELS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput

AXIS_CODES = "IPL"
_CANONICAL = axcodes2ornt(tuple(AXIS_CODES))
_AGAIN = "Copy or download it again."
# A file begins with the size of its header, which identifies the version and the byte order.
_HEADERS = {
    size.to_bytes(4, order): (kind, order)
    for size, kind in ((348, nib.Nifti1Header), (540, nib.Nifti2Header))
    for order in ("little", "big")
}
_MAX_INFLATION = 1032  # bytes per byte of deflate: a match of 258 bytes takes at least 2 bits (RFC 1951)


class Geometry(NamedTuple):
    """The grid of a file: enough to write a label map back onto it."""

    shape: tuple[int, int, int]  # as stored
    affine: np.ndarray  # (4, 4) voxel index as stored -> mm, RAS+; read as float32, which NIfTI-1 gives back bit-equal

    @property
    def axis_codes(self) -> str:
        """Return the anatomical directions in which the stored axes grow, e.g. "IPL"."""
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return (d, h, w) in our orientation."""
        stored = voxel_sizes(self.affine)
        axis_of = list(
            io_orientation(self.affine)[:, 0]
        )  # of each stored axis: 0 left-right, 1 back-front, 2 feet-head
        d, h, w = (float(stored[axis_of.index(axis)]) for axis in (2, 1, 0))
        return d, h, w


class Volume(NamedTuple):
    """An array in our orientation and the grid of the file it came from."""

    array: np.ndarray  # (D, H, W)
    geometry: Geometry

    @classmethod
    def of(cls, array: np.ndarray, affine: np.ndarray) -> "Volume":
        """Return an array in any axis order, as nibabel's `get_fdata` gives it, in our orientation.

        array    (X, Y, Z) as stored
        affine   (4, 4) voxel index -> mm, RAS+

        Raises InputError for another number of axes.
        """
        if array.ndim != 3:
            raise InputError(f"Volume.of takes an array of 3 axes, not of shape {array.shape}.")
        geometry = Geometry(array.shape, np.asarray(affine, float))
        return cls(to_canonical(array, geometry), geometry)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return (d, h, w)."""
        return self.geometry.spacing_mm

    def check(self) -> None:
        """Raise InputError where the array is not (D, H, W) of the geometry, as one that was never reoriented."""
        turn = ornt_transform(io_orientation(self.geometry.affine), _CANONICAL)
        expected = tuple(self.geometry.shape[axis] for axis in np.argsort(turn[:, 0]))
        if self.array.shape != expected:
            raise InputError(
                f"an array of {_format_shape(self.array.shape)} in a geometry whose (D, H, W) is "
                f"{_format_shape(expected)}. Make it with Volume.of(array, affine), which reorients it."
            )

    def canonical_geometry(self) -> Geometry:
        """Return the geometry of `array` itself: (D, H, W) index -> mm."""
        turn = inv_ornt_aff(ornt_transform(io_orientation(self.geometry.affine), _CANONICAL), self.geometry.shape)
        return Geometry(self.array.shape, self.geometry.affine @ turn)


def read_image(path: Path) -> Volume:
    """Read a CT in HU, (D, H, W) int16 where the file holds integers, else float32. Raises InputError naming `path`."""
    array, geometry = _read(path)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32: counted as infinite below
            array = array.astype(np.float32, copy=False)
        wrong = np.count_nonzero(~np.isfinite(array))
        if wrong:
            raise InputError(f"{path}: {wrong} voxels are NaN or infinite. Export the CT again.")
        whole = np.array_equal(array, np.rint(array))  # whole HU behind a slope and an intercept
    else:
        whole = True
    fits = array.min() >= -(2**15) and array.max() < 2**15
    array = array.astype(np.int16 if whole and fits else np.float32, copy=False)
    return Volume(to_canonical(array, geometry), geometry)


def read_labels(path: Path) -> Volume:
    """Read a label map, (D, H, W) uint8 in 0..3. Raises InputError naming `path` and labels that KiTS does not have."""
    volume = read_labels_view(path)
    return Volume(np.array(volume.array, order="C"), volume.geometry)


def read_labels_view(path: Path) -> Volume:
    """Read a label map without a copy where the file is uint8: the array is read-only, in the file's memory order."""
    array, geometry = _read(path)
    with np.errstate(invalid="ignore"):  # NaN is no uint8: refused below
        labels = array.astype(np.uint8, copy=False)
    if labels.max() > max(LABELS.values()) or (labels is not array and not np.array_equal(labels, array)):
        wrong = [float(v) for v in np.unique(array) if v not in LABELS.values()]
        raise InputError(f"{path}: label values {wrong[:5]} are not KiTS labels {LABELS}. Convert the file first.")
    return Volume(_turned(labels, geometry), geometry)


def to_stored_order(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Convert (D, H, W) in our orientation to the axis order and direction of the file."""
    stored = apply_orientation(array, ornt_transform(_CANONICAL, io_orientation(geometry.affine)))
    if stored.shape != tuple(geometry.shape):
        raise ValueError(f"to_stored_order: {array.shape} does not fit a file of shape {tuple(geometry.shape)}.")
    return np.ascontiguousarray(stored)


def write_nifti(path: Path, array: np.ndarray, geometry: Geometry, slope: float = 1.0) -> None:
    """Write (D, H, W) as .nii.gz on the grid of `geometry`, atomically, with nothing but voxels and geometry.

    slope   what a reader multiplies the stored values by (scl_slope)
    """
    native = to_stored_order(array, geometry)
    header = nib.Nifti1Header()
    header.set_data_shape(native.shape)
    header.set_data_dtype(native.dtype)
    header.set_xyzt_units("mm")
    header.set_qform(geometry.affine, code=1)
    header.set_sform(geometry.affine, code=1)
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, slope, 0
    packed = io.BytesIO()
    # Level 1: labels shrink 200-fold at any level, CT noise at none. mtime=0: the same voxels are the same bytes.
    with gzip.GzipFile("", "wb", compresslevel=1, fileobj=packed, mtime=0) as stream:
        stream.write(header.binaryblock + bytes(4))
        for k in range(native.shape[2]):  # the first axis runs fastest; one plane at a time saves memory
            stream.write(native[:, :, k].tobytes(order="F"))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, packed.getvalue())


def kits_geometry(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Geometry:
    """Return the geometry of an array that is already (D, H, W), as KiTS stores it: axis codes I P L."""
    d, h, w = spacing_mm
    affine = np.array([[0, 0, -w, 0], [0, -h, 0, 0], [-d, 0, 0, 0], [0, 0, 0, 1]], float)
    return Geometry((shape[0], shape[1], shape[2]), affine)


def same_grid(a: Geometry, b: Geometry) -> bool:
    """Return whether shapes are equal and affines agree within 1e-3 (the tolerance of the challenge's evaluator)."""
    return tuple(a.shape) == tuple(b.shape) and bool(np.allclose(a.affine, b.affine, rtol=0, atol=1e-3))


def is_nifti(path: Path) -> bool:
    """Return whether a file is named .nii or .nii.gz and not hidden."""
    return path.name.lower().endswith((".nii", ".nii.gz")) and not path.name.startswith(".")


def nifti_files(folder: Path) -> list[Path]:
    """Return the NIfTI files directly in `folder`, sorted by name."""
    return sorted(path for path in folder.iterdir() if is_nifti(path))


def by_name(paths: Iterable[Path], name_of: Callable[[Path], str]) -> dict[str, Path]:
    """Return {name: file} in the order of the files. Raises InputError where two files have one name."""
    found: dict[str, Path] = {}
    for path in paths:
        name = name_of(path)
        if name in found:
            raise InputError(f"both {found[name]} and {path} are {name}. Keep one of them.")
        found[name] = path
    return found


def stem(path: Path) -> str:
    """Return NAME of NAME.nii.gz or NAME.nii."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read scaled voxels as stored, of any type and byte order, and their grid. Raises InputError naming `path`.

    The header is checked against the file's size before anything is allocated, and the file must end where the voxels
    do: only then has a gzip stream been read to its CRC, which nibabel alone does not verify.
    """
    with _opened(path) as (stream, max_bytes):
        header = _header(path, stream.read(540))
        shape, dtype, offset = _layout(path, header)
        needed = offset + math.prod(shape) * dtype.itemsize
        claim = f"{path}: the header claims {_format_shape(shape)} voxels of {dtype.name}, {needed} bytes"
        if needed > max_bytes:
            raise InputError(f"{claim}; the file holds at most {max_bytes}. {_AGAIN}")
        stream.seek(offset)
        content = stream.read(needed - offset)
        if len(content) < needed - offset:
            raise InputError(f"{claim}; the file ends after {stream.tell()}. {_AGAIN}")
        if stream.read(1):
            raise InputError(f"{claim}; the file continues after them. {_AGAIN}")
    geometry = Geometry(shape, _affine(path, header, shape))
    return _scaled(path, np.frombuffer(content, dtype).reshape(shape, order="F"), header), geometry


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes] | gzip.GzipFile, int]]:
    """Yield the file's bytes, unpacked where it is gzip, and how many there can be; damage becomes InputError."""
    try:
        if not path.exists():
            raise MissingInput(f"{path}: no such file.")
        if not path.is_file():  # opening a pipe would wait for a writer
            raise InputError(f"{path}: not a file. Name a .nii or .nii.gz.")
        size = path.stat().st_size
        if not size:
            raise InputError(f"{path}: the file is empty (0 bytes). {_AGAIN}")
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                yield gzip.GzipFile(fileobj=file), size * _MAX_INFLATION
            else:
                yield file, size
    except InputError:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged or truncated ({error}). {_AGAIN}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error


def _header(path: Path, block: bytes) -> nib.Nifti1Header | nib.Nifti2Header:
    """Return the header unchanged: nibabel's check would silently repair some faults."""
    kind, order = _HEADERS.get(block[:4], (None, ""))
    if kind is None or len(block) < kind.sizeof_hdr:
        raise InputError(f"{path}: not a NIfTI file, it begins with {block[:12]!r}. {_AGAIN}")
    header = kind(block[: kind.sizeof_hdr], endianness=order, check=False)
    if header["magic"].item() != kind.single_magic:
        raise InputError(f"{path}: not a NIfTI file in one piece (magic {header['magic'].item()!r}). Convert it first.")
    return header


def _layout(path: Path, header: nib.Nifti1Header) -> tuple[tuple[int, int, int], np.dtype, int]:
    """Return the three axes, the voxel type in the file's byte order, and the byte at which the voxels begin."""
    axes, *sizes = (int(n) for n in header["dim"])
    shape = sizes[: max(axes, 0)]
    if not 3 <= axes <= 7 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        raise InputError(
            f"{path}: {axes} axes, {_format_shape(shape)}; a CT or label map has three axes. Split 4-D files into "
            "volumes first."
        )
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        dtype = np.dtype("V")
    if dtype.kind not in "iuf":
        raise InputError(
            f"{path}: voxels of type {dtype.name} (code {header['datatype']}); use an integer or floating point type."
        )
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr + 4 <= offset < 2**63:
        raise InputError(f"{path}: the header says that voxels begin at byte {offset:.0f}. {_AGAIN}")
    return (shape[0], shape[1], shape[2]), dtype, int(offset)


def _affine(path: Path, header: nib.Nifti1Header, shape: tuple[int, int, int]) -> np.ndarray:
    """Return (4, 4) voxel index -> mm, RAS+. Raises InputError where programs would disagree about the grid.

    A header can hold two affines, sform and qform, and voxel sizes, pixdim. Where the affines differ nibabel takes the
    sform, and ITK the qform unless the sform's code is 1 (itkNiftiImageIO.cxx); where an affine's columns are not as
    long as pixdim, nibabel believes the affine and ITK pixdim. An oblique affine is mapped
    to its closest axes; a sheared one has no spacing.
    """
    with np.errstate(all="ignore"):  # non-finite values are refused below
        forms = _forms(path, header)
        affine = next(iter(forms.values()))
        spacing = voxel_sizes(affine)
        pixdim = header["pixdim"][1:4].astype(float)
        turn = affine[:3, :3] / spacing
        skew = np.abs(turn.T @ turn - np.eye(3)).max()
        corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape))]).T
        apart_mm = max(np.linalg.norm((form - affine) @ corners, axis=0).max() for form in forms.values())

    values = "; ".join(f"{name} {np.round(form, 4).tolist()}" for name, form in forms.items())
    if not np.isfinite(affine).all() or not ((spacing >= 0.01) & (spacing <= 100)).all():
        raise InputError(f"{path}: voxels of {_format_mm(spacing)} are not a CT's: {values}. Repair the header.")
    if not np.allclose(pixdim, spacing, rtol=0.01, atol=0):  # some programs write two digits
        raise InputError(
            f"{path}: pixdim says voxels of {_format_mm(pixdim)}, the affine {_format_mm(spacing)}. Repair the header."
        )
    # 0.6 degrees: up to there the product of the spacing is the voxel's volume within 0.02 %.
    if skew > 0.01:
        raise InputError(f"{path}: the axes are not at right angles: {values}. Resample it onto a straight grid first.")
    # Float32 quaternions alone can be off by 0.3 mm over 500 mm.
    if not apart_mm <= spacing.min():
        raise InputError(
            f"{path}: qform and sform lie up to {apart_mm:.1f} mm apart: {values}. Keep the one that is right."
        )
    return affine


def _forms(path: Path, header: nib.Nifti1Header) -> dict[str, np.ndarray]:
    """Return the affines with a nonzero code, the sform first.

    Without one "no particular spatial orientation is attached" (nifti1.h, method 1): nibabel then assumes L A S, ITK
    L P S, the standard's own library R A S.
    """
    forms = {}
    if int(header["sform_code"]) > 0:
        forms["sform"] = header.get_sform()
    if int(header["qform_code"]) > 0:
        header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1  # 0 means 1 (nifti1.h)
        try:
            forms["qform"] = header.get_qform()
        except (ValueError, HeaderDataError) as error:
            raise InputError(f"{path}: the header's qform is damaged ({error}). Repair the header.") from error
    if not forms:
        raise InputError(
            f"{path}: no orientation (qform_code and sform_code are 0), so left and right would be a guess. Write it "
            "again with the affine of its CT, in nibabel: save(Nifti1Image(array, affine), path)"
        )
    return {name: form.astype(np.float32).astype(float) for name, form in forms.items()}


def _scaled(path: Path, array: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    """Apply scl_slope and scl_inter; a slope of 0 (the standard) or NaN (nibabel) means that there is none."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope) or (slope, inter) == (1, 0):
        return array
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise InputError(f"{path}: scl_slope is {slope} and scl_inter {inter}. Repair the header.")
    with np.errstate(over="ignore", invalid="ignore"):  # read_image and read_labels refuse non-finite values
        return (array * np.float64(slope) + inter).astype(np.float32)


def to_canonical(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Convert an array as stored to (D, H, W); always a copy, because the file's bytes are read-only."""
    return np.array(_turned(array, geometry), order="C")


def _turned(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return an array as stored as a (D, H, W) view."""
    return apply_orientation(array, ornt_transform(io_orientation(geometry.affine), _CANONICAL))


def _format_shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _format_mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{n:.4g}" for n in spacing) + " mm"
