"""The program: it stops at what stops `prepare`, and its table, JSON and thumbnails show every case."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kits_dist import audit, prepare
from kits_dist.figures import contours
from kits_dist.imaging.nifti import kits_geometry, write_nifti
from kits_dist.utils.errors import InputError, JobFailed
from tests.helpers.healthy_scan import SHAPE, SPACING, HealthyScan

KITS = Path(os.environ.get("KITS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
needs_kits = pytest.mark.skipif(
    not (KITS / "real_ct").is_dir(), reason=f"no real files in {KITS.name}/; set KITS_DATA to a folder of them"
)


def without(name):
    return lambda folder: (folder / f"{name}.nii.gz").unlink()


def relabeled(change):
    """Replace the label file; `change` edits the label of a healthy scan, or sets the geometry it is stored with."""

    def damage(folder):
        scan = HealthyScan(1)
        change(scan)
        write_nifti(folder / "segmentation.nii.gz", scan.label, scan.label_geometry)

    return damage


def changed(**values):
    """Change attributes of a scan: {name: function of the scan}."""
    return lambda scan: vars(scan).update({name: value(scan) for name, value in values.items()})


def reimaged(image):
    return lambda folder: write_nifti(folder / "imaging.nii.gz", image, kits_geometry(SHAPE, SPACING))


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


UNUSABLE = [
    (without("imaging"), r"has no image file \(expected case_00001/imaging.nii.gz\)"),
    (without("segmentation"), r"has no label file \(expected case_00001/segmentation.nii.gz\)"),
    (
        relabeled(changed(label=lambda s: s.label[1:], label_geometry=lambda s: kits_geometry((9, 40, 48), SPACING))),
        "image is 10x40x48 but label is 9x40x48",
    ),
    (
        relabeled(changed(label_geometry=lambda s: kits_geometry(SHAPE, (3, 0.8, 0.9)))),
        "image and label differ in affine",
    ),
    (relabeled(changed(label=lambda s: s.label + 5)), r"label values \[5.0, 6.0, 7.0\] are not KiTS labels"),
    (relabeled(changed(label=lambda s: s.label * 0)), "the label is empty, no kidney, tumor or cyst"),
    (reimaged(np.full(SHAPE, -1000, np.int16)), "every voxel of the image is -1000"),
    (reimaged(np.full(SHAPE, np.nan, np.float32)), "imaging.nii.gz: 19200 voxels are NaN or infinite"),
    (lambda folder: (folder / "imaging.nii.gz").write_bytes(b""), "the file is empty"),
    (lambda folder: cut(folder / "imaging.nii.gz"), "imaging.nii.gz: damaged or truncated"),
]


@pytest.mark.parametrize(("damage", "words"), UNUSABLE)
def test_what_audit_calls_an_error_stops_prepare_with_the_same_message(tmp_path, capsys, damage, words):
    for number in range(2):
        HealthyScan(number).write(tmp_path / "raw", f"case_0000{number}")
    damage(tmp_path / "raw" / "case_00001")
    said = []
    for main, args in (
        (audit.main, audit.Args(source=str(tmp_path / "raw"), workers=1)),
        (prepare.main, prepare.Args(source=str(tmp_path / "raw"), store=str(tmp_path / "store"), workers=1)),
    ):
        with pytest.raises(JobFailed, match=r"1 of 2 cases .*: case_00001\. .*skip=\[case_00001\]"):
            main(args)
        said.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("error ")])
    assert said[0] == said[1] and len(said[0]) == 1
    assert re.match(f"error    case_00001  .*{words}", said[0][0])
    report = json.loads((tmp_path / "raw" / "audit.json").read_text())
    assert [row["worst"] for row in report["cases"]] == ["ok", "error"]
    assert report["findings"][-1]["message"] == said[0][0].removeprefix("error    case_00001  ")


def test_a_scan_stored_under_two_case_ids_is_a_warning_for_both(tmp_path, capsys):
    for number in range(2):
        HealthyScan(number).write(tmp_path, f"case_0000{number}")
    scan = HealthyScan(1)
    scan.label = np.where(scan.label == 2, 1, scan.label)  # annotated otherwise: still the same patient
    scan.write(tmp_path, "case_00009")
    audit.main(audit.Args(source=str(tmp_path), workers=1))
    said = capsys.readouterr().out
    assert "warning  case_00001  the same CT as case_00009, voxel by voxel: one patient, kept on one side" in said
    assert "warning  case_00009  the same CT as case_00001" in said and "the same CT as case_00000" not in said


def test_many_cases_fit_a_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "MAX_ROWS", 3)
    monkeypatch.setattr(audit, "MAX_THUMBS", 4)
    for number in range(9):
        scan = HealthyScan(number)
        if number >= 7:
            scan.label[scan.label == 2] = 1
        scan.write(tmp_path, f"case_0000{number}")
    (tmp_path / "case_00008" / "imaging.nii.gz").unlink()
    with pytest.raises(JobFailed):
        audit.main(audit.Args(source=str(tmp_path), output=str(tmp_path / "out"), workers=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "9 cases, KiTS19 or KiTS23 layout, data: kits"
    assert [line.split()[0] for line in lines[1:5]] == ["case", "case_00008", "case_00007", "case_00000"]
    assert re.fullmatch(r"case_00007 +10 +40x48 +3.00 0.80 0.80 +IPL +-\d+\.\.\d+ +0.9 +0.0 +0.0 +warning", lines[3])
    assert lines[5] == "... and 6 more, in audit.json"
    assert lines[6].startswith("8 readable: 80 slices, 10 to 10 a case, 3.00 to 3.00 mm apart; pixels 0.80 to 0.80 mm")
    report = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert len(report["cases"]) == 9 and report["cases"][0]["shape"] == list(SHAPE)
    sheet = np.asarray(Image.open(tmp_path / "out" / "audit.png"))
    assert sheet.shape[1] == 4 * (contours.THUMBNAIL_PX + 6) + 6 and sheet.shape[0] < 2 * contours.THUMBNAIL_PX
    frames = [tuple(sheet[39, 6 + i * (contours.THUMBNAIL_PX + 6) + 70]) for i in range(4)]
    assert frames == [(230, 60, 50), (240, 170, 40), (60, 60, 60), (60, 60, 60)]  # error, warning, nothing


def thumbnail_of(scan: HealthyScan, root: Path) -> np.ndarray:
    return audit._audit(scan.write(root, "case_00001"))[1]


def test_a_thumbnail_shows_the_slice_with_the_most_tumor_outlined(tmp_path):
    scan = HealthyScan()
    scan.label[6, 12:20, 8:12] = 2  # 32 voxels; 16 in slices 4 and 5
    scan.label[3, 30:34, 30:34] = 1  # more foreground, but no tumor
    tumor, kidney = (
        (thumbnail_of(scan, tmp_path) == contours.COLORS[name]).all(axis=-1) for name in ("tumor", "kidney_and_mass")
    )
    rows, columns = np.flatnonzero(tumor.any(axis=1)), np.flatnonzero(kidney.any(axis=0))
    scale = contours.THUMBNAIL_PX / 48  # the slice is 40 x 48, centered: 12.5 px above it
    assert (rows.min(), rows.max()) == pytest.approx((12.5 + 12 * scale, 12.5 + 20 * scale), abs=2)
    assert columns.max() == pytest.approx(16 * scale, abs=2)
    scan.label[scan.label == 2] = 1
    green = (thumbnail_of(scan, tmp_path) == contours.COLORS["kidney_and_mass"]).all(axis=-1)
    assert np.flatnonzero(green.any(axis=0)).max() == pytest.approx(34 * scale, abs=2)


def test_a_folder_that_cannot_be_written_is_reported_before_any_work(tmp_path, capsys, monkeypatch):
    HealthyScan().write(tmp_path / "raw", "case_00001")

    def refuse(path, content):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(InputError, match=r"output=.*raw cannot be written to \(Read-only.*Name another folder"):
        audit.main(audit.Args(source=str(tmp_path / "raw"), output=str(tmp_path / "raw"), workers=1))
    assert capsys.readouterr().out == ""
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        audit.main(audit.Args(source=str(tmp_path / "raw"), output=str(tmp_path / "file"), workers=1))
    audit.main(audit.Args(source=str(tmp_path / "raw"), output=str(tmp_path / "new" / "folder"), workers=1))
    assert (tmp_path / "new" / "folder" / "audit.png").is_file() and not (tmp_path / "raw" / "audit.json").exists()


def test_the_report_of_a_read_only_data_set_goes_elsewhere(tmp_path, capsys, monkeypatch):
    HealthyScan().write(tmp_path / "raw", "case_00001")
    monkeypatch.chdir(tmp_path)
    write = Path.write_bytes

    def refuse(path, content):
        if path.is_relative_to(tmp_path / "raw"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    audit.main(audit.Args(source=str(tmp_path / "raw"), workers=1))
    assert (tmp_path / "audit" / "audit.json").is_file() and not (tmp_path / "raw" / "audit.json").exists()
    assert f"raw cannot be written to: the report goes to {tmp_path / 'audit'}" in capsys.readouterr().out


@pytest.mark.kits
@needs_kits
def test_real_slices_with_true_labels_can_be_used(tmp_path, capsys):
    audit.main(audit.Args(source=str(KITS / "kits19_slices"), output=str(tmp_path), workers=1))
    report = json.loads((tmp_path / "audit.json").read_text())
    assert {f["kind"] for f in report["findings"] if f["severity"] == "warning"} == {"range"}  # they were clipped
    assert report["data"] == "kits" and "2 cases can be used, 0 cannot" in capsys.readouterr().out
