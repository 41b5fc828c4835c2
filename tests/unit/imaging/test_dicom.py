"""DICOM series that SimpleITK writes here, against SimpleITK's own reading of them."""

import locale
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from kits_dist.imaging import dicom
from kits_dist.imaging.nifti import read_image, same_grid
from kits_dist.imaging.scans import find_scans
from kits_dist.utils.errors import InputError, MissingPackage
from tests.helpers import DATA, by_nibabel

sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'kits-dist[dicom]'")

SHAPE = (5, 24, 32)  # slices, rows, columns
HU = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
STRAIGHT = np.eye(3)  # columns: along a row of pixels, down the rows, from slice to slice; LPS
PATIENT = {"0010|0010": "Doe^Jane", "0010|0020": "4711", "0010|0030": "19610203", "0008|0090": "Dr^Who"}


def write_series(
    folder,
    hu=HU,
    axes=STRAIGHT,
    spacing=(0.7, 0.8, 3.0),
    uid="1.2.3",
    number="4",
    positions=None,
    compressor=None,
    edit=(b"", b""),
    **tags,
):
    """One file a slice, named against its order. spacing: columns, rows, slices. `edit` replaces bytes of each file:
    SimpleITK mends what it writes."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    if compressor:
        writer.SetUseCompression(True)
        writer.SetCompressor(compressor)
    paths = []
    before = locale.setlocale(locale.LC_ALL)
    for k, pixels in enumerate(hu):
        position = positions[k] if positions is not None else axes[:, 2] * spacing[2] * k + [-90, -120, 50]
        image = sitk.GetImageFromArray(pixels)
        if pixels.ndim == 2:
            image.SetSpacing(spacing[:2])
        about = {
            "0008|0060": "CT",
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{k + 1}",
            "0020|0011": number,
            "0020|0032": "\\".join(f"{x:.6f}" for x in position),
            "0020|0037": "\\".join(f"{x:.6f}" for x in axes[:, :2].T.ravel()),
            "0028|1052": "-1024",
            "0028|1053": "1",
            **PATIENT,
            **{key.replace("_", "|"): value for key, value in tags.items()},
        }
        for key, value in about.items():
            image.SetMetaData(key, value)
        path = folder / f"im{len(hu) - k:03d}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(image)
        content = path.read_bytes()
        assert edit[0] in content
        path.write_bytes(content.replace(*edit, 1))
        paths.append(path)
    locale.setlocale(locale.LC_ALL, before)  # writing sets it to C, and later tests would read subprocesses as ASCII
    return paths


def by_simpleitk(folder, tmp_path):
    """What SimpleITK reads and writes as NIfTI."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), str(tmp_path / "theirs.nii.gz"))
    return read_image(tmp_path / "theirs.nii.gz")


def read(folder):
    (scan,) = find_scans(folder).scans
    return scan.read()


def turned(degrees):
    """An oblique but straight stack."""
    a, b = np.deg2rad(degrees)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


@pytest.mark.parametrize(
    "axes",
    [
        STRAIGHT,
        STRAIGHT[:, [1, 0, 2]] * [1, 1, -1],  # rows and columns swapped
        np.diag([-1.0, -1.0, 1.0]),  # prone
        np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),  # coronal slices, feet up
        turned((4, 7)),
    ],
    ids=["supine", "swapped", "prone", "coronal", "oblique"],
)
def test_voxels_lie_where_simpleitk_says(tmp_path, axes):
    write_series(tmp_path / "series", axes=axes)
    ours, theirs = read(tmp_path / "series"), by_simpleitk(tmp_path / "series", tmp_path)
    assert ours.array.dtype == np.int16 and np.array_equal(ours.array, theirs.array)
    assert same_grid(ours.canonical_geometry(), theirs.canonical_geometry())
    assert ours.spacing_mm == pytest.approx(theirs.spacing_mm, abs=1e-4)


def test_slices_are_ordered_by_place_not_by_name_or_number(tmp_path):
    write_series(tmp_path / "series")
    assert np.array_equal(read(tmp_path / "series").array, HU[::-1])  # slice 0 is cranial


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_series(tmp_path, compressor):
    smooth = np.rint(1000 * np.indices(SHAPE).sum(axis=0) / sum(SHAPE)).astype(np.int16)
    plain = write_series(tmp_path / "plain", smooth)
    packed = write_series(tmp_path / "packed", smooth, compressor=compressor)
    assert sum(p.stat().st_size for p in packed) < sum(p.stat().st_size for p in plain)
    assert np.array_equal(read(tmp_path / "packed").array, smooth[::-1])


def test_values_between_integers_are_kept(tmp_path):
    slope = b"\x28\x00\x53\x10\x02\x00\x00\x00"  # tag and length, implicit VR
    write_series(tmp_path / "series", edit=(slope + b"1 ", slope + b".5"))
    volume = read(tmp_path / "series")
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, by_simpleitk(tmp_path / "series", tmp_path).array)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": [[0, 0, z] for z in (0, 3, 6, 12, 15)]}, "missing or unevenly spaced: 6 mm from im003.dcm to"),
        (
            {"positions": [[0, 0, z] for z in (0, 3, 6, 8, 10)]},
            "missing or unevenly spaced: 3 mm .* usual step is 2.5 mm",
        ),
        (
            {"positions": [[0, 0, z] for z in (0, 3, 6, 6, 9)]},
            "1 slices have the position of another .im002",
        ),
        ({"positions": [[0, z * 0.3, z] for z in (0, 3, 6, 9, 12)]}, "tilted gantry: .* 16.7 degrees off their normal"),
        ({"hu": HU[:1]}, "the series is a single slice, not a volume"),
        ({"edit": (b"\x20\x00\x32\x00", b"\x20\x00\x30\x00")}, r"no position .0020,0032."),
        ({"edit": (b"\x28\x00\x52\x10", b"\x28\x00\x55\x10")}, "no RescaleIntercept .* not known to be HU"),
        ({"edit": (b"-90\\-120", b"-9O\\-120")}, "position is .* Export it again"),
        ({"0008_0060": "MR"}, "no CT series: .*its modality is MR, not CT .im001.dcm, im002.dcm and 3 more"),
        ({"0008_0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "no CT series: .*it is a localizer"),
    ],
    ids=["gap", "uneven", "doubled", "tilt", "one", "nowhere", "no HU", "bad", "MR", "localizer"],
)
def test_what_makes_no_ct_volume_is_refused_in_one_sentence(tmp_path, changes, words):
    write_series(tmp_path / "series", **changes)
    with pytest.raises(InputError, match=words) as caught:
        read(tmp_path / "series")
    assert "\n" not in str(caught.value) and str(tmp_path / "series") in str(caught.value)


def test_slices_of_different_stacks_under_one_number_are_refused(tmp_path):
    write_series(tmp_path / "series", HU[:3])
    other = write_series(tmp_path / "other", HU[:3], axes=turned((0, 30)))  # a gantry that was tilted half-way
    shutil.copy(other[0], tmp_path / "series" / "other.dcm")
    with pytest.raises(
        InputError, match="slices of one series differ in orientation: .* in im003.dcm, .* in other.dcm|in other"
    ):
        read(tmp_path / "series")
    write_series(tmp_path / "sizes", HU[:3])
    small = write_series(tmp_path / "small", HU[:1, :12], positions=[[-90, -120, 59]])
    shutil.copy(small[0], tmp_path / "sizes" / "small.dcm")
    with pytest.raises(InputError, match=r"slices of one series have \[\(32, 12\), \(32, 24\)\] pixels"):
        read(tmp_path / "sizes")


def test_color_images_and_several_frames_are_refused(tmp_path):
    color = sitk.GetImageFromArray(np.zeros((8, 8, 3), np.uint8), isVector=True)
    for key, value in {"0008|0060": "CT", "0020|000e": "1.9"}.items():
        color.SetMetaData(key, value)
    (tmp_path / "color").mkdir()
    sitk.WriteImage(color, str(tmp_path / "color" / "a.dcm"))
    with pytest.raises(InputError, match="no CT series: .*it is a color image; a CT is gray .a.dcm"):
        read(tmp_path / "color")
    frames = sitk.GetImageFromArray(np.zeros((4, 8, 8), np.int16))
    frames.SetMetaData("0008|0060", "CT")
    (tmp_path / "frames").mkdir()
    sitk.WriteImage(frames, str(tmp_path / "frames" / "a.dcm"))
    with pytest.raises(InputError, match="a.dcm: 4 frames in one file"):
        read(tmp_path / "frames")


@pytest.mark.parametrize("cut", [0.4, 0.9])
def test_a_damaged_slice_is_the_fault_of_its_series_even_at_the_end(tmp_path, cut):
    """Left out, the last slice would be missed by nobody."""
    paths = write_series(tmp_path / "a")
    content = paths[-1].read_bytes()
    paths[-1].write_bytes(content[: int(len(content) * cut)])
    write_series(tmp_path / "b", uid="1.2.4")
    by_name = {scan.name: scan for scan in find_scans(tmp_path).scans}
    assert set(by_name) == {"a", "b"}
    with pytest.raises(InputError, match=f"{paths[-1].name}: a DICOM file without a readable image"):
        by_name["a"].read()
    assert np.array_equal(by_name["b"].read().array, HU[::-1])
    for path in paths:
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="without a readable image"):
        {scan.name: scan for scan in find_scans(tmp_path).scans}["a"].read()


def test_every_series_of_a_tree_is_a_scan_and_what_is_none_is_said(tmp_path):
    write_series(tmp_path / "jane" / "ct", uid="1.1", number="3")
    write_series(tmp_path / "jane" / "ct", HU + 1, uid="1.2", number="5", positions=None)
    # SimpleITK names files alike: write the second beside the first under other names
    for path in sorted((tmp_path / "jane" / "ct").iterdir()):
        path.rename(path.with_name(f"thin_{path.name}"))
    write_series(tmp_path / "jane" / "ct", uid="1.1", number="3")
    write_series(tmp_path / "jane" / "scout", HU[:1], uid="1.3", **{"0008_0008": "ORIGINAL\\PRIMARY\\LOCALIZER"})
    write_series(tmp_path / "john" / "1", HU[:3], uid="1.4")  # one series in two folders
    write_series(tmp_path / "john" / "2", HU[3:], uid="1.4", positions=[[-90, -120, 50 + 3 * k] for k in (3, 4)])
    (tmp_path / "john" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "john" / "notes.txt").write_text("hello")
    report = bytes(128) + b"DICM" + b"\x02\x00\x02\x00UI\x1e\x00" + b"1.2.840.10008.5.1.4.1.1.481.3\0"
    (tmp_path / "john" / "structures.dcm").write_bytes(report)
    found = find_scans(tmp_path)
    assert [scan.name for scan in found.scans] == ["jane_ct_3", "jane_ct_5", "john"]
    assert [scan.read().array.shape for scan in found.scans] == [SHAPE] * 3
    assert f"left out {tmp_path / 'jane' / 'scout'}: it is a localizer (im001.dcm)" in found.notes
    assert f"left out {tmp_path / 'john'}: a structure set (structures.dcm)" in found.notes
    assert any("john/notes.txt: neither NIfTI nor DICOM" in note for note in found.notes)
    assert any("john/DICOMDIR: hidden, or left by" in note for note in found.notes)
    assert any("holds 2 CT series: each is a scan" in note for note in found.notes)
    assert np.array_equal(found.scans[2].read().array, HU[::-1])


def test_names_that_would_collide_are_refused(tmp_path):
    write_series(tmp_path / "a_b", uid="1.1")
    write_series(tmp_path / "a" / "b", uid="1.2")
    with pytest.raises(InputError, match="two scans would be named a_b"):
        find_scans(tmp_path)


def test_a_single_file_and_a_folder_without_images_are_refused(tmp_path):
    (path, *_) = write_series(tmp_path / "series")
    with pytest.raises(InputError, match="is one DICOM file. Name the folder"):
        find_scans(path)
    (tmp_path / "empty").mkdir()
    report = bytes(128) + b"DICM" + b"\x02\x00\x02\x00UI\x1e\x00" + b"1.2.840.10008.5.1.4.1.1.481.3\0"
    (tmp_path / "empty" / "a.dcm").write_bytes(report)
    with pytest.raises(InputError, match="1 DICOM files, but no CT series: .*a structure set .a.dcm."):
        find_scans(tmp_path / "empty")


def test_without_simpleitk_the_way_out_is_said(tmp_path, monkeypatch):
    write_series(tmp_path / "series")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(MissingPackage, match=r"DICOM needs SimpleITK.*not installed. pip install 'kits-dist\[dicom\]'"):
        find_scans(tmp_path / "series")


def test_a_simpleitk_with_a_broken_library_says_so(tmp_path, monkeypatch):
    write_series(tmp_path / "series")
    (tmp_path / "SimpleITK.py").write_text("raise OSError('libitk.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "SimpleITK")
    with pytest.raises(MissingPackage, match=r"SimpleITK, which is installed but .*libitk.so: cannot open"):
        find_scans(tmp_path / "series")


def test_no_tag_of_the_patient_is_asked_for():
    assert all(not tag.startswith(("0010", "0032", "0040")) for tag in dicom._TAGS.values())


@pytest.mark.kits
@pytest.mark.skipif(not (DATA / "real_dicom").is_dir(), reason="no real_dicom/ in the data folder")
def test_a_real_scanner_s_series_lies_under_its_labels():
    """Liver (5) and ribs (92 .. 115 for TotalSegmentator) have the HU of their tissue in one orientation only."""
    ((scan,), _) = find_scans(DATA / "real_dicom")
    hu, organs = scan.read().array, by_nibabel(DATA / "real_dicom_labels.nii.gz")
    assert hu.shape == organs.shape == (20, 512, 512)

    def fits(turned):
        liver, ribs = hu[turned == 5], hu[(turned >= 92) & (turned <= 115)]
        return 80 < liver.mean() < 100 and liver.std() < 30 and ribs.mean() > 250

    assert fits(organs)
    for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        assert not fits(np.flip(organs, axes)), axes


def test_a_path_that_is_not_utf8_is_refused_where_the_library_would_end_the_process(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.dcm"))
    with pytest.raises(InputError, match="this path is not UTF-8. Rename the file or its folder"):
        dicom.read_header(path)
