"""Measure a label map: volumes in ml, number and size of tumors. Research use only, not a medical device."""

import numpy as np

from kits_dist.labels import BACKGROUND, KIDNEY, REGIONS, TUMOR
from kits_dist.utils.components import bounding_box, connected_components

TUMOR_ML = 0.1  # smaller components are part of tumor_ml but not counted: a ball of 0.1 ml is 5.8 mm wide
HORSESHOE = 0.2  # a component with at least this share on either side of the midline is split there
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
    """Measure what a model of `regions` can predict; what it cannot is absent.

    labels    (D, H, W) uint8 in our orientation: columns run from the patient's right to the left
    midline   column edge between right and left; default: the middle of the image
    Returns kidney_right_ml and kidney_left_ml (kidney_and_mass); tumor_ml, tumors and tumor_diameter_mm (tumor).
    """
    box = bounding_box(labels)
    inside = labels[box]
    measured: dict[str, float | int] = {}
    if "kidney_and_mass" in regions:
        middle = (labels.shape[2] / 2 if midline is None else midline) - box[2].start
        right, left = _kidney_voxels(inside, middle)
        measured["kidney_right_ml"] = round(right * _voxel_ml(spacing_mm), 3)
        measured["kidney_left_ml"] = round(left * _voxel_ml(spacing_mm), 3)
    if "tumor" in regions:
        measured |= _measure_tumors(inside == TUMOR, spacing_mm)
    return measured


def _measure_tumors(tumor: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, float | int]:
    if not tumor.any():
        return {"tumor_ml": 0.0, "tumors": 0, "tumor_diameter_mm": 0.0}
    components, sizes = connected_components(tumor)
    volumes_ml = sizes * _voxel_ml(spacing_mm)
    largest = components == 1 + sizes.argmax()
    return {
        "tumor_ml": round(float(sizes.sum()) * _voxel_ml(spacing_mm), 3),
        "tumors": int((volumes_ml >= TUMOR_ML).sum()),
        "tumor_diameter_mm": round(diameter_mm(largest, spacing_mm), 2),
    }


def _voxel_ml(spacing_mm: tuple[float, float, float]) -> float:
    return float(np.prod(spacing_mm)) / 1000


def diameter_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Return the largest distance between two surface points of a (D, H, W) bool mask, 0 where it is empty.

    Surface points are the centers of voxel faces, which are the vertices of marching cubes on a binary mask, as in
    Maximum3DDiameter of pyradiomics. The two points farthest apart are corners of the convex hull.
    """
    from scipy.spatial import ConvexHull  # takes longer to import than a program takes to refuse an argument
    from scipy.spatial.distance import pdist

    d, h = np.nonzero(mask.any(axis=2))
    if not len(d):
        return 0.0
    # in each row only the two ends can be corners
    first = mask[d, h].argmax(axis=1)
    last = mask.shape[2] - 1 - mask[d, h, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([d, h, first], 1), np.stack([d, h, last], 1)])
    faces = np.concatenate([np.eye(3), -np.eye(3)]) / 2
    points = (ends[:, None, :] + faces).reshape(-1, 3) * np.array(spacing_mm)
    return float(pdist(points[ConvexHull(points).vertices]).max())


def _kidney_voxels(labels: np.ndarray, middle: float) -> tuple[int, int]:
    """Count voxels of KIDNEY on the patient's right and left.

    A component of kidney and masses counts for the side that holds most of it, so that a kidney pushed over the
    midline stays whole; a horseshoe kidney is split at the midline.
    """
    if not labels.size:
        return 0, 0
    components, sizes = connected_components(labels > BACKGROUND)
    kidney = labels == KIDNEY
    right = slice(0, int(np.clip(round(middle), 0, labels.shape[2])))

    def count(voxels: np.ndarray) -> np.ndarray:
        return np.bincount(voxels, minlength=len(sizes) + 1)[1:]

    share_right = count(components[:, :, right].ravel()) / sizes
    total = count(components[kidney])
    total_right = count(components[:, :, right][kidney[:, :, right]])
    right_voxels = np.select([share_right > 1 - HORSESHOE, share_right < HORSESHOE], [total, 0], total_right).sum()
    return int(right_voxels), int(total.sum() - right_voxels)
