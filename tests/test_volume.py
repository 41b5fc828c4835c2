import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from kits_dist.data.volume import kits_geometry, read_image, read_labels, same_grid, to_native, write_nifti
from kits_dist.errors import InputError, MissingInput

SHAPE, SPACING = (3, 5, 7), (4.0, 0.7, 0.9)
HU = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)


def save(path, array, affine, slope=None, big_endian=False):
    header = nib.Nifti1Header(endianness=">" if big_endian else "<")
    header.set_data_dtype(array.dtype)
    image = nib.Nifti1Image(array, affine, header)
    if slope:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return path


def test_all_48_axis_orders_and_flips_read_alike_and_go_back_bit_equal(tmp_path):
    geometry = kits_geometry(SHAPE, SPACING)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turn = np.array(list(zip(order, flips, strict=True)), float)
            stored = apply_orientation(HU, turn)
            affine = geometry.affine @ inv_ornt_aff(turn, SHAPE)
            volume = read_image(save(tmp_path / "a.nii.gz", stored, affine))
            assert np.array_equal(volume.array, HU)
            assert np.allclose(volume.spacing_mm, SPACING)
            assert same_grid(volume.canonical_geometry(), geometry)
            assert np.array_equal(to_native(volume.array, volume.geometry), stored)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64", "uint16", "int32"])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_types_byte_orders_and_compression(tmp_path, dtype, big_endian, name):
    array = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 250).astype(
        np.dtype(dtype).newbyteorder(">" if big_endian else "<")
    )
    volume = read_image(save(tmp_path / name, array, kits_geometry(SHAPE, SPACING).affine, big_endian=big_endian))
    assert np.array_equal(volume.array, array)


def test_slope_and_intercept_are_applied(tmp_path):
    save(tmp_path / "a.nii.gz", HU, kits_geometry(SHAPE, SPACING).affine)
    scaled = with_header((tmp_path / "a.nii.gz").read_bytes(), 112, np.array([0.5, -10], "<f4").tobytes())
    (tmp_path / "a.nii.gz").write_bytes(scaled)
    volume = read_image(tmp_path / "a.nii.gz")
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, HU * 0.5 - 10)


def test_what_is_written_is_read_back_and_holds_only_voxels_and_geometry(tmp_path):
    geometry = kits_geometry(SHAPE, SPACING)
    label = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    write_nifti(tmp_path / "a.nii.gz", label, geometry)
    assert np.array_equal(read_labels(tmp_path / "a.nii.gz").array, label)
    opened = nib.load(tmp_path / "a.nii.gz")
    assert nib.aff2axcodes(opened.affine) == ("I", "P", "L")
    assert all(
        not bytes(opened.header[field]).strip(b"\0") for field in ("descrip", "aux_file", "intent_name", "db_name")
    )
    first = (tmp_path / "a.nii.gz").read_bytes()
    write_nifti(tmp_path / "a.nii.gz", label, geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == first


def good_bytes(tmp_path):
    write_nifti(tmp_path / "good.nii.gz", HU, kits_geometry(SHAPE, SPACING))
    return (tmp_path / "good.nii.gz").read_bytes()


def with_header(content: bytes, offset: int, value: bytes) -> bytes:
    raw = bytearray(gzip.decompress(content))
    raw[offset : offset + len(value)] = value
    return gzip.compress(bytes(raw))


DAMAGE = {
    "empty": (lambda b: b"", "the file is empty"),
    "truncated": (lambda b: b[: len(b) // 2], "damaged or truncated"),
    "flipped bit": (lambda b: b[:60] + bytes([b[60] ^ 4]) + b[61:], "damaged or truncated"),
    "text": (lambda b: b"hello", "is not gzip"),
    "gzipped text": (lambda b: gzip.compress(b"hello" * 200), "not a NIfTI file"),
    "huge header": (lambda b: with_header(b, 42, np.array([32000] * 3, "<i2").tobytes()), "the header claims"),
    "4-D": (lambda b: with_header(b, 40, np.array([4, 3, 5, 1, 7], "<i2").tobytes()), "three axes"),
    "flat affine": (lambda b: with_header(b, 280, np.zeros(12, "<f4").tobytes()), "affine is not invertible"),
    "complex": (lambda b: with_header(b, 70, np.array([32, 64], "<i2").tobytes()), "the header claims"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_file_is_refused_by_name(tmp_path, kind):
    change, words = DAMAGE[kind]
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(change(good_bytes(tmp_path)))
    with pytest.raises(InputError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_no_flipped_bit_passes(tmp_path):
    content = good_bytes(tmp_path)
    path = tmp_path / "bad.nii.gz"
    for position in np.random.default_rng(0).integers(10, len(content), 40):
        path.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        try:
            assert np.array_equal(read_image(path).array, HU)
        except InputError as error:
            assert str(path) in str(error)


def test_missing_not_finite_and_foreign_labels(tmp_path):
    affine = kits_geometry(SHAPE, SPACING).affine
    with pytest.raises(MissingInput, match="no such file"):
        read_image(tmp_path / "nowhere.nii.gz")
    broken = HU.astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="1 voxels are NaN"):
        read_image(save(tmp_path / "nan.nii.gz", broken, affine))
    with pytest.raises(InputError, match=r"label values \[7.0\]"):
        read_labels(save(tmp_path / "seven.nii.gz", np.full(SHAPE, 7, np.uint8), affine))


def test_to_native_refuses_another_shape():
    with pytest.raises(ValueError, match="does not fit"):
        to_native(np.zeros((3, 5, 8)), kits_geometry(SHAPE, SPACING))
