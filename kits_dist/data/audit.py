"""Can a case be used? Errors stop it from being prepared; warnings and notes are for a person to look at."""

from typing import Literal, NamedTuple

import numpy as np

from kits_dist.data.sources import CaseFiles
from kits_dist.data.volume import Volume, read_image, read_labels, same_grid
from kits_dist.errors import InputError
from kits_dist.labels import CYST, KIDNEY, TUMOR

MEND = "Mend or remove the case, then run again; finished cases are kept."


class Finding(NamedTuple):
    case_id: str
    severity: Literal["error", "warning", "note"]
    message: str


class LabelledCase(NamedTuple):
    image: Volume  # HU
    label: Volume


def load_case(files: CaseFiles) -> LabelledCase:
    """Read both files and check that they belong together. Raises InputError naming the case and both values."""
    for kind in ("image", "label"):
        if getattr(files, kind) is None:
            raise InputError(f"{files.case_id}: has no {kind} file. {MEND}")
    image, label = read_image(files.image), read_labels(files.label)
    where = f"({files.image.parent}/)"
    if image.geometry.shape != label.geometry.shape:
        shapes = ["x".join(map(str, v.geometry.shape)) for v in (image, label)]
        raise InputError(f"{files.case_id}: image is {shapes[0]} but label is {shapes[1]} {where}. {MEND}")
    if not same_grid(image.geometry, label.geometry):
        affines = [np.round(v.geometry.affine, 4).tolist() for v in (image, label)]
        raise InputError(
            f"{files.case_id}: image and label differ in affine: {affines[0]} and {affines[1]} {where}. {MEND}"
        )
    return LabelledCase(image, label)


def audit_case(files: CaseFiles) -> list[Finding]:
    """Everything worth saying about one case; empty when it is as expected."""
    try:
        image, label = load_case(files)
    except InputError as error:
        return [Finding(files.case_id, "error", str(error).removeprefix(f"{files.case_id}: "))]
    found: list[tuple[Literal["warning", "note"], str]] = []
    present = set(np.unique(label.array).tolist())
    if KIDNEY not in present:
        found.append(("warning", "no kidney voxel in the label"))
    if TUMOR not in present:
        found.append(("warning", "no tumor voxel in the label; every KiTS case has one"))
    if CYST in present:
        found.append(("note", "has a cyst"))
    low, high = int(image.array.min()), int(image.array.max())
    if low > -200 or high < 200:
        found.append(("warning", f"HU from {low} to {high}: already clipped, or not in Hounsfield units"))
    d, h, w = image.spacing_mm
    if not 0.4 <= d <= 6 or not (0.3 <= h <= 1.5 and 0.3 <= w <= 1.5):
        found.append(("note", f"spacing {d:.2f} x {h:.2f} x {w:.2f} mm lies outside KiTS's 0.5-5 x 0.44-1.04 mm"))
    if abs(h - w) > 1e-3:
        found.append(("note", f"pixels are not square: {h:.3f} x {w:.3f} mm"))
    if image.geometry.axis_codes != "IPL":
        found.append(("note", f"stored as {image.geometry.axis_codes}, read as IPL"))
    foreground = np.isin(label.array, (KIDNEY, TUMOR, CYST))
    if foreground.any() and not -20 <= float(np.median(image.array[foreground])) <= 400:
        found.append(
            (
                "warning",
                f"median {np.median(image.array[foreground]):.0f} HU inside the label: does it belong to this CT?",
            )
        )
    return [Finding(files.case_id, severity, message) for severity, message in found]
