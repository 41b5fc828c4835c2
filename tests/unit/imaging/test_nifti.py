import builtins
import gzip
import itertools
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from kits_dist.imaging import nifti
from kits_dist.imaging.nifti import (
    Geometry,
    Volume,
    kits_geometry,
    read_image,
    read_labels,
    same_grid,
    to_stored_order,
    write_nifti,
)
from kits_dist.utils.errors import InputError, MissingInput

SHAPE, SPACING = (3, 5, 7), (4.0, 0.7, 0.9)
HU = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
ORDERS = [  # all 48 axis orders and flips, as nibabel's (axis, direction) rows
    np.array(list(zip(order, flips, strict=True)), float)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def nifti_bytes(array=HU, affine=None, version=1, order="<", **fields) -> bytes:
    """An uncompressed .nii, byte by byte; `fields` replace what the header would rightly say."""
    affine = kits_geometry(array.shape, SPACING).affine if affine is None else affine
    kind = {1: nib.Nifti1Header, 2: nib.Nifti2Header}[version]
    header = kind(endianness=order)
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header["vox_offset"], header["magic"] = header.sizeof_hdr + 4, kind.single_magic
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")


def turned(array, affine, order):
    """The same voxels at the same places, stored in another axis order and direction."""
    return apply_orientation(array, order), affine @ inv_ornt_aff(order, array.shape)


def save(path, array, affine):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def oblique(affine, degrees=(9, -14, 21)):
    """`affine` turned about all three axes: no voxel axis lies along the patient's any more."""
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, k = [n for n in range(3) if n != axis]
        turn = np.eye(4)
        turn[[i, i, k, k], [i, k, i, k]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        affine = turn @ affine
    return affine


@pytest.mark.parametrize("tilt", ["straight", "oblique"])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 9, 4), (1, 512, 796)])
def test_all_48_axis_orders_and_flips_read_alike_and_go_back_bit_equal(tmp_path, shape, tilt):
    geometry = kits_geometry(shape, SPACING)
    geometry = geometry._replace(
        affine=oblique(geometry.affine).astype(np.float32) if tilt == "oblique" else geometry.affine
    )
    hu = np.random.default_rng(1).integers(-1000, 1500, shape).astype(np.int16)
    for order in ORDERS:
        stored, affine = turned(hu, geometry.affine, order)
        found = read_image(save(tmp_path / "a.nii", stored, affine))
        assert np.array_equal(found.array, hu) and found.array.flags.c_contiguous and found.array.flags.writeable
        assert np.allclose(found.spacing_mm, SPACING)
        assert same_grid(found.canonical_geometry(), geometry)
        assert np.array_equal(to_stored_order(found.array, found.geometry), stored)
        from_python = Volume.of(stored, affine)
        assert np.array_equal(from_python.array, hu) and same_grid(from_python.geometry, found.geometry)
        found.check()


@pytest.mark.parametrize("forms", [{"qform_code": 0}, {"sform_code": 0}, {}], ids=["sform", "qform", "both"])
@pytest.mark.parametrize("version", [1, 2])
def test_what_is_written_lies_bit_equal_where_its_ct_lies(tmp_path, forms, version):
    affine = oblique(kits_geometry(SHAPE, SPACING).affine)
    affine[:3, 3] = -211.3, 0.1, 1e3 / 3
    for order in ORDERS:
        (tmp_path / "ct.nii").write_bytes(nifti_bytes(*turned(HU, affine, order), version, **forms))
        ct = read_image(tmp_path / "ct.nii")
        write_nifti(tmp_path / "label.nii.gz", np.ones(SHAPE, np.uint8), ct.geometry)
        label = read_labels(tmp_path / "label.nii.gz")
        assert np.array_equal(label.geometry.affine, ct.geometry.affine) and label.geometry.shape == ct.geometry.shape
        if version == 1 and forms != {"sform_code": 0}:  # a quaternion is float64 arithmetic, rounded once to float32
            opened = [nib.load(tmp_path / name).affine for name in ("label.nii.gz", "ct.nii")]
            assert np.array_equal(*opened)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64", "uint16", "int32"])
@pytest.mark.parametrize("scaling", [(np.nan, np.nan), (0, 7), (1, 0), (2, -10), (0.5, -10)])
def test_the_same_values_are_read_from_every_type_scaling_byte_order_version_and_name(tmp_path, dtype, scaling):
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 50 * 2
    slope, inter = scaling if scaling[0] not in (0, 1) and not np.isnan(scaling[0]) else (1, 0)  # 0 and NaN: not scaled
    stored = ((values - inter) / slope).astype(dtype)
    for order, version, name in itertools.product("<>", (1, 2), ("a.nii", "a.nii.gz")):
        content = nifti_bytes(stored, version=version, order=order, scl_slope=scaling[0], scl_inter=scaling[1])
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        found = read_image(tmp_path / name)
        assert found.array.dtype == np.int16 and np.array_equal(found.array, values)
        assert np.allclose(found.spacing_mm, SPACING)


def test_a_fraction_of_a_hu_stays(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti_bytes(scl_slope=0.5, scl_inter=-10))
    found = read_image(tmp_path / "a.nii")
    assert found.array.dtype == np.float32 and np.array_equal(found.array, HU * 0.5 - 10)


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


def sheared():
    affine = kits_geometry(SHAPE, SPACING).affine
    affine[1, 0] = 0.4  # each slice lies 0.4 mm further to the front: 5.7 degrees of gantry tilt
    return affine


GOOD = nifti_bytes()
PACKED = gzip.compress(GOOD)
PIXDIM = [1, *SPACING, 0, 0, 0, 0]
FIRST_ROW = [0, 0, -SPACING[2], 0]
DAMAGE = {
    "empty": (b"", "the file is empty"),
    "truncated": (PACKED[: len(PACKED) // 2], "damaged or truncated"),
    "flipped bit": (PACKED[:-40] + bytes([PACKED[-40] ^ 4]) + PACKED[-39:], "damaged or truncated"),
    "wrong length, right CRC": (PACKED[:-4] + b"\1\0\0\0", r"damaged or truncated \(Incorrect length"),
    "garbage behind": (PACKED + b"garbage", "damaged or truncated"),
    "twice": (PACKED * 2, "the file continues after them"),
    "text": (b"hello", "not a NIfTI file, it begins with b'hello'"),
    "gzipped text": (gzip.compress(b"hello" * 200), "not a NIfTI file"),
    "half a header": (GOOD[:200], "not a NIfTI file"),
    "header of a pair": (nifti_bytes(magic=b"ni1"), "not a NIfTI file in one piece"),
    "huge header": (
        gzip.compress(nifti_bytes(dim=[3, *[32000] * 3, 1, 1, 1, 1])),
        "header claims 32000x32000x32000 voxels",
    ),
    "a voxel short": (GOOD[:-2], "the header claims 3x5x7 voxels of int16, 562 bytes; the file holds at most 560"),
    "a voxel short, gzip": (gzip.compress(GOOD[:-2]), "562 bytes; the file ends after 560"),
    "a voxel more": (GOOD + b"ab", "562 bytes; the file continues after them"),
    "voxels in the header": (nifti_bytes(vox_offset=0), "voxels begin at byte 0"),
    "voxels nowhere": (nifti_bytes(vox_offset=np.nan), "voxels begin at byte nan"),
    "4-D": (nifti_bytes(dim=[4, 3, 5, 1, 7, 1, 1, 1]), "4 axes, 3x5x1x7; a CT or label map has three axes"),
    "2-D": (nifti_bytes(dim=[2, 15, 7, 1, 1, 1, 1, 1]), "three axes"),
    "no voxel": (nifti_bytes(dim=[3, 3, 0, 7, 1, 1, 1, 1]), "three axes"),
    "complex": (nifti_bytes(datatype=32), r"voxels of type complex64 \(code 32\)"),
    "unknown type": (nifti_bytes(datatype=77), r"voxels of type void \(code 77\)"),
    "slope": (nifti_bytes(scl_slope=np.inf, scl_inter=0), "scl_slope is inf and scl_inter 0.0"),
    "intercept": (nifti_bytes(scl_slope=2, scl_inter=np.nan), "scl_slope is 2.0 and scl_inter nan"),
    "too large": (nifti_bytes(scl_slope=1e38, scl_inter=0), "voxels are NaN or infinite"),
    "flat affine": (nifti_bytes(srow_x=0, srow_y=0, srow_z=0), "voxels of 0 x 0 x 0 mm are not a CT's"),
    "affine of NaN": (nifti_bytes(srow_x=np.nan, qform_code=0), "are not a CT's"),
    "in metres": (
        nifti_bytes(affine=kits_geometry(SHAPE, (0.004, 0.0007, 0.0009)).affine),
        "0.004 x 0.0007 x 0.0009 mm",
    ),
    "spacing 0": (nifti_bytes(pixdim=[1, 0, *PIXDIM[2:]], qform_code=0), "pixdim says voxels of 0 x 0.7 x 0.9 mm"),
    "spacing 0, qform alone": (nifti_bytes(pixdim=[1, 0, *PIXDIM[2:]], sform_code=0), "are not a CT's"),
    "spacing below 0": (
        nifti_bytes(pixdim=[1, -4, *PIXDIM[2:]], qform_code=0),
        "pixdim says voxels of -4 x 0.7 x 0.9 mm",
    ),
    "spacing below 0, qform": (
        nifti_bytes(pixdim=[1, -4, *PIXDIM[2:]]),
        r"qform is damaged \(pixdims.*should be positive",
    ),
    "two spacings": (
        nifti_bytes(srow_x=[0, 0, -0.8, 0]),
        "pixdim says voxels of 4 x 0.7 x 0.9 mm, the affine 4 x 0.7 x 0.8",
    ),
    "no rotation": (nifti_bytes(quatern_b=1, quatern_c=1), "qform is damaged"),
    "no orientation": (nifti_bytes(qform_code=0, sform_code=0), "no orientation .* left and right would be a guess"),
    "mirrored qform": (
        nifti_bytes(srow_x=[0, 0, 0.9, 0]),
        r"qform and sform lie up to 10.8 mm apart: sform \[\[0.0, 0.0, 0.9",
    ),
    "moved qform": (nifti_bytes(qoffset_z=1.5), "qform and sform lie up to 1.5 mm apart"),
    "sheared": (nifti_bytes(affine=sheared()), "the axes are not at right angles"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_file_is_refused_by_name(tmp_path, kind):
    content, words = DAMAGE[kind]
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(content)
    for read in (read_image, read_labels):
        if "NaN or infinite" not in words:  # to a label map these are label values
            with pytest.raises(InputError, match=words) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_what_deviates_a_little_is_read(tmp_path):
    tilted = sheared()
    tilted[1, 0] = 0.02  # 0.3 degrees
    for content in (
        nifti_bytes(affine=tilted),
        nifti_bytes(qoffset_z=0.5),  # less than a voxel
        nifti_bytes(pixdim=[0, 4, 0.7, 0.9, 0, 0, 0, 0]),  # no qfac: the standard takes 1
        nifti_bytes(pixdim=[-1, 4, 0.701, 0.9, 0, 0, 0, 0], qform_code=0),
        nifti_bytes(dim=[5, *SHAPE, 1, 1, 1, 1]),
        PACKED + gzip.compress(b""),
        gzip.compress(GOOD[:100]) + gzip.compress(GOOD[100:]),  # several members are one stream
        PACKED + bytes(100),  # zeros pad a gzip file
    ):
        (tmp_path / "a.nii").write_bytes(content)
        assert np.array_equal(read_image(tmp_path / "a.nii").array, HU)


def test_a_file_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path):
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(GOOD + bytes(64 * 2**20), 9))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="562 bytes; the file continues after them"):
            read_image(tmp_path / "bomb.nii.gz")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_is_no_readable_file(tmp_path, monkeypatch):
    with pytest.raises(MissingInput, match="nowhere.nii.gz: no such file"):
        read_image(tmp_path / "nowhere.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    os.mkfifo(tmp_path / "pipe.nii")  # opening it would wait for a writer for ever
    for name in ("folder.nii.gz", "pipe.nii"):
        with pytest.raises(InputError, match=f"{name}: not a file"):
            read_image(tmp_path / name)

    def refuse(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.nii").write_bytes(GOOD)
    monkeypatch.setattr(nifti, "open", refuse, raising=False)  # chmod does not stop root
    with pytest.raises(InputError, match=r"a.nii: cannot be read \(Permission denied\)") as caught:
        read_image(tmp_path / "a.nii")
    assert not isinstance(caught.value, OSError) and open is builtins.open


def test_not_finite_and_foreign_labels(tmp_path):
    affine = kits_geometry(SHAPE, SPACING).affine
    broken = HU.astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="1 voxels are NaN"):
        read_image(save(tmp_path / "nan.nii.gz", broken, affine))
    for value, dtype in ((7, "uint8"), (258, "int16"), (-1, "int16"), (0.5, "float32"), (np.nan, "float64")):
        array = np.zeros(SHAPE, dtype)
        array[1, 2, 3] = value
        with pytest.raises(InputError, match=rf"label values \[{float(value)}\]"):
            read_labels(save(tmp_path / "label.nii.gz", array, affine))
    two = read_labels(save(tmp_path / "label.nii.gz", np.full(SHAPE, 2.0), affine)).array
    assert two.dtype == np.uint8 and (two == 2).all()


def test_an_array_that_was_never_reoriented_is_refused():
    """As (X, Y, Z) of nibabel in place of (D, H, W)."""
    stored, affine = np.zeros((7, 5, 3), np.int16), np.diag([0.8, 0.8, 3.0, 1.0])
    with pytest.raises(InputError, match=r"7x5x3 in a geometry whose \(D, H, W\) is 3x5x7. .*Volume.of"):
        Volume(stored, Geometry(stored.shape, affine)).check()
    assert Volume.of(stored, affine).array.shape == (3, 5, 7)
    with pytest.raises(InputError, match=r"3 axes, not of shape \(7, 5\)"):
        Volume.of(stored[..., 0], affine)


def test_to_native_refuses_another_shape():
    with pytest.raises(ValueError, match="does not fit"):
        to_stored_order(np.zeros((3, 5, 8)), kits_geometry(SHAPE, SPACING))
