"""Transplant lesions of one patient to the kidneys of another: cut out, resample, rotate and place them.

A place is valid when the lesion is entirely inside the grid, partly in kidney and touching what remains of it, separate
from every other lesion, and otherwise only where there is room for it (`phantom.room_for_lesions`).
"""

from typing import NamedTuple

import cc3d
import numpy as np
from numpy.random import Generator
from scipy import ndimage

from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.shapes import Vec3, distance_mm, rotation, vec3
from kits_dist.utils.components import bounding_box

SMALLEST_ML, LARGEST_ML = 0.2, 200.0  # smaller ones are specks of annotation, larger ones find no room
GROWN_ML, GROW_P = 250.0, 0.5  # largest size that a tumor is enlarged to (few of 350 ml find a place), and how many are
PLACES = 60  # tried for each lesion
MIN_IN_KIDNEY = 0.05  # share of the lesion; KiTS's are exophytic up to hanging on by a small base
MAX_OF_KIDNEY = 0.25  # share of the patient's kidney voxels that a lesion may replace: half a kidney of two
WINDOW_MM = 15.0  # the kidney's surface normal is estimated within this distance


class DonorLesion(NamedTuple):
    """A connected tumor or cyst, cut out with a voxel of margin."""

    value: int  # TUMOR or CYST
    mask: np.ndarray  # (d, h, w) bool
    spacing_mm: Vec3

    @property
    def ml(self) -> float:
        """Return the volume."""
        return float(self.mask.sum() * np.prod(self.spacing_mm) / 1000)


class Placement(NamedTuple):
    """Where and how a lesion was added."""

    value: int
    voxels: int
    center: tuple[int, int, int]  # voxel of the grid
    turn_deg: Vec3  # about z, y, x


def transplantable_lesions(label: np.ndarray, spacing_mm: Vec3) -> list[DonorLesion]:
    """Return the tumors and cysts of an annotation (D, H, W) that can be moved, in a fixed order.

    They are of a suitable size and not cut by the end of the scan, where their shape is unknown.
    """
    pieces = cc3d.connected_components(np.where(label >= TUMOR, label, 0), connectivity=26)
    about = cc3d.statistics(pieces)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    found = []
    for piece, (voxels, box) in enumerate(zip(about["voxel_counts"], about["bounding_boxes"], strict=True)):
        cut = any(s.start == 0 or s.stop == n for s, n in zip(box, label.shape, strict=True))
        if piece and not cut and SMALLEST_ML <= voxels * voxel_ml <= LARGEST_ML:
            mask = pieces[box] == piece
            found.append(DonorLesion(int(label[box][mask][0]), np.pad(mask, 1), spacing_mm))
    return found


def grow(lesion: DonorLesion, rng: Generator) -> DonorLesion:
    """Enlarge one tumor in two, up to GROWN_ML, alike on the scale of logarithms; others are returned as they are.

    Half of the tumors of KiTS21 have less than 33 ml, and large ones fill most slices with tumor: of 34 annotated cases
    5 alone had more than 80 ml, and networks trained on these missed large tumors.
    """
    grows, share = rng.random() < GROW_P, rng.random()
    if not grows or lesion.value != TUMOR or lesion.ml >= GROWN_ML:
        return lesion
    factor = (GROWN_ML / lesion.ml) ** (share / 3)  # of its lengths
    return lesion._replace(spacing_mm=vec3(step * factor for step in lesion.spacing_mm))


def transplant(
    label: np.ndarray, spacing_mm: Vec3, lesion: DonorLesion, room: np.ndarray, rng: Generator
) -> tuple[np.ndarray, Placement] | None:
    """Add the lesion to one of the kidneys of `label` (D, H, W). Returns None where no place was found.

    room   (D, H, W) bool: where a lesion may extend outside the kidney
    """
    turn_deg = vec3(float(degrees) for degrees in rng.uniform(-180.0, 180.0, 3))
    mask = resample_lesion(lesion, spacing_mm, rotation(*turn_deg))
    grown = ndimage.binary_dilation(mask, np.ones((3, 3, 3)))
    box = bounding_box(label)
    annotated = np.pad(label[box], 1)
    kidney = annotated == KIDNEY
    outer = kidney & ~np.asarray(ndimage.binary_erosion(annotated > 0), bool)
    surface = np.argwhere(outer) - 1 + [part.start for part in box]
    if not len(surface):
        return None
    radius_mm = (lesion.ml * 750.0 / np.pi) ** (1 / 3)
    most = MAX_OF_KIDNEY * np.count_nonzero(kidney)
    half = np.array(mask.shape) // 2
    for start in surface[rng.integers(0, len(surface), PLACES)]:
        depth_mm = radius_mm * rng.uniform(-0.6, 0.5)  # from half embedded to exophytic
        center = np.rint(start + _outward(label, spacing_mm, start) * depth_mm / spacing_mm).astype(int)
        corner = center - half
        if (corner < 0).any() or (corner + mask.shape > label.shape).any():
            continue
        box = tuple(slice(c, c + n) for c, n in zip(corner.tolist(), mask.shape, strict=True))
        if _is_valid(label[box], room[box], mask, grown, most):
            out = label.copy()
            out[box][mask] = lesion.value
            z, y, x = center.tolist()
            return out, Placement(lesion.value, int(mask.sum()), (z, y, x), turn_deg)
    return None


def resample_lesion(lesion: DonorLesion, spacing_mm: Vec3, turn: np.ndarray) -> np.ndarray:
    """Rotate the lesion about its middle and resample it to (d, h, w) bool at another spacing, with a voxel of margin.

    Its signed distance is interpolated linearly, so that slices of 5 mm give no steps at 1 mm (shape-based
    interpolation, Raya and Udupa 1990, doi:10.1109/42.52980). A threshold of 0 would remove half of a lesion as thin as
    a slice, so the threshold is the one that keeps the volume, to a voxel.
    """
    own, other = np.array(lesion.spacing_mm), np.array(spacing_mm)
    signed = (distance_mm(lesion.mask, own) - distance_mm(~lesion.mask, own)).astype(np.float32)
    reach = np.abs(turn) @ (np.array(lesion.mask.shape) * own / 2)
    shape = 2 * np.ceil(reach / other).astype(int) + 1
    matrix = (turn.T * other) / own[:, None]  # voxel of the result, from its middle -> mm -> turned back -> own voxel
    offset = (np.array(lesion.mask.shape) - 1) / 2 - matrix @ ((shape - 1) / 2)
    far = float(signed.min())
    turned = ndimage.affine_transform(
        signed,
        matrix,
        offset,  # pyright: ignore[reportArgumentType]  the stubs know a scalar only
        tuple(shape),
        order=1,
        mode="constant",
        cval=far,
    )
    voxels = max(1, round(lesion.ml * 1000 / float(np.prod(other))))
    turned = turned >= np.partition(turned, -voxels, axis=None)[-voxels]
    return np.pad(turned[bounding_box(turned)], 1)


def _outward(label: np.ndarray, spacing_mm: Vec3, at: np.ndarray) -> np.ndarray:
    """Return the outward unit vector (mm) at a surface voxel: away from the middle of the tissue around it."""
    reach = [max(1, round(WINDOW_MM / s)) for s in spacing_mm]
    low = [max(int(a) - r, 0) for a, r in zip(at, reach, strict=True)]
    around = label[tuple(slice(b, int(a) + r + 1) for b, a, r in zip(low, at, reach, strict=True))]
    away = (at - low - np.argwhere(around > 0).mean(0)) * spacing_mm
    return away / max(float(np.linalg.norm(away)), 1e-6)


def _is_valid(label: np.ndarray, room: np.ndarray, mask: np.ndarray, grown: np.ndarray, most_kidney: float) -> bool:
    """Return whether `mask`, which is `grown` with a margin of a voxel, may become a lesion; all arrays of one box."""
    kidney = label == KIDNEY
    taken = np.count_nonzero(kidney & mask)
    apart = not (grown & ((label == TUMOR) | (label == CYST))).any()
    fits = not (mask & ~kidney & ~room).any()
    attached = bool((kidney & grown & ~mask).any())
    least_kidney = max(1, MIN_IN_KIDNEY * np.count_nonzero(mask))
    return bool(apart and fits and attached and least_kidney <= taken <= most_kidney)
