"""Damaged NIfTI files are read to the same voxels and geometry, or refused in one sentence.

A .nii.gz carries a CRC, so no damage to its bytes may pass. A header changed before the CRC was taken, or in a .nii,
can be a valid header of another scan, and voxels changed there cannot be seen at all: what is promised is one
InputError, or a volume that is whole, sound and can be written back; no other exception, no wait, no allocation.
FUZZ_MUTANTS=5000 looks longer than the suite does.
"""

import gzip
import io
import os
import time
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest

from kits_dist.imaging.nifti import AXIS_CODES, kits_geometry, read_image, read_labels, to_stored_order, write_nifti
from kits_dist.utils.errors import InputError
from tests.unit.imaging.test_nifti import nifti_bytes

COUNT = int(os.environ.get("FUZZ_MUTANTS", "120")) // 2
SHAPE, SPACING = (4, 9, 11), (3.0, 0.7, 0.9)
HU = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
RAW = nifti_bytes(HU, kits_geometry(SHAPE, SPACING).affine)
EXTREMES = [0, 1, -1, 2, 3, 4, 7, 127, 255, 348, 352.5, 1e5, 2**31 - 1, -(2**31), 1e38, -1e-38, np.nan, np.inf, -np.inf]


def packed(raw: bytes) -> bytes:
    """With a name and a time, so that the gzip header has optional parts."""
    buffer = io.BytesIO()
    with gzip.GzipFile("case.nii", "wb", fileobj=buffer, mtime=1e9) as stream:
        stream.write(raw)
    return buffer.getvalue()


PACKED = packed(RAW)


def some(rng, content: bytes, longest: int = 64) -> slice:
    start = int(rng.integers(0, len(content)))
    return slice(start, start + int(rng.integers(1, longest)))


def flip(rng, content: bytes, among: range | None = None) -> bytes:
    changed = bytearray(content)
    for position in rng.choice(among or len(content), int(rng.integers(1, 5))):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def replace(content: bytes, part: slice, by: bytes) -> bytes:
    return content[: part.start] + by + content[part.stop :]


def zeros(rng, content: bytes) -> bytes:
    part = some(rng, content)
    return replace(content, part, bytes(len(content[part])))


def swap(rng, content: bytes) -> bytes:
    a, b = sorted(rng.choice(len(content) // 32, 2, replace=False) * 32)
    return content[:a] + content[b : b + 32] + content[a + 32 : b] + content[a : a + 32] + content[b + 32 :]


BYTES = {  # damage to any file's bytes
    "flip": flip,
    "cut": lambda rng, b: b[: int(rng.integers(0, len(b)))],
    "zeros": zeros,
    "remove": lambda rng, b: replace(b, some(rng, b), b""),
    "insert": lambda rng, b: replace(b, slice(n := int(rng.integers(len(b))), n), rng.bytes(9)),
    "swap": swap,
    "append garbage": lambda rng, b: b + rng.bytes(int(rng.integers(1, 99))),
    "append zeros": lambda rng, b: b + bytes(int(rng.integers(1, 9999))),
    "append a part": lambda rng, b: b + b[some(rng, b)],
    "twice": lambda rng, b: b + b,
}
STREAM = (
    BYTES
    | {  # and what only gzip has
        "flip the gzip header": lambda rng, b: flip(rng, b, range(20)),
        "flip the trailer": lambda rng, b: flip(rng, b, range(len(b) - 8, len(b))),
        "append a member": lambda rng, b: b + packed(rng.bytes(int(rng.integers(0, 40)))),
        "split into members": lambda rng, b: packed(RAW[: (n := int(rng.integers(len(RAW))))]) + packed(RAW[n:]),
    }
)


def changed_fields(rng) -> bytes:
    """One to three fields of the header, or of one of its arrays, set to an extreme, another's value, or noise."""
    header = nib.Nifti1Header(RAW[:348], endianness="<", check=False)._structarr.copy()
    for name in rng.choice(header.dtype.names, int(rng.integers(1, 4))):
        field = header[name].reshape(-1)
        if field.dtype.kind == "S":
            header[name] = rng.bytes(field.itemsize)
            continue
        at = int(rng.integers(field.size))
        value = rng.choice(EXTREMES) if rng.random() < 0.7 else field[int(rng.integers(field.size))] * rng.normal(0, 3)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # what does not fit the field's type wraps round, which is as good
            field[at] = np.float64(value).astype(field.dtype)
        header[name] = field.reshape(header[name].shape)
    return header.tobytes() + RAW[348:]


HEADER = {
    "fields": changed_fields,
    "flip": lambda rng: flip(rng, RAW, range(352)),
    "noise": lambda rng: replace(RAW, some(rng, RAW[:348]), rng.bytes(16)),
    "zeros": lambda rng: zeros(rng, RAW[:348]) + RAW[348:],
    "swap": lambda rng: swap(rng, RAW[:348]) + RAW[348:],
    "dims": lambda rng: nifti_bytes(
        HU, dim=rng.integers(-2, 8, 8) if rng.random() < 0.5 else rng.integers(0, 2**15, 8)
    ),
    "same count": lambda rng: nifti_bytes(HU, dim=[3, *rng.permutation([4, 9, 11]), 1, 1, 1, 1]),
    "other type": lambda rng: nifti_bytes(HU, datatype=rng.choice(list(nib.nifti1.data_type_codes.code.values()))),
    "other bytes": lambda rng: BYTES[rng.choice(list(BYTES))](rng, RAW),
    "two of it": lambda rng: nifti_bytes(HU, version=2, dim=rng.integers(-(2**62), 2**62, 8) * (rng.random(8) < 0.5)),
}


@pytest.fixture
def watched(tmp_path):
    """reader(content) -> what read(path) gives, or the InputError; fails when it took long or much memory."""
    tracemalloc.start()

    def reader(content: bytes, name: str, read=read_image):
        path = tmp_path / name
        path.write_bytes(content)
        tracemalloc.reset_peak()
        before, began = tracemalloc.get_traced_memory()[0], time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning is not one clear message either
            try:
                found = read(path)
            except InputError as error:
                found = error
        if isinstance(found, InputError):
            assert str(found).startswith(f"{path}: ") and "\n" not in str(found), found
        assert time.perf_counter() - began < 2
        # at most 1032 bytes from one of deflate, held as float64 between reading and float32
        assert tracemalloc.get_traced_memory()[1] - before < 2**20 + 16 * 1032 * len(content)
        return found

    yield reader
    tracemalloc.stop()


def test_no_damage_to_a_gzip_file_passes(watched):
    outcomes = set()
    for seed in range(COUNT):
        rng = np.random.default_rng([1, seed])
        kind = list(STREAM)[seed % len(STREAM)]
        found = watched(STREAM[kind](rng, PACKED), "a.nii.gz")
        if not isinstance(found, InputError):
            assert np.array_equal(found.array, HU) and found.array.dtype == np.int16, (kind, seed)
            assert np.array_equal(found.geometry.affine, kits_geometry(SHAPE, SPACING).affine.astype(np.float32))
        outcomes.add((kind, isinstance(found, InputError)))
    # both happen: a mutator that changes nothing, or a reader that refuses everything, would prove nothing
    assert {("flip", True), ("cut", True), ("append zeros", False), ("split into members", False)} <= outcomes


def test_another_header_is_refused_or_read_whole(watched, tmp_path):
    outcomes = []
    for seed in range(COUNT):
        rng = np.random.default_rng([2, seed])
        kind = list(HEADER)[seed % len(HEADER)]
        content = HEADER[kind](rng)
        for name, bytes_ in (("a.nii", content), ("a.nii.gz", packed(content))):
            labels = watched(bytes_, name, read_labels)
            assert isinstance(labels, InputError) or labels.array.max() <= 3
            found = watched(bytes_, name)
            outcomes.append(isinstance(found, InputError))
            if not outcomes[-1]:
                array, geometry = found.array, found.geometry
                assert array.dtype in (np.int16, np.float32) and np.isfinite(array).all(), (kind, seed)
                assert array.shape == found.canonical_geometry().shape
                assert found.canonical_geometry().axis_codes == AXIS_CODES
                assert all(0.01 <= mm <= 100 for mm in found.spacing_mm) and len(geometry.axis_codes) == 3
                assert to_stored_order(array, geometry).shape == geometry.shape
                write_nifti(tmp_path / "label.nii.gz", np.ones(array.shape, np.uint8), geometry)
                again = read_labels(tmp_path / "label.nii.gz")
                assert np.array_equal(again.geometry.affine, geometry.affine) and again.array.all()
    assert 0.05 < np.mean(outcomes) < 0.99
