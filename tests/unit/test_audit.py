import errno
import json
import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kits_dist import audit, prepare
from kits_dist.figures import contours
from kits_dist.imaging import continuity
from kits_dist.imaging.checks import Finding, check_case, format_findings
from kits_dist.imaging.datasets import CaseFiles, find_cases
from kits_dist.imaging.nifti import Geometry, kits_geometry, read_image, write_nifti
from kits_dist.synthetic.phantom import make_case
from kits_dist.utils.errors import InputError, JobFailed

KITS = Path(os.environ.get("KITS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
needs_kits = pytest.mark.skipif(
    not (KITS / "real_ct").is_dir(), reason=f"no real files in {KITS.name}/; set KITS_DATA to a folder of them"
)
SHAPE, SPACING = (10, 40, 48), (3.0, 0.8, 0.8)


class Scan:
    """A healthy case to spoil: a body with bone, a kidney and a tumor, drifting a little from slice to slice."""

    def __init__(self, number=0):
        z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
        body = ((y - 20) / 16) ** 2 + ((x - 24) / (19 + 0.2 * z)) ** 2 < 1
        self.image = np.where(body, 50, -1000).astype(np.int16)
        self.image[(np.abs(y - 30) < 3) & (np.abs(x - 24) < 3)] = 600
        self.label = np.zeros(SHAPE, np.uint8)
        self.label[2:8, 12:22, 8:16] = 1
        self.label[4:6, 12:16, 8:12] = 2
        self.image[self.label == 1] = 150
        self.image[self.label == 2] = 80
        self.image += np.random.default_rng(number).normal(0, 10, SHAPE).astype(np.int16)
        self.geometry = self.label_geometry = kits_geometry(SHAPE, SPACING)

    def write(self, root, name) -> CaseFiles:
        folder = root / name
        write_nifti(folder / "imaging.nii.gz", self.image, self.geometry)
        write_nifti(folder / "segmentation.nii.gz", self.label, self.label_geometry)
        return next(case for case in find_cases(root).cases if case.case_id == name)


def changed(**values):
    """{attribute: f(scan)} as one change of a scan."""
    return lambda scan: vars(scan).update({name: value(scan) for name, value in values.items()})


def placed(geometry: Geometry):
    return lambda scan: vars(scan).update(geometry=geometry, label_geometry=geometry)


def spaced(*spacing_mm):
    return placed(kits_geometry(SHAPE, spacing_mm))


def turned(degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return placed(Geometry(SHAPE, turn @ kits_geometry(SHAPE, SPACING).affine))


def picked(*slices):
    return changed(image=lambda s: s.image[list(slices)])


def test_a_healthy_case_has_no_finding_and_its_facts(tmp_path):
    scan = Scan()
    examined = check_case(scan.write(tmp_path, "case_00001"))
    assert examined.findings == []
    facts = examined.facts
    assert facts.shape == SHAPE and facts.spacing_mm == pytest.approx(SPACING) and facts.axis_codes == "IPL"
    assert facts.hu == (scan.image.min(), scan.image.max())
    # 6 x 10 x 8 voxels less 2 x 4 x 4 of tumor, of 3 x 0.8 x 0.8 mm
    assert facts.ml == pytest.approx({"kidney": 448 * 1.92e-3, "tumor": 32 * 1.92e-3, "cyst": 0})


@pytest.mark.parametrize(
    ("spoil", "severity", "words"),
    [
        (changed(image=lambda s: np.clip(s.image, 0, 255)), "warning", "HU from 0 to 255: already clipped"),
        (changed(image=lambda s: s.image + 1024), "warning", "stored with an offset, likely .1024; subtract it"),
        (changed(label=lambda s: np.roll(s.label, -12, 1)), "warning", "% of the label lie in air: does it belong"),
        (
            changed(image=lambda s: np.where(s.label > 0, 650, s.image)),
            "warning",
            "median 650 HU inside the label: does it belong to this CT",
        ),
        (changed(label=lambda s: np.where(s.label == 1, 0, s.label)), "warning", "no kidney voxel in the label"),
        (changed(label=lambda s: np.where(s.label == 2, 1, s.label)), "warning", "no tumor voxel in the label"),
        (changed(label=lambda s: np.where(s.label == 2, 3, s.label)), "note", "has a cyst"),
        (spaced(0.8, 3.0, 0.8), "warning", "a coronal series .0.80 x 3.00 x 0.80 mm"),
        (spaced(0.8, 0.8, 3.0), "warning", "a sagittal series"),
        (spaced(3.0, 0.8, 0.9), "note", "pixels are not square: 0.800 x 0.900 mm"),
        (spaced(9.0, 0.8, 0.8), "note", "spacing 9.00 x 0.80 x 0.80 mm lies outside KiTS's"),
        (placed(Geometry(SHAPE[::-1], np.eye(4))), "warning", "the affine is the identity: spacing and orientation"),
        (placed(Geometry(SHAPE[::-1], np.diag([0.8, 0.8, 3.0, 1]))), "note", "stored as RAS, read as IPL"),
        (turned(12), "note", "the grid is turned 12 degrees against the body's axes"),
        (picked(0, 1, 2, 3, 4, 0, 1, 2, 3, 4), "warning", "slices 5..9 repeat 0..4, voxel by voxel: a piece"),
        (picked(0, 1, 2, 3, 4, 4, 3, 2, 1, 0), "warning", "slices 5..9 repeat 4..0, voxel by voxel"),
        (
            picked(0, 1, 2, 3, 3, 5, 6, 6, 8, 9),
            "warning",
            "2 slices repeat earlier ones, the first: slice 4 is slice 3",
        ),
    ],
)
def test_each_thing_that_is_odd_is_said(tmp_path, spoil, severity, words):
    scan = Scan()
    spoil(scan)
    found = check_case(scan.write(tmp_path, "case_00001")).findings
    assert [f for f in found if f.severity == severity and re.search(words, f.message)], found


def without(name):
    return lambda folder: (folder / f"{name}.nii.gz").unlink()


def relabelled(change):
    def spoil(folder):
        scan = Scan(1)
        change(scan)
        write_nifti(folder / "segmentation.nii.gz", scan.label, scan.label_geometry)

    return spoil


def reimaged(image):
    return lambda folder: write_nifti(folder / "imaging.nii.gz", image, kits_geometry(SHAPE, SPACING))


UNUSABLE = [
    (without("imaging"), r"has no image file \(expected case_00001/imaging.nii.gz\)"),
    (without("segmentation"), r"has no label file \(expected case_00001/segmentation.nii.gz\)"),
    (
        relabelled(changed(label=lambda s: s.label[1:], label_geometry=lambda s: kits_geometry((9, 40, 48), SPACING))),
        "image is 10x40x48 but label is 9x40x48",
    ),
    (relabelled(spaced(3, 0.8, 0.9)), "image and label differ in affine"),
    (relabelled(changed(label=lambda s: s.label + 5)), r"label values \[5.0, 6.0, 7.0\] are not KiTS labels"),
    (relabelled(changed(label=lambda s: s.label * 0)), "the label is empty, no kidney, tumor or cyst"),
    (reimaged(np.full(SHAPE, -1000, np.int16)), "every voxel of the image is -1000"),
    (reimaged(np.full(SHAPE, np.nan, np.float32)), "imaging.nii.gz: 19200 voxels are NaN or infinite"),
    (lambda folder: (folder / "imaging.nii.gz").write_bytes(b""), "the file is empty"),
    (lambda folder: cut(folder / "imaging.nii.gz"), "imaging.nii.gz: damaged or truncated"),
]


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(("spoil", "words"), UNUSABLE)
def test_what_audit_calls_an_error_stops_prepare_with_the_same_words(tmp_path, capsys, spoil, words):
    for number in range(2):
        Scan(number).write(tmp_path / "raw", f"case_0000{number}")
    spoil(tmp_path / "raw" / "case_00001")
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


def test_two_scans_in_one_file_are_seen_and_single_ones_left_alone():
    scans = [make_case(0, i, (24, 64, 64)).image for i in range(4)]
    for scan in scans:
        assert continuity.describe(scan) == []
    for one, other in pairwise(scans):
        ((kind, said),) = continuity.describe(np.concatenate([one, other]))
        assert kind == "break" and "slices 0..23 and 24..47 do not continue each other" in said
    ((_, said),) = continuity.describe(np.concatenate([scans[0], scans[1][:10], scans[2]]))
    assert "slices 0..23 and 24..33 and 34..57 do not" in said
    kinds = {kind: said for kind, said in continuity.describe(np.concatenate([scans[0], scans[0]]))}
    assert set(kinds) == {"break", "repeat"} and "slices 24..47 repeat 0..23" in kinds["repeat"]
    ((_, said),) = continuity.describe(np.concatenate([scans[0], scans[0][::-1]]))
    assert "slices 24..47 repeat 23..0" in said  # a mirror continues itself; only the repeat gives it away


def test_blank_slices_are_neither_a_break_nor_a_repeat():
    scan = make_case(0, 0, (24, 64, 64)).image
    blank = np.full((6, 64, 64), -1024, scan.dtype)
    assert continuity.describe(np.concatenate([blank, scan[:12], blank, scan[12:], blank])) == []
    other = make_case(0, 1, (24, 64, 64)).image
    ((_, said),) = continuity.describe(np.concatenate([blank, scan, blank, other]))
    assert "slices 0..35 and 36..59 do not" in said
    assert continuity.describe(np.zeros((9, 8, 8), np.int16)) == []
    faint = np.tile(np.arange(8, dtype=np.float32), (12, 8, 1))
    faint[6:] += 4  # the only step, but of 4 HU
    assert continuity.find_discontinuities(continuity.block_means(faint)) == []
    assert continuity.describe(scan[:1]) == continuity.describe(scan[:3]) == []


def test_means_of_blocks_are_means():
    image = np.arange(3 * 5 * 70, dtype=np.int16).reshape(3, 5, 70) % 200
    blocks = continuity.block_means(image)
    assert blocks.shape == (3, 5, 32)
    assert blocks[1, 2, 0] == image[1, 2, :2].mean() and blocks[2, 4, 31] == image[2, 4, 67:].mean()


def test_the_same_scan_under_two_names_is_a_warning_of_both(tmp_path, capsys):
    for number in range(2):
        Scan(number).write(tmp_path, f"case_0000{number}")
    scan = Scan(1)
    scan.label = np.where(scan.label == 2, 1, scan.label)  # annotated otherwise: still the same patient
    scan.write(tmp_path, "case_00009")
    audit.main(audit.Args(source=str(tmp_path), workers=1))
    said = capsys.readouterr().out
    assert "warning  case_00001  the same CT as case_00009, voxel by voxel: one patient, kept on one side" in said
    assert "warning  case_00009  the same CT as case_00001" in said and "the same CT as case_00000" not in said


def test_three_hundred_cases_are_a_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "MAX_ROWS", 3)
    monkeypatch.setattr(audit, "MAX_THUMBS", 4)
    for number in range(9):
        scan = Scan(number)
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


def test_the_sheet_shows_the_slice_with_the_most_tumor_outlined(tmp_path):
    scan = Scan()
    scan.label[6, 12:20, 8:12] = 2  # 32 voxels; 16 in slices 4 and 5
    scan.label[3, 30:34, 30:34] = 1  # more foreground, but no tumor
    tumor, kidney = (
        (audit._look(scan.write(tmp_path, "case_00001")).picture == contours.COLORS[name]).all(axis=-1)
        for name in ("tumor", "kidney_and_mass")
    )
    rows, columns = np.flatnonzero(tumor.any(axis=1)), np.flatnonzero(kidney.any(axis=0))
    scale = contours.THUMBNAIL_PX / 48  # the slice is 40 x 48, centred: 12.5 px above it
    assert (rows.min(), rows.max()) == pytest.approx((12.5 + 12 * scale, 12.5 + 20 * scale), abs=2)
    assert columns.max() == pytest.approx(16 * scale, abs=2)
    scan.label[scan.label == 2] = 1
    green = (audit._look(scan.write(tmp_path, "case_00001")).picture == contours.COLORS["kidney_and_mass"]).all(axis=-1)
    assert np.flatnonzero(green.any(axis=0)).max() == pytest.approx(34 * scale, abs=2)


def test_lines_for_a_screen_are_few_and_the_worst_come_first():
    found = [Finding(f"case_{i}", "warning", "plane", f"tilted by {i}") for i in range(8)]
    found += [Finding("case_3", "note", "cyst", "has a cyst"), Finding("case_4", "note", "cyst", "has a cyst")]
    found += [Finding(f"case_{i}", "error", "unusable", "empty") for i in range(7)]
    lines = format_findings(found, limit=2)
    assert lines[:7] == [f"error    case_{i}  empty" for i in range(7)]
    assert lines[7:9] == ["warning  case_0  tilted by 0", "warning  case_1  tilted by 1"]
    assert lines[9:] == [
        "warning  ... and 6 more like this: case_2, case_3, case_4, case_5, case_6 and 1 more",
        "note     2 cases, as case_3: has a cyst",
    ]


def test_a_folder_that_cannot_be_written_is_said_before_any_work(tmp_path, capsys, monkeypatch):
    Scan().write(tmp_path / "raw", "case_00001")

    def refuse(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(audit.tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"raw: audit.json cannot be written there \(Read-only.*output=DIR"):
        audit.main(audit.Args(source=str(tmp_path / "raw"), workers=1))
    assert capsys.readouterr().out == ""
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written there"):
        audit.main(audit.Args(source=str(tmp_path / "raw"), output=str(tmp_path / "file"), workers=1))
    audit.main(audit.Args(source=str(tmp_path / "raw"), output=str(tmp_path / "new" / "folder"), workers=1))
    assert (tmp_path / "new" / "folder" / "audit.png").is_file() and not (tmp_path / "raw" / "audit.json").exists()


@pytest.mark.kits
@needs_kits
def test_a_real_scan_is_whole_and_begun_again_is_not():
    torso = read_image(KITS / "real_ct" / "torso_3mm_noncontrast.nii.gz").array
    for step in (1, 2, 3):  # 3, 6 and 9 mm
        assert continuity.describe(torso[::step]) == []
    for first in (30, 60, 90):
        again = np.concatenate([torso[:first], torso[20:]])
        kinds = {kind: said for kind, said in continuity.describe(again)}
        assert f"slices 0..{first - 1} and {first}..{first + 91} do not" in kinds["break"]
    ((kind, said),) = continuity.describe(np.concatenate([torso, torso[::-1]]))
    assert kind == "repeat" and "slices 112..223 repeat 111..0" in said
    ((kind, said),) = continuity.describe(np.concatenate([torso, torso[:, :, ::-1]]))
    assert kind == "break" and "slices 0..111 and 112..223" in said


@pytest.mark.kits
@needs_kits
def test_real_slices_with_true_labels_can_be_used(tmp_path, capsys):
    audit.main(audit.Args(source=str(KITS / "kits19_slices"), output=str(tmp_path), workers=1))
    report = json.loads((tmp_path / "audit.json").read_text())
    assert {f["kind"] for f in report["findings"] if f["severity"] == "warning"} == {"range"}  # they were clipped
    assert report["data"] == "kits" and "2 cases can be used, 0 cannot" in capsys.readouterr().out
