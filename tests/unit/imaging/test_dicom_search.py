"""A file of a series that does not fit: left out and said, or the fault of its series; never passed over."""

import builtins
import gzip
import re
import shutil

import pytest

from kits_dist.imaging import dicom_search
from kits_dist.imaging.scans import find_scans
from kits_dist.utils.errors import InputError
from tests.helpers import dicom_bytes
from tests.helpers.dicom_bytes import SHAPE, dicom_file, write_ct

pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'kits-dist[dicom]'")

LOCALIZER = "ORIGINAL\\PRIMARY\\LOCALIZER"
CAPTURED = {"sop_class": dicom_bytes.CAPTURE, "image_type": "DERIVED\\SECONDARY"}


def refused(scan):
    with pytest.raises(InputError) as caught:
        scan.read()
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.dcm", "zz.dcm"])  # before and after the slices
@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"image_type": LOCALIZER, "orientation": dicom_bytes.CORONAL, "side": 12}, "it is a localizer"),
        ({"orientation": dicom_bytes.SAGITTAL, "side": 12}, "it lies across the axial slices of its series"),
        (CAPTURED | {"without": {dicom_bytes.POSITION}}, "it is a secondary capture"),
        ({"image_type": "DERIVED\\SECONDARY\\OTHER", "without": {dicom_bytes.POSITION}}, "a derived image without a"),
        ({"modality": "SEG", "sop_class": "1.2.840.10008.5.1.4.1.1.66.4"}, "its modality is SEG, not CT"),
        ({"modality": "SR", "sop_class": dicom_bytes.DOSE_REPORT, "without": dicom_bytes.IMAGE}, "a dose report"),
        ({"sop_class": "1.2.840.10008.9", "without": dicom_bytes.IMAGE}, "no image .SOP class 1.2.840.10008.9"),
    ],
    ids=["localizer", "unmarked", "capture", "dose page", "segmentation", "report", "unknown"],
)
def test_what_is_no_slice_is_left_out_and_said(tmp_path, name, extra, reason):
    write_ct(tmp_path / "bert")
    dicom_file(tmp_path / "bert" / name, z=90, **extra)
    ((scan,), (note,)) = find_scans(tmp_path / "bert")
    assert scan.read().array.shape == SHAPE
    assert note.startswith(f"left out {tmp_path / 'bert'}: ") and name in note
    assert re.search(reason, note)


def cut(size):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def replaced(content):
    return lambda path: path.write_bytes(content)


def bare(path):
    dicom_file(path, z=15, preamble=False)


def without_position(path):
    dicom_file(path, z=15, without={dicom_bytes.POSITION})


def renamed(path):
    path.with_name("im006.dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def unfinished(path):
    path.with_name("im006.dcm.part").write_bytes(path.read_bytes()[:90])
    path.unlink()


def dangling(path):
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut(0), "im006.dcm: the file is empty"),
        (cut(100), "im006.dcm: it holds nothing but zeros in its first 100 bytes"),
        (cut(132), "im006.dcm: a DICOM file without a readable image .* has 132 bytes"),
        (cut(400), "im006.dcm: a DICOM file without a readable image .* has 400 bytes"),
        (cut(-1), "im006.dcm: a DICOM file without a readable image"),
        (replaced(b"<html>404"), "im006.dcm: no DICOM file, it begins with b'<html>404'"),
        (bare, "im006.dcm: no DICOM preamble"),
        (without_position, "im006.dcm: no position"),
        (renamed, "im006.dcm.gz: no DICOM file, but packed or not copied to its end"),
        (unfinished, "im006.dcm.part: it holds nothing but zeros"),
        (dangling, "im006.dcm: it cannot be read .a link to nothing"),
    ],
)
def test_a_last_slice_that_cannot_be_read_is_the_fault_of_its_series(tmp_path, damage, words):
    """And the series of the other patient is read."""
    write_ct(tmp_path / "anna", series="1.2.4")
    damage(write_ct(tmp_path / "bert")[-1])
    anna, bert = find_scans(tmp_path).scans
    assert (anna.name, bert.name) == ("anna", "bert") and anna.read().array.shape == SHAPE
    assert re.search(words, refused(bert))


def test_a_file_that_must_not_be_read_is_the_fault_of_its_series(tmp_path, monkeypatch):
    """Tests may run as root, whom no permission stops."""
    last = write_ct(tmp_path / "bert")[-1]
    real = builtins.open

    def refuse(path, *args, **more):
        if path == last:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(builtins, "open", refuse)
    (bert,) = find_scans(tmp_path).scans
    assert "im006.dcm: it cannot be read (Permission denied). A slice may be missing" in refused(bert)


@pytest.mark.parametrize("name", ["im{:03d}.dcm", "IM{:04d}", "1.2.840.113.{}"])
def test_names_tell_which_files_should_be_slices(tmp_path, name):
    """Whatever an exporter calls them; a text file in the same folder is none."""
    write_ct(tmp_path / "bert", name)[-1].write_bytes(b"<html>404")
    (tmp_path / "bert" / "README").write_text("hello")
    (tmp_path / "bert" / "notes.txt").write_text("")
    (bert,), notes = find_scans(tmp_path)
    assert f"{name.format(6)}: no DICOM file, it begins with" in refused(bert)
    assert notes == [f"left out of {tmp_path}: bert/README, bert/notes.txt: neither NIfTI nor DICOM"]


def test_a_file_without_preamble_is_known_by_what_it_holds(tmp_path):
    """Whatever its name; where it is no CT it spares the scan."""
    write_ct(tmp_path)
    dicom_file(tmp_path / "last.bin", z=15, preamble=False)
    (scan,), _ = find_scans(tmp_path)
    assert "last.bin: no DICOM preamble" in refused(scan)
    dicom_file(tmp_path / "last.bin", preamble=False, sop_class=dicom_bytes.DOSE_REPORT, without=dicom_bytes.IMAGE)
    (scan,), notes = find_scans(tmp_path)
    assert scan.read().array.shape == SHAPE and "last.bin: neither NIfTI nor DICOM" in notes[0]


@pytest.mark.parametrize("name", ["im{:03d}.dcm", "IM{:04d}"])
def test_a_folder_of_nothing_but_empty_slices_is_a_scan_that_cannot_be_read(tmp_path, name):
    write_ct(tmp_path / "anna", name)
    for path in write_ct(tmp_path / "bert", name, series="1.2.4"):
        path.write_bytes(b"")
    anna, bert = find_scans(tmp_path).scans
    assert anna.read().array.shape == SHAPE and bert.name == "bert"
    assert "the file is empty (0 bytes) (5 more files of this folder" in refused(bert)


def test_the_damaged_file_of_one_series_spares_the_other_of_its_folder(tmp_path):
    cut(-1)(write_ct(tmp_path / "bert", "a{}.dcm")[-1])
    write_ct(tmp_path / "bert", "b{}.dcm", series="1.2.4")
    first, second = find_scans(tmp_path).scans
    assert "a6.dcm: a DICOM file without a readable image" in refused(first)
    assert second.read().array.shape == SHAPE


def test_copies_are_one_file_and_others_at_one_place_are_not(tmp_path):
    paths = write_ct(tmp_path / "bert")
    shutil.copy(paths[3], tmp_path / "bert" / "im004 copy.dcm")
    shutil.copytree(tmp_path / "bert", tmp_path / "saved")
    (scan,), notes = find_scans(tmp_path)
    assert scan.name == "bert" and scan.read().array.shape == SHAPE
    assert [note.split(": ")[1][:22] for note in notes] == ["a byte-identical copy "] * 2
    assert "bert: a byte" in notes[0] and "(im004.dcm)" in notes[0]
    assert "saved: a byte" in notes[1] and "and 5 more" in notes[1]
    shutil.rmtree(tmp_path / "saved")
    dicom_file(tmp_path / "bert" / "other.dcm", z=9, hu=99)
    (scan,), _ = find_scans(tmp_path)
    assert "1 slices have the position of another (im004" in refused(scan) and "other content" in refused(scan)


def test_most_images_decide_which_plane_is_the_scan(tmp_path):
    """Two axial images in a coronal series make no scan of two slices."""
    for k in range(4):
        dicom_file(tmp_path / f"c{k}.dcm", hu=k, orientation=dicom_bytes.CORONAL)
    for k in range(2):
        dicom_file(tmp_path / f"a{k}.dcm", z=3 * k)
    (scan,), notes = find_scans(tmp_path)
    assert "slices of one series differ in orientation" in refused(scan) and notes == []


def test_a_slice_that_names_no_modality_is_a_ct_by_its_class(tmp_path):
    write_ct(tmp_path)
    dicom_file(tmp_path / "im006.dcm", z=15, without={dicom_bytes.MODALITY})
    ((scan,), notes) = find_scans(tmp_path)
    assert scan.read().array.shape == SHAPE and notes == []


def test_without_a_series_uid_a_folder_is_a_series(tmp_path):
    for name in ("anna", "bert"):
        write_ct(tmp_path / name, without={(0x20, 0x0E)})
    assert [scan.read().array.shape for scan in find_scans(tmp_path).scans] == [SHAPE, SHAPE]


def test_a_cut_file_of_another_kind_spares_the_scan(tmp_path):
    write_ct(tmp_path)
    cut(400)(dicom_file(tmp_path / "report", sop_class=dicom_bytes.DOSE_REPORT))
    ((scan,), notes) = find_scans(tmp_path)
    assert scan.read().array.shape == SHAPE and "a dose report (report)" in notes[0]


def test_uids_are_found_in_what_is_left_of_a_file():
    assert dicom_search._tag_in(b"..\x20\0\x0e\0UI\x06\x001.2.3\0", b"\x20\0\x0e\0") == "1.2.3"
    assert dicom_search._tag_in(b"..\x20\0\x0e\0\x06\0\0\x001.2.3\0", b"\x20\0\x0e\0") == "1.2.3"  # implicit
    assert dicom_search._tag_in(b"..\x20\0\x0e\0UI\x06\x001.2", b"\x20\0\x0e\0") == ""  # cut within it
