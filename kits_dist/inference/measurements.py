"""What a label map says of the patient, in ml and mm. Research use only, not a medical device."""

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from kits_dist.labels import BACKGROUND, KIDNEY, REGIONS, TUMOR
from kits_dist.utils.components import bounding_box, connected_components

TUMOR_ML = 0.1  # smaller pieces are in tumor_ml but are not counted as tumors: a ball of 0.1 ml is 5.8 mm wide
HORSESHOE = 0.2  # a piece with at least this share on either side of the midline is cut there
NOTE = (
    "Research use only, not a medical device. kidney_*_ml: label kidney, without tumor and cyst where the model "
    "tells them apart. tumors: pieces (26 neighbours) of at least 0.1 ml. tumor_diameter_mm: the largest distance "
    "between two points of the surface of the largest piece, in any direction (3D Feret diameter)."
)


def measure_label_map(
    labels: np.ndarray,
    spacing_mm: tuple[float, float, float],
    regions: tuple[str, ...] = tuple(REGIONS),
    midline: float | None = None,
) -> dict[str, float | int]:
    """Volumes, number and size of what a model of `regions` can find; what it cannot is absent.

    labels    (D, H, W) uint8 in our orientation: columns run from the patient's right to the left
    midline   column edge between right and left; default: the middle of the image
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    found: dict[str, float | int] = {}
    box = bounding_box(labels)
    inside = labels[box]
    if "kidney_and_mass" in regions:
        middle = (labels.shape[2] / 2 if midline is None else midline) - box[2].start
        right, left = (voxels * voxel_ml for voxels in _sides(inside, middle))
        found |= {"kidney_right_ml": round(right, 3), "kidney_left_ml": round(left, 3)}
    if "tumor" in regions:
        tumor = inside == TUMOR
        numbers, sizes = connected_components(tumor) if tumor.any() else (None, np.zeros(0, int))
        found["tumor_ml"] = round(float(sizes.sum()) * voxel_ml, 3)
        found["tumors"] = int((sizes * voxel_ml >= TUMOR_ML).sum())
        largest = numbers == 1 + sizes.argmax() if len(sizes) else None
        found["tumor_diameter_mm"] = round(diameter_mm(largest, spacing_mm), 2) if len(sizes) else 0.0
    return found


def diameter_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """The largest distance between two points of the surface of (D, H, W) bool, 0 where it is empty.

    Surface points are the centres of voxel faces, which are marching cubes' vertices on a binary mask, as in
    pyradiomics' Maximum3DDiameter. The two farthest points are corners of the convex hull.
    """
    d, h = np.nonzero(mask.any(axis=2))
    if not len(d):
        return 0.0
    first = mask[d, h].argmax(axis=1)  # of each row only the two ends can be corners
    last = mask.shape[2] - 1 - mask[d, h, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([d, h, first], 1), np.stack([d, h, last], 1)])
    faces = np.concatenate([np.eye(3), -np.eye(3)]) / 2
    points = (ends[:, None, :] + faces).reshape(-1, 3) * np.array(spacing_mm)
    return float(pdist(points[ConvexHull(points).vertices]).max())


def _sides(labels: np.ndarray, middle: float) -> tuple[int, int]:
    """Voxels of KIDNEY on the patient's right and left. A piece of kidney and masses goes whole to the side where most
    of it lies, so that a kidney pushed over the midline stays one; a horseshoe kidney is cut at it."""
    if not labels.size:
        return 0, 0
    numbers, sizes = connected_components(labels > BACKGROUND)
    kidney = labels == KIDNEY
    right = slice(0, int(np.clip(round(middle), 0, labels.shape[2])))

    def of_piece(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(chosen, minlength=len(sizes) + 1)[1:]

    share = of_piece(numbers[:, :, right].ravel()) / sizes
    total = of_piece(numbers[kidney])
    cut = of_piece(numbers[:, :, right][kidney[:, :, right]])
    on_right = np.where(share > 1 - HORSESHOE, total, np.where(share < HORSESHOE, 0, cut)).sum()
    return int(on_right), int(total.sum() - on_right)
