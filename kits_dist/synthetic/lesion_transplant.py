"""Lesions of one patient on the kidneys of another: cut out, resampled, turned, and put where they could have grown.

A place is right when the lesion lies whole inside the grid, partly in kidney and against what is left of it, apart
from every other lesion, and for the rest only where there is room for it (`phantom.room_for_lesions`).
"""

from typing import NamedTuple

import cc3d
import numpy as np
from numpy.random import Generator
from scipy import ndimage

from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.shapes import Vec3, rotation
from kits_dist.utils.components import bounding_box

SMALLEST_ML, LARGEST_ML = 0.2, 200.0  # smaller ones are specks of an annotation; larger ones find no room
PLACES = 60  # tried for each lesion
MIN_IN_KIDNEY = 0.05  # share of the lesion; KiTS's are exophytic up to hanging on by a small base
MAX_OF_KIDNEY = 0.25  # share of the patient's kidney voxels that a lesion may replace: half a kidney of two
WINDOW_MM = 15.0  # the kidney's surface normal is judged within this distance


class DonorLesion(NamedTuple):
    """A connected tumor or cyst, cut out with a voxel of margin."""

    value: int  # TUMOR or CYST
    mask: np.ndarray  # (d, h, w) bool
    spacing_mm: Vec3

    @property
    def ml(self) -> float:
        return float(self.mask.sum() * np.prod(self.spacing_mm) / 1000)


class Placement(NamedTuple):
    value: int
    voxels: int
    centre: tuple[int, int, int]  # voxel of the grid
    turn_deg: Vec3  # about z, y, x


def transplantable_lesions(label: np.ndarray, spacing_mm: Vec3) -> list[DonorLesion]:
    """Tumors and cysts of an annotation (D, H, W) that can be moved: of a fitting size, and not cut by the scan's end,
    where their shape is not known. In a fixed order."""
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


def transplant(
    label: np.ndarray, spacing_mm: Vec3, lesion: DonorLesion, room: np.ndarray, rng: Generator
) -> tuple[np.ndarray, Placement] | None:
    """`label` (D, H, W) with the lesion on one of its kidneys, and where; None where no place was found.

    room   (D, H, W) bool: where a lesion may lie outside the kidney
    """
    turn_deg = tuple(float(v) for v in rng.uniform(-180.0, 180.0, 3))
    mask = resample_lesion(lesion, spacing_mm, rotation(*turn_deg))
    grown = ndimage.binary_dilation(mask, np.ones((3, 3, 3)))
    box = bounding_box(label)
    annotated = np.pad(label[box], 1)
    kidney = annotated == KIDNEY
    surface = np.argwhere(kidney & ~ndimage.binary_erosion(annotated > 0)) - 1 + [part.start for part in box]
    if not len(surface):
        return None
    radius_mm = (lesion.ml * 750.0 / np.pi) ** (1 / 3)
    most = MAX_OF_KIDNEY * np.count_nonzero(kidney)
    half = np.array(mask.shape) // 2
    for start in surface[rng.integers(0, len(surface), PLACES)]:
        depth_mm = radius_mm * rng.uniform(-0.6, 0.5)  # from half sunk in to hanging on
        centre = np.rint(start + _outward(label, spacing_mm, start) * depth_mm / spacing_mm).astype(int)
        corner = centre - half
        if (corner < 0).any() or (corner + mask.shape > label.shape).any():
            continue
        box = tuple(slice(c, c + n) for c, n in zip(corner.tolist(), mask.shape, strict=True))
        if _is_right(label[box], room[box], mask, grown, most):
            out = label.copy()
            out[box][mask] = lesion.value
            return out, Placement(lesion.value, int(mask.sum()), tuple(centre.tolist()), turn_deg)
    return None


def resample_lesion(lesion: DonorLesion, spacing_mm: Vec3, turn: np.ndarray) -> np.ndarray:
    """The lesion turned about its middle, (d, h, w) bool at another spacing, with a voxel of margin and of the same
    volume, to a voxel.

    By its signed distance, linearly interpolated, so that slices of 5 mm give no steps at 1 mm (shape-based
    interpolation, Raya and Udupa 1990, doi:10.1109/42.52980). Cut at 0 that would eat half of a lesion as thin as a
    slice, so it is cut where the volume is kept.
    """
    own, other = np.array(lesion.spacing_mm), np.array(spacing_mm)
    outside, inside = (ndimage.distance_transform_edt(m, sampling=own) for m in (~lesion.mask, lesion.mask))
    signed = (inside - outside).astype(np.float32)
    reach = np.abs(turn) @ (np.array(lesion.mask.shape) * own / 2)
    shape = 2 * np.ceil(reach / other).astype(int) + 1
    matrix = (turn.T * other) / own[:, None]  # voxel of the result, from its middle -> mm -> turned back -> own voxel
    offset = (np.array(lesion.mask.shape) - 1) / 2 - matrix @ ((shape - 1) / 2)
    far = float(signed.min())
    turned = ndimage.affine_transform(signed, matrix, offset, tuple(shape), order=1, mode="constant", cval=far)
    voxels = max(1, round(lesion.ml * 1000 / float(np.prod(other))))
    turned = turned >= np.partition(turned, -voxels, axis=None)[-voxels]
    return np.pad(turned[bounding_box(turned)], 1)


def _outward(label: np.ndarray, spacing_mm: Vec3, at: np.ndarray) -> np.ndarray:
    """Unit vector in mm that leaves the annotated tissue at a voxel of its surface: away from the middle of what lies
    around."""
    reach = [max(1, round(WINDOW_MM / s)) for s in spacing_mm]
    low = [max(int(a) - r, 0) for a, r in zip(at, reach, strict=True)]
    around = label[tuple(slice(b, int(a) + r + 1) for b, a, r in zip(low, at, reach, strict=True))]
    away = (at - low - np.argwhere(around > 0).mean(0)) * spacing_mm
    return away / max(float(np.linalg.norm(away)), 1e-6)


def _is_right(label: np.ndarray, room: np.ndarray, mask: np.ndarray, grown: np.ndarray, most_kidney: float) -> bool:
    """Everything of one box: whether `mask`, and `grown` by a voxel, may become a lesion there."""
    kidney = label == KIDNEY
    taken = np.count_nonzero(kidney & mask)
    apart = not (grown & ((label == TUMOR) | (label == CYST))).any()
    fits = not (mask & ~kidney & ~room).any()
    attached = bool((kidney & grown & ~mask).any())
    return apart and fits and attached and max(1, MIN_IN_KIDNEY * np.count_nonzero(mask)) <= taken <= most_kidney
