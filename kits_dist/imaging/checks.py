"""Can a case be used? Errors stop it from being prepared; warnings and notes are for a person to look at.

`check_case` is the one way from files to voxels: `audit` reports what it says, `prepare` stores what it returns, so
both stop at the same things with the same words.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal, NamedTuple

import nibabel as nib
import numpy as np

from kits_dist.imaging import continuity
from kits_dist.imaging.datasets import CaseFiles
from kits_dist.imaging.nifti import AXIS_CODES, Volume, read_image, read_labels, same_grid
from kits_dist.labels import LABELS
from kits_dist.utils.errors import InputError
from kits_dist.utils.text import listed

AIR_HU = -300  # below fat, above lung
SEVERITIES = ("error", "warning", "note")


class Finding(NamedTuple):
    case_id: str
    severity: Literal["error", "warning", "note"]
    kind: str  # the same for the same thing in other cases
    message: str


class ScanFacts(NamedTuple):
    shape: tuple[int, int, int]  # (D, H, W)
    spacing_mm: tuple[float, float, float]
    axis_codes: str  # as stored
    hu: tuple[float, float]  # lowest, highest
    ml: dict[str, float]  # kidney, tumor, cyst
    voxels_sha256: str


class CheckedCase(NamedTuple):
    image: Volume  # HU
    label: Volume
    facts: ScanFacts
    findings: list[Finding]  # warnings and notes


def check_case(files: CaseFiles) -> CheckedCase:
    """Read a case and look at it. Raises InputError naming the case and what makes it unusable."""
    image, label = _load(files)
    voxels = {name: int((label.array == value).sum()) for name, value in LABELS.items() if value}
    low, high = float(image.array.min()), float(image.array.max())
    where = f"({files.image.parent}/)"
    if low == high:
        raise InputError(f"{files.case_id}: every voxel of the image is {low:.0f} {where}.")
    if not any(voxels.values()):
        raise InputError(f"{files.case_id}: the label is empty, no kidney, tumor or cyst {where}.")
    voxel_ml = float(np.prod(image.spacing_mm)) / 1000
    facts = ScanFacts(
        image.array.shape,
        image.spacing_mm,
        image.geometry.axis_codes,
        (low, high),
        {name: n * voxel_ml for name, n in voxels.items()},
        voxels_sha256(image.array),
    )
    said = [*_of_grid(image), *_of_hu(image.array, label.array, low, high), *_of_label(voxels)]
    said += [("warning", kind, message) for kind, message in continuity.describe(image.array)]
    return CheckedCase(image, label, facts, [Finding(files.case_id, *one) for one in said])


def voxels_sha256(image: np.ndarray) -> str:
    """The scan itself: equal for the same voxels however they were compressed or ordered in the file."""
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).data).hexdigest()


def find_duplicates(voxels: dict[str, str]) -> list[Finding]:
    """{case: voxels_sha256} -> a warning for each case whose scan is there under another name too."""
    same: dict[str, list[str]] = defaultdict(list)
    for case_id, digest in sorted(voxels.items()):
        same[digest].append(case_id)
    return [
        Finding(
            case_id,
            "warning",
            "duplicate",
            f"the same CT as {listed([other for other in group if other != case_id])}, voxel by voxel: one patient, "
            "kept on one side of every split",
        )
        for group in same.values()
        if len(group) > 1
        for case_id in group
    ]


def unusable_finding(case_id: str, error: InputError) -> Finding:
    return Finding(case_id, "error", "unusable", str(error).removeprefix(f"{case_id}: "))


def format_findings(findings: Iterable[Finding], limit: int = 5) -> list[str]:
    """For a screen: every error; the first `limit` warnings of a kind; one line for each kind of note."""
    by_kind: dict[tuple[int, str], list[Finding]] = defaultdict(list)
    for finding in sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.kind, f.case_id)):
        by_kind[SEVERITIES.index(finding.severity), finding.kind].append(finding)
    lines = []
    for (severity, _), found in by_kind.items():
        if SEVERITIES[severity] == "note":
            which = found[0].case_id if len(found) == 1 else f"{len(found)} cases, as {found[0].case_id}"
            lines.append(f"note     {which}: {found[0].message}")
            continue
        shown = found if SEVERITIES[severity] == "error" else found[:limit]
        lines += [f"{f.severity:<8} {f.case_id}  {f.message}" for f in shown]
        if len(found) > len(shown):
            others = listed([f.case_id for f in found[limit:]])
            lines.append(f"{found[0].severity:<8} ... and {len(found) - limit} more like this: {others}")
    return lines


def _load(files: CaseFiles) -> tuple[Volume, Volume]:
    if files.missing:
        raise InputError(f"{files.case_id}: has no {files.missing}.")
    image, label = read_image(files.image), read_labels(files.label)
    where = f"({files.image.parent}/)"
    if image.geometry.shape != label.geometry.shape:
        shapes = ["x".join(map(str, v.geometry.shape)) for v in (image, label)]
        raise InputError(f"{files.case_id}: image is {shapes[0]} but label is {shapes[1]} {where}.")
    if not same_grid(image.geometry, label.geometry):
        affines = [np.round(v.geometry.affine, 4).tolist() for v in (image, label)]
        raise InputError(f"{files.case_id}: image and label differ in affine: {affines[0]} and {affines[1]} {where}.")
    return image, label


_Said = list[tuple[str, str, str]]  # severity, kind, message


def _of_grid(image: Volume) -> _Said:
    said: _Said = []
    d, h, w = image.spacing_mm
    spacing = f"{d:.2f} x {h:.2f} x {w:.2f} mm"
    matrix = image.geometry.affine[:3, :3]
    tilt = float(np.degrees(nib.affines.obliquity(image.geometry.affine).max()))
    if np.allclose(np.abs(matrix), np.eye(3)):
        said.append(("warning", "affine", "the affine is the identity: spacing and orientation have been lost"))
    if tilt > 1:
        said.append(("note", "oblique", f"the grid is turned {tilt:.0f} degrees against the body's axes"))
    for name, own, others in (("coronal", h, (d, w)), ("sagittal", w, (d, h))):
        if own > 1.2 * max(others):
            said.append(("warning", "plane", f"a {name} series ({spacing}): its axial slices are not square pixels"))
            break
    else:
        if abs(h - w) > 1e-3:
            said.append(("note", "pixels", f"pixels are not square: {h:.3f} x {w:.3f} mm"))
    if not 0.4 <= d <= 6 or not (0.3 <= h <= 1.5 and 0.3 <= w <= 1.5):
        said.append(("note", "spacing", f"spacing {spacing} lies outside KiTS's 0.5-5 x 0.44-1.04 mm"))
    if image.geometry.axis_codes != AXIS_CODES:
        said.append(("note", "axes", f"stored as {image.geometry.axis_codes}, read as {AXIS_CODES}"))
    return said


def _of_hu(image: np.ndarray, label: np.ndarray, low: float, high: float) -> _Said:
    """Is it CT in Hounsfield units, and does the label lie on an organ of it?"""
    said: _Said = []
    _, height, width = image.shape
    middle = image[:, height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
    if low >= -200 and float(np.median(middle)) > 700:  # soft tissue at 1,024 plus some 50 HU
        said.append(
            ("warning", "offset", f"HU from {low:.0f} to {high:.0f}: stored with an offset, likely +1024; subtract it")
        )
        return said  # nothing below can be judged
    if low > -200 or high < 200:
        said.append(("warning", "range", f"HU from {low:.0f} to {high:.0f}: already clipped, or not Hounsfield units"))
    inside = image[label > 0]
    air, median = float((inside < AIR_HU).mean()), float(np.median(inside))
    if air > 0.5:
        said.append(("warning", "air", f"{air:.0%} of the label lie in air: does it belong to this CT?"))
    elif not max(-20, low + 1) <= median <= 400:
        said.append(("warning", "organ", f"median {median:.0f} HU inside the label: does it belong to this CT?"))
    return said


def _of_label(voxels: dict[str, int]) -> _Said:
    said: _Said = []
    if not voxels["kidney"]:
        said.append(("warning", "no kidney", "no kidney voxel in the label"))
    if not voxels["tumor"]:
        said.append(("warning", "no tumor", "no tumor voxel in the label; every KiTS case has one"))
    if voxels["cyst"]:
        said.append(("note", "cyst", "has a cyst"))
    return said
