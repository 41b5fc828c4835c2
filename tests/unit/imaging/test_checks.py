"""Each problem of a case is reported once, with its severity."""

import re

import numpy as np
import pytest

from kits_dist.imaging.checks import Finding, check_case, check_image, check_intensity, format_findings
from kits_dist.imaging.nifti import Geometry, kits_geometry, read_image
from tests.helpers.healthy_scan import SHAPE, SPACING, HealthyScan


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


def test_a_healthy_case_has_no_findings_and_is_measured(tmp_path):
    scan = HealthyScan()
    examined = check_case(scan.write(tmp_path, "case_00001"))
    assert examined.findings == []
    facts = examined.facts
    assert facts.shape == SHAPE and facts.spacing_mm == pytest.approx(SPACING) and facts.axis_codes == "IPL"
    assert facts.hu == (scan.image.min(), scan.image.max())
    # 6 x 10 x 8 voxels less 2 x 4 x 4 of tumor, of 3 x 0.8 x 0.8 mm
    assert facts.ml == pytest.approx({"kidney": 448 * 1.92e-3, "tumor": 32 * 1.92e-3, "cyst": 0})


@pytest.mark.parametrize(
    ("damage", "severity", "words"),
    [
        (changed(image=lambda s: np.clip(s.image, 0, 255)), "warning", "HU from 0 to 255: already clipped"),
        (changed(image=lambda s: s.image + 1024), "warning", "stored with an offset, likely .1024; subtract it"),
        (changed(label=lambda s: np.roll(s.label, -12, 1)), "warning", "% of the label is in air: does it belong"),
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
        (turned(12), "note", "the grid is rotated 12 degrees from the patient axes"),
        (picked(0, 1, 2, 3, 4, 0, 1, 2, 3, 4), "warning", "slices 5..9 repeat 0..4, voxel by voxel: part of"),
        (picked(0, 1, 2, 3, 4, 4, 3, 2, 1, 0), "warning", "slices 5..9 repeat 4..0, voxel by voxel"),
        (
            picked(0, 1, 2, 3, 3, 5, 6, 6, 8, 9),
            "warning",
            "2 slices repeat earlier ones, the first: slice 4 is slice 3",
        ),
    ],
)
def test_each_problem_is_reported(tmp_path, damage, severity, words):
    scan = HealthyScan()
    damage(scan)
    found = check_case(scan.write(tmp_path, "case_00001")).findings
    assert [f for f in found if f.severity == severity and re.search(words, f.message)], found


def inside(hu):
    """The body alone, with a little gas, whose edges are lighter than air."""
    body = hu[:, 10:33, 12:36].copy()
    body[:, 8, 8:12] = -850
    return body


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda hu: hu, None),
        (inside, None),
        (lambda hu: inside(hu) + 200, "scale"),
        (lambda hu: inside(hu) - 200, "scale"),
        (lambda hu: hu[:, 3:37], None),  # a narrow field of view holds little air
        (lambda hu: np.where(np.indices(hu.shape)[1] < 4, -2048, hu), None),  # padding around a round one
        (lambda hu: np.where(hu < -500, -850, hu)[:, 2:-2], "scale"),  # the lightest voxels are those of a lung
        (lambda hu: hu + 1024, "offset"),
        (lambda hu: np.maximum(hu + 1024, 0), "offset"),
        (lambda hu: hu + 4096, "range"),
        (lambda hu: hu + 200, "scale"),
        (lambda hu: hu - 200, "scale"),
        (lambda hu: hu - 1024, "range"),  # the intercept was added twice
        (lambda hu: np.where(hu == hu.max(), 3000, hu) - 1024, "scale"),  # and metal is still bright
        (lambda hu: hu + 100, "scale"),
        (lambda hu: hu * 2, "scale"),
        (lambda hu: hu * 0.5, "scale"),
        (lambda hu: hu * 10, "scale"),
        (lambda hu: -hu, "scale"),
        (lambda hu: hu / 1000, "range"),
        (lambda hu: np.clip((hu + 160) / 400, 0, 1), "range"),
        (lambda hu: np.clip(hu + 200, 0, 400), "range"),
        (lambda hu: (hu - hu.mean()) / hu.std(), "range"),
        (lambda hu: hu.astype(np.uint16).astype(np.float32), "range"),  # wrapped around
        (lambda hu: np.clip(hu, -500, 500), "scale"),
        (lambda hu: np.zeros_like(hu), "range"),
    ],
)
def test_what_is_not_hu_is_said_once(change, kind):
    hu = HealthyScan().image.astype(np.float32)
    found = check_intensity(change(hu))
    assert [(severity, name) for severity, name, _ in found] == ([("warning", kind)] if kind else [])


def test_audit_and_predict_judge_a_ct_alike(tmp_path):
    scan = HealthyScan()
    scan.image = scan.image + 1024
    case = scan.write(tmp_path, "case_00001")
    remarks = check_image(read_image(case.image))
    assert [kind for _, kind, _ in remarks] == ["offset"]
    assert check_case(case).findings == [Finding("case_00001", *remark) for remark in remarks]


def test_findings_are_shortened_for_a_terminal_and_the_worst_come_first():
    found = [Finding(f"case_{i}", "warning", "plane", f"tilted by {i}") for i in range(8)]
    found += [Finding("case_3", "note", "cyst", "has a cyst"), Finding("case_4", "note", "cyst", "has a cyst")]
    found += [Finding(f"case_{i}", "error", "unusable", "empty") for i in range(7)]
    lines = format_findings(found, limit=2)
    assert lines[:7] == [f"error    case_{i}  empty" for i in range(7)]
    assert lines[7:9] == ["warning  case_0  tilted by 0", "warning  case_1  tilted by 1"]
    assert lines[9:] == [
        "warning  ... and 6 more like this: case_2, case_3, case_4, case_5, case_6 and 1 more",
        "note     2 cases, e.g. case_3: has a cyst",
    ]
