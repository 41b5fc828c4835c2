"""Check whether a case can be used for training: errors exclude it, warnings and notes are for a person to review.

`check_case` is the only path from files to voxels. `audit` reports its findings and `prepare` stores its arrays, so
both stop at the same problems with the same messages. What can be said of a CT without labels says `check_image`, to
`predict` as well; `evaluate` repeats what `prepare` has recorded of the intensities of the cases that it scores.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from nibabel.affines import obliquity

from kits_dist.imaging.continuity import check_slice_order
from kits_dist.imaging.datasets import CaseFiles
from kits_dist.imaging.nifti import AXIS_CODES, Volume, read_image, read_labels, same_grid
from kits_dist.labels import LABELS
from kits_dist.utils.errors import InputError
from kits_dist.utils.text import listed

AIR_HU = -300  # below fat, above lung
# Median of what is no air in the middle of a scan: 3 to 66 HU in real scans and phantoms, fatty ones below, enhanced
# ones above. A shift by 200 HU leaves this range.
TISSUE_HU = (-130, 180)
NEAR_AIR_HU = (-1070, -930)
INTENSITY = ("offset", "range", "scale")  # kinds of remarks of `check_intensity`
SEVERITIES = ("error", "warning", "note")
Remark = tuple[str, str, str]  # severity, kind, message


class Finding(NamedTuple):
    """One problem or peculiarity of one case."""

    case_id: str
    severity: str  # one of SEVERITIES
    kind: str  # short name, the same for the same problem in other cases
    message: str


class ScanFacts(NamedTuple):
    """Measurements of a case that can be used."""

    shape: tuple[int, int, int]  # (D, H, W)
    spacing_mm: tuple[float, float, float]
    axis_codes: str  # as stored
    hu: tuple[float, float]  # lowest, highest
    ml: dict[str, float]  # kidney, tumor, cyst
    voxels_sha256: str


class CheckedCase(NamedTuple):
    """The arrays of a case that can be used, with its measurements and findings."""

    image: Volume  # HU
    label: Volume
    facts: ScanFacts
    findings: list[Finding]  # warnings and notes


def check_case(files: CaseFiles) -> CheckedCase:
    """Read a case and check it. Raises InputError naming the case and what makes it unusable."""
    image, label = _load(files)
    assert files.image is not None  # or _load would have raised
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
        {name: count * voxel_ml for name, count in voxels.items()},
        voxels_sha256(image.array),
    )
    remarks = check_image(image)
    if not {"offset", "scale"} & {kind for _, kind, _ in remarks}:  # the thresholds of the labels are in HU
        remarks += _check_labeled_hu(image.array, label.array, low)
    remarks += _check_labels(voxels)
    return CheckedCase(image, label, facts, [Finding(files.case_id, *remark) for remark in remarks])


def check_image(image: Volume) -> list[Remark]:
    """Return what is wrong or peculiar with a CT, without its labels: grid, intensities and order of slices."""
    order = [("warning", kind, message) for kind, message in check_slice_order(image.array)]
    return [*_check_grid(image), *check_intensity(image.array), *order]


def check_intensity(image: np.ndarray) -> list[Remark]:
    """Return at most one warning: that the voxels are not Hounsfield units, and how it shows.

    image   (D, H, W)

    Air is -1000 HU and soft tissue about 50, in any scan of a body. So 0..1, 0..255, an offset, another scale and MRI
    show; a shift below 100 HU may not.
    """
    low, high = float(image.min()), float(image.max())
    said = f"HU from {low:.6g} to {high:.6g}"
    step = 2 if min(image.shape[1:]) >= 256 else 1
    image = image[:, ::step, ::step]  # a quarter of a large scan tells as much
    _, height, width = image.shape
    middle = image[:, height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
    tissue = middle[middle > -500]  # not lung
    median = float(np.median(tissue)) if tissue.size else -np.inf
    if 800 < median < 1350:  # soft tissue is near 1,074 in a scan stored with the usual offset
        return [("warning", "offset", f"{said}: stored with an offset, likely +1024; subtract it")]
    if low > -200 or high < 200:
        return [("warning", "range", f"{said}: already clipped, or not Hounsfield units")]

    where = "not Hounsfield units, or shifted or scaled"
    if not TISSUE_HU[0] <= median <= TISSUE_HU[1]:
        found = f"has a median of {median:.0f}" if tissue.size else "is nowhere in the middle of the scan"
        return [("warning", "scale", f"{said}: soft tissue, about 50 HU, {found}: {where}")]
    bright = np.count_nonzero(image > 700)
    if bright > 0.1 * image.size:
        return [("warning", "scale", f"{said}: {bright / image.size:.0%} is as bright as bone: {where}, or inverted")]
    dark = np.count_nonzero(image < AIR_HU)
    near = np.count_nonzero((image > NEAR_AIR_HU[0]) & (image < NEAR_AIR_HU[1]))
    # lungs are lighter than air, padding around a round field of view is darker: a small share of air is enough
    if dark > 0.05 * image.size and near < 0.03 * dark:
        return [("warning", "scale", f"{said}: no air at -1000 HU, but {dark / image.size:.0%} is dark: {where}")]
    return []


def voxels_sha256(image: np.ndarray) -> str:
    """Hash the voxels alone: equal for the same scan, however it was compressed or ordered in its file."""
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).data).hexdigest()


def find_duplicates(voxels: dict[str, str]) -> list[Finding]:
    """Return a warning for each case whose scan also exists under another case id.

    voxels   {case id: voxels_sha256}
    """
    same: dict[str, list[str]] = defaultdict(list)
    for case_id, digest in sorted(voxels.items()):
        same[digest].append(case_id)

    findings = []
    for group in same.values():
        for case_id in group if len(group) > 1 else ():
            others = listed([other for other in group if other != case_id])
            message = f"the same CT as {others}, voxel by voxel: one patient, kept on one side of every split"
            findings.append(Finding(case_id, "warning", "duplicate", message))
    return findings


def unusable_finding(case_id: str, error: InputError) -> Finding:
    """Turn what `check_case` raised into a finding."""
    return Finding(case_id, "error", "unusable", str(error).removeprefix(f"{case_id}: "))


def format_findings(findings: Iterable[Finding], limit: int = 5) -> list[str]:
    """Format findings for a terminal: every error, the first `limit` warnings of a kind, one line per kind of note."""
    by_kind: dict[tuple[int, str], list[Finding]] = defaultdict(list)
    for finding in sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.kind, f.case_id)):
        by_kind[SEVERITIES.index(finding.severity), finding.kind].append(finding)

    lines = []
    for group in by_kind.values():
        first = group[0]
        if first.severity == "note":
            which = first.case_id if len(group) == 1 else f"{len(group)} cases, e.g. {first.case_id}"
            lines.append(f"note     {which}: {first.message}")
            continue
        shown = group if first.severity == "error" else group[:limit]
        lines += [f"{f.severity:<8} {f.case_id}  {f.message}" for f in shown]
        if len(group) > len(shown):
            others = listed([f.case_id for f in group[limit:]])
            lines.append(f"{first.severity:<8} ... and {len(group) - limit} more like this: {others}")
    return lines


def _load(files: CaseFiles) -> tuple[Volume, Volume]:
    if files.missing or files.image is None or files.label is None:
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


def _check_grid(image: Volume) -> Iterator[Remark]:
    d, h, w = image.spacing_mm
    spacing = f"{d:.2f} x {h:.2f} x {w:.2f} mm"
    affine = image.geometry.affine
    tilt = float(np.degrees(obliquity(affine).max()))
    if np.allclose(np.abs(affine[:3, :3]), np.eye(3)):
        yield "warning", "affine", "the affine is the identity: spacing and orientation have been lost"
    if tilt > 1:
        yield "note", "oblique", f"the grid is rotated {tilt:.0f} degrees from the patient axes"

    # Slices thicker than both other spacings tell along which axis the scan was reconstructed.
    if h > 1.2 * max(d, w):
        yield "warning", "plane", f"a coronal series ({spacing}): its axial slices are not square pixels"
    elif w > 1.2 * max(d, h):
        yield "warning", "plane", f"a sagittal series ({spacing}): its axial slices are not square pixels"
    elif abs(h - w) > 1e-3:
        yield "note", "pixels", f"pixels are not square: {h:.3f} x {w:.3f} mm"

    if not 0.4 <= d <= 6 or not (0.3 <= h <= 1.5 and 0.3 <= w <= 1.5):
        yield "note", "spacing", f"spacing {spacing} lies outside KiTS's 0.5-5 x 0.44-1.04 mm"
    if image.geometry.axis_codes != AXIS_CODES:
        yield "note", "axes", f"stored as {image.geometry.axis_codes}, read as {AXIS_CODES}"


def _check_labeled_hu(image: np.ndarray, label: np.ndarray, low: float) -> Iterator[Remark]:
    """Check that the label covers an organ in the image."""
    inside = image[label > 0]
    air, median = float((inside < AIR_HU).mean()), float(np.median(inside))
    if air > 0.5:
        yield "warning", "air", f"{air:.0%} of the label is in air: does it belong to this CT?"
    elif not max(-20, low + 1) <= median <= 400:
        yield "warning", "organ", f"median {median:.0f} HU inside the label: does it belong to this CT?"


def _check_labels(voxels: dict[str, int]) -> Iterator[Remark]:
    if not voxels["kidney"]:
        yield "warning", "no kidney", "no kidney voxel in the label"
    if not voxels["tumor"]:
        yield "warning", "no tumor", "no tumor voxel in the label; every KiTS case has one"
    if voxels["cyst"]:
        yield "note", "cyst", "has a cyst"
