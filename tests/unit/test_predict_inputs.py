"""The scans that `predict` finds, and those that it cannot read."""

import gzip
import os
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest

from kits_dist import predict
from kits_dist.imaging import scans
from kits_dist.imaging.nifti import kits_geometry, read_labels, same_grid, write_nifti
from kits_dist.imaging.scans import find_scans
from kits_dist.imaging.tree import Tree
from kits_dist.utils.errors import InputError, JobFailed
from tests.helpers.dicom_bytes import dicom_file, write_ct
from tests.helpers.runs import Threshold, export_run, untrained_run
from tests.unit.imaging.test_nifti import HU, SHAPE, nifti_bytes
from tests.unit.test_predict import main


def test_each_unreadable_scan_is_reported_and_the_others_are_predicted(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "scans"
    write_nifti(folder / "good.nii.gz", np.where(HU > 500, 150, 20).astype(np.int16), kits_geometry(SHAPE, (3, 1, 1)))
    good = gzip.compress(nifti_bytes())
    bad = {
        "empty": (b"", "the file is empty (0 bytes)"),
        "four": (
            gzip.compress(nifti_bytes(dim=[4, 3, 5, 1, 7, 1, 1, 1])),
            "4 axes, 3x5x1x7; a CT or label map has three",
        ),
        "huge": (
            gzip.compress(nifti_bytes(version=2, dim=[3, *[100_000] * 3, 1, 1, 1, 1])),
            "the header claims 100000x100000x100000 voxels of int16, 2000000000000544 bytes; the file holds at most",
        ),
        "text": (b"hello, this is no scan", "not a NIfTI file, it begins with b'hello, this '"),
        "cut": (good[: len(good) // 2], "damaged or truncated (Compressed file ended before"),
        "flipped": (good[:-6] + bytes([good[-6] ^ 4]) + good[-5:], "damaged or truncated (CRC check failed"),
        "nan": (gzip.compress(nifti_bytes(np.full(SHAPE, np.nan, np.float32))), "105 voxels are NaN or infinite"),
        "infinite": (gzip.compress(nifti_bytes(np.full(SHAPE, 1e300))), "105 voxels are NaN or infinite"),
        "sideways": (
            gzip.compress(nifti_bytes(sform_code=0, qform_code=0)),
            "no orientation (qform_code and sform_code are",
        ),
    }
    for name, (content, _) in bad.items():
        (folder / f"{name}.nii.gz").write_bytes(content)
    (folder / "folder.nii.gz").mkdir()
    bad["folder"] = (None, "not a file")
    run = export_run(tmp_path / "run", monkeypatch, Threshold(100.0), size_px="32x32")
    with pytest.raises(JobFailed, match=r"10 of 11 scans could not be read: cut, empty, flipped, folder, four, huge,"):
        predict.main(predict.Args(run=str(run), input=str(folder), output=str(tmp_path / "out")))
    said = capsys.readouterr().out.splitlines()
    for name, (_, words) in bad.items():
        (line,) = [line for line in said if f"{name}.nii.gz" in line]  # one message, one line
        assert line.startswith("error") and words in line
        with pytest.raises(InputError):  # alone it is the file that was named: exit code 2
            predict.main(predict.Args(run=str(run), input=str(folder / f"{name}.nii.gz"), output=str(tmp_path / "b")))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.json", "good.nii.gz"]
    assert np.array_equal(read_labels(tmp_path / "out" / "good.nii.gz").array, HU > 500)


def test_a_case_without_a_ct_is_reported(raw, tmp_path, monkeypatch, capsys):
    for name in ("case_00000", "case_00001"):
        (tmp_path / "cases" / name).mkdir(parents=True)
    (tmp_path / "cases" / "case_00000" / "imaging.nii.gz").symlink_to(raw / "case_00000" / "imaging.nii.gz")
    run = export_run(tmp_path / "run", monkeypatch, Threshold(100.0), size_px="64x64")
    with pytest.raises(JobFailed, match="1 of 2 scans could not be read: case_00001"):
        predict.main(predict.Args(run=str(run), input=str(tmp_path / "cases"), output=str(tmp_path / "out")))
    assert "error    case_00001: no CT file in" in capsys.readouterr().out


def test_the_ct_of_a_case_has_the_name_of_the_case(raw):
    image = raw / "case_00000" / "imaging.nii.gz"
    assert [scan.name for scan in find_scans(image).scans] == ["case_00000"]


def test_names_that_a_disk_or_a_text_cannot_hold(raw, tmp_path, monkeypatch, capsys):
    run = export_run(tmp_path / "run", monkeypatch, Threshold(100.0), size_px="64x64")
    strange = os.fsdecode(b"Ni\xe8re")
    (tmp_path / "scans").mkdir()
    for name in (f"{strange}.NII.GZ", f"{244 * 'x'}.nii"):
        shutil.copy(raw / "case_00000" / "imaging.nii.gz", tmp_path / "scans" / name)
    sys.stdout.reconfigure(errors="backslashreplace")  # as cli.run does
    main(run, tmp_path / "scans", tmp_path / "out")
    found = sorted(os.listdir(tmp_path / "out"))
    assert found == sorted([f"{strange}.json", f"{strange}.nii.gz", f"{244 * 'x'}.json", f"{244 * 'x'}.nii.gz"])
    (tmp_path / "scans" / f"{244 * 'x'}.nii").rename(tmp_path / "scans" / f"{251 * 'x'}.nii")
    with pytest.raises(InputError, match="the name x+.nii.gz is too long for this disk. Rename the scan"):
        main(run, tmp_path / "scans", tmp_path / "other")
    assert not os.listdir(tmp_path / "other")


def test_nnunet_names_and_folders(raw, tmp_path):
    tests, training = tmp_path / "d" / "imagesTs", tmp_path / "d" / "imagesTr"
    for path in (tests / "kidney_7_0000.nii.gz", tests / "plain.nii.gz", training / "kidney_1_0000.nii.gz"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(raw / "case_00000" / "imaging.nii.gz", path)
    assert [s.name for s in find_scans(tests).scans] == ["kidney_7", "plain"]
    found = find_scans(tmp_path / "d")
    assert [s.name for s in found.scans] == ["kidney_7", "plain"] and "those of imagesTr are left out" in found.notes[0]
    assert [s.name for s in find_scans(tests / "kidney_7_0000.nii.gz").scans] == ["kidney_7"]
    shutil.copy(tests / "plain.nii.gz", tests / "kidney_7_0001.nii.gz")
    with pytest.raises(InputError, match="holds second channels .kidney_7_0001.nii.gz.; a CT has one"):
        find_scans(tests)
    (tests / "kidney_7_0001.nii.gz").rename(tests / "kidney_7.nii.gz")
    with pytest.raises(InputError, match="both .*kidney_7.nii.gz and .*kidney_7_0000.nii.gz are kidney_7. Keep one"):
        find_scans(tests)
    (tests / "kidney_7.nii.gz").unlink()
    (tests / "plain.nii.gz").rename(tests / "plain_0000.nii.gz")
    with pytest.raises(InputError, match="is the input folder; next time labels would pass for CTs"):
        main(untrained_run(tmp_path / "run"), tmp_path / "d", tests)
    shutil.rmtree(tests)
    assert [s.name for s in find_scans(tmp_path / "d").scans] == ["kidney_1"]


def test_a_dicom_series_is_predicted_on_its_own_grid(tmp_path):
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'kits-dist[dicom]'")
    from tests.unit.imaging.test_dicom import PATIENT, by_simpleitk, turned, write_series

    hu = np.random.default_rng(1).integers(-100, 300, (6, 64, 80)).astype(np.int16)
    write_series(tmp_path / "scans" / "jane", hu, axes=turned((3, 5)))
    by_simpleitk(tmp_path / "scans" / "jane", tmp_path)
    run = untrained_run(tmp_path / "run", size_px="64x64")
    main(run, tmp_path / "scans", tmp_path / "a")
    main(run, tmp_path / "theirs.nii.gz", tmp_path / "b")
    ours, theirs = read_labels(tmp_path / "a" / "jane.nii.gz"), read_labels(tmp_path / "b" / "theirs.nii.gz")
    assert np.array_equal(ours.array, theirs.array) and ours.array.any()
    assert same_grid(ours.canonical_geometry(), theirs.canonical_geometry())
    written = b"".join(path.read_bytes() for path in (tmp_path / "a").iterdir() if path.suffix == ".json")
    written += nib.load(tmp_path / "a" / "jane.nii.gz").header.binaryblock
    assert not [value for value in PATIENT.values() if value.encode() in written]


def scan_file(path):
    return write_nifti(path, np.where(HU > 500, 150, 20).astype(np.int16), kits_geometry(SHAPE, (3, 1, 1)))


def test_a_scan_of_a_tree_that_is_left_out_is_no_success(tmp_path, monkeypatch, capsys):
    """And the others are predicted: a localizer in a series, a cut last slice, a folder below, another format."""
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'kits-dist[dicom]'")
    folder = tmp_path / "in"
    scan_file(folder / "good.nii.gz")
    write_ct(folder / "anna", series="1.2.4")
    dicom_file(folder / "anna" / "im000.dcm", series="1.2.4", image_type="ORIGINAL\\PRIMARY\\LOCALIZER", side=12)
    write_ct(folder / "bert")[-1].write_bytes(b"")
    scan_file(folder / "carl" / "ct.nii.gz")
    (folder / "dora.mha").write_text("ObjectType = Image")
    (folder / "emil").symlink_to(tmp_path / "nowhere")
    run = export_run(tmp_path / "run", monkeypatch, Threshold(100.0), size_px="32x32")
    expected = r"4 of 6 scans could not be read: bert, carl/ct.nii.gz, dora.mha, emil\."
    for _ in range(2):  # the label maps in a folder below are no scans of the second time
        with pytest.raises(JobFailed, match=expected):
            main(run, folder, folder / "out")
        said = capsys.readouterr().out
        for words in (
            f"note     left out {folder}/anna: it is a localizer (im000.dcm)",
            f"error    {folder}/bert/im006.dcm: the file is empty (0 bytes). A slice may be missing",
            f"error    {folder}/carl/ct.nii.gz: left out, it lies in a folder below input=. Name it: input=",
            f"error    {folder}/dora.mha: left out, its name ends with neither .nii nor .nii.gz",
            f"error    {folder}/emil: cannot be read (a link to nothing).",
        ):
            assert words in said
        assert "out/" not in said.partition("predict:")[0]
        names = sorted(path.name for path in (folder / "out").iterdir())
        assert names == ["anna.json", "anna.nii.gz", "good.json", "good.nii.gz"]
    with pytest.raises(JobFailed, match=expected):
        main(run, folder, tmp_path / "elsewhere")
    assert f"note     left out of {folder}: out/anna.nii.gz, out/good.nii.gz: label maps or" in capsys.readouterr().out


def test_what_else_the_folder_of_scans_holds_is_said_in_a_line(tmp_path):
    scan_file(tmp_path / "case_00001" / "imaging.nii.gz")
    for name in ("case_00001/segmentation.nii.gz", "case_00001/segmentations/kidney_1.nii.gz", "predicted/x.nii.gz"):
        scan_file(tmp_path / name)
    (tmp_path / "case_00001" / "report.pdf").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "case_00009").mkdir()
    found, notes = find_scans(tmp_path)
    assert [scan.name for scan in found] == ["case_00001", "case_00009"]
    labels, text, hidden, empty = (note.removeprefix(f"left out of {tmp_path}: ") for note in notes)
    assert labels.endswith("predicted/x.nii.gz: label maps or probabilities, by their names or their JSON files")
    assert text == "case_00001/report.pdf: neither NIfTI nor DICOM"
    assert hidden.startswith(".DS_Store: hidden") and empty == "case_00009: empty folders"


@pytest.mark.parametrize(
    ("name", "may_be_a_ct"),
    [
        ("b.nrrd", True),
        ("b.hdr", True),
        ("b.MHA", True),
        ("b.nii.gz.part", True),
        ("b.nii.bz2", True),
        ("b.NII.GZ.crdownload", True),
        ("b_seg.nrrd", False),
        ("labels/b.mha", False),
        ("b.txt", False),
        ("b.nii.gz.md5", False),
        ("b.json", False),
    ],
)
def test_what_may_be_a_ct_in_another_form_is_no_success(tmp_path, name, may_be_a_ct):
    scan_file(tmp_path / "a.nii.gz")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    found, notes = find_scans(tmp_path)
    assert [scan.name for scan in found] == ["a", *([name] if may_be_a_ct else [])]
    assert len(notes) == (not may_be_a_ct)


def test_cases_whose_ct_is_dicom_are_read(tmp_path):
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'kits-dist[dicom]'")
    scan_file(tmp_path / "case_00001" / "imaging.nii.gz")
    write_ct(tmp_path / "case_00002" / "ct")
    assert [scan.name for scan in find_scans(tmp_path).scans] == ["case_00001", "case_00002_ct"]


def test_a_file_and_the_series_it_was_made_from_are_two_scans(tmp_path):
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'kits-dist[dicom]'")
    scan_file(tmp_path / "anna.nii.gz")
    write_ct(tmp_path / "anna")
    found, (note,) = find_scans(tmp_path)
    assert [scan.name for scan in found] == ["anna", "anna_dicom"] and "is called anna_dicom" in note


def test_without_simpleitk_the_nifti_files_are_read_and_the_series_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    scan_file(tmp_path / "anna.nii.gz")
    write_ct(tmp_path / "bert")
    anna, series = find_scans(tmp_path).scans
    assert anna.read().array.any()
    with pytest.raises(InputError, match="bert/im001.dcm, bert/im002.dcm.* and 3 more: DICOM needs SimpleITK"):
        series.read()


def test_a_ct_that_is_a_link_to_nothing_is_a_scan_that_cannot_be_read(tmp_path):
    """Its labels are no CT, though they lie in the same folder."""
    scan_file(tmp_path / "case" / "segmentation.nii.gz")
    (tmp_path / "case" / "imaging.nii.gz").symlink_to(tmp_path / "nowhere")
    ((scan,), _) = find_scans(tmp_path / "case")
    with pytest.raises(InputError, match="imaging.nii.gz: no such file"):
        scan.read()


def test_a_case_that_is_a_link_to_nothing_is_said_once(tmp_path):
    scan_file(tmp_path / "case_00001" / "imaging.nii.gz")
    (tmp_path / "case_00002").symlink_to(tmp_path / "nowhere")
    (one, two), notes = find_scans(tmp_path)
    assert (one.name, two.name) == ("case_00001", "case_00002") and notes == []
    with pytest.raises(InputError, match="case_00002: has no folder: .*case_00002 is a link to nothing"):
        two.read()


def test_a_folder_below_that_must_not_be_read_is_no_success(tmp_path, monkeypatch):
    scan_file(tmp_path / "a.nii.gz")
    monkeypatch.setattr(scans, "list_tree", lambda *_, **__: Tree([], [], {tmp_path / "bert": "Permission denied"}, []))
    (tmp_path / "bert").mkdir()
    _, bert = find_scans(tmp_path).scans
    with pytest.raises(InputError, match="bert: cannot be read .Permission denied"):
        bert.read()
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(InputError, match="no scan is found, and .*bert cannot be read .Permission denied"):
        find_scans(tmp_path)


def test_further_channels_next_to_a_single_file_are_said(tmp_path):
    for number in ("0000", "0001", "0002"):
        scan_file(tmp_path / f"anna_{number}.nii.gz")
    scan_file(tmp_path / "annabel_0000.nii.gz")
    scan_file(tmp_path / "annabel_0001.nii.gz")
    (scan,), (note,) = find_scans(tmp_path / "anna_0000.nii.gz")
    assert scan.name == "anna" and "(anna_0001.nii.gz, anna_0002.nii.gz), which are not used" in note
    assert find_scans(tmp_path / "annabel_0001.nii.gz").notes == []
    with pytest.raises(InputError, match="holds second channels .anna_0001.nii.gz, anna_0002.nii.gz, annabel_0001"):
        find_scans(tmp_path)
