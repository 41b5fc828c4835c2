"""Another patient's anatomy out of an annotation: a small affine map and a smooth elastic one, applied to the labels.

Everything is in mm and pulls: a voxel of the result asks where in the annotation it came from. Rotation and scale turn
about the middle of the annotated box; elastic displacements are three smooth random fields. Sizes are those between
one patient and another, not between two scans of one: kidney length has an sd of some 8 % among adults (Emamian et
al., Kidney dimensions at sonography, AJR 160 (1993) 83-86).
"""

from typing import NamedTuple

import cc3d
import numpy as np
from numpy.random import Generator
from scipy import ndimage

from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.shapes import Axes, Box, SmoothField, Vec3, grid_axes, rotation
from kits_dist.utils.components import bounding_box

ROTATE_SD_DEG, MAX_ROTATE_DEG = 4.0, 10.0
SCALE_SD, MAX_SCALE = 0.06, 1.15  # of each direction; at most times or divided by
ELASTIC_MM = (1.5, 3.5)  # range of the sd of displacements
ELASTIC_SCALE_MM = 45.0  # a kidney's width: it bends, its surface does not ripple
SLICES_AT_ONCE = 8  # bounds memory


class Deformation(NamedTuple):
    rotate_deg: Vec3  # about z, y, x
    scale: Vec3  # of the patient along z, y, x; above 1 is larger
    elastic_mm: float  # sd of each component of the displacement
    fields: tuple[SmoothField, SmoothField, SmoothField]

    def source_mm(self, axes: Axes) -> np.ndarray:
        """(3, *axes.shape) float32: where each voxel of the result came from, mm from the same middle."""
        inverse = np.linalg.inv(self._forward())
        mesh = axes.mesh()
        return np.stack(
            [
                sum(np.float32(factor) * m for factor, m in zip(row, mesh, strict=True))
                + np.float32(self.elastic_mm) * field.at(axes)
                for row, field in zip(inverse, self.fields, strict=True)
            ]
        )

    def reach_mm(self, half_mm: np.ndarray) -> np.ndarray:
        """Half the size of a box that holds the image of a box of `half_mm`, both about the middle."""
        return np.abs(self._forward()) @ (half_mm + 5.0 * self.elastic_mm)  # no field is beyond 5 sd

    def target_mm(self, source_mm: np.ndarray) -> np.ndarray:
        """(3,) where one point of the annotation goes; by fixed-point iteration, as `source_mm` never folds."""
        at = self._forward() @ source_mm
        for _ in range(20):
            point = Axes(*(np.array([value], np.float32) for value in at))
            at = at + self._forward() @ (source_mm - self.source_mm(point)[:, 0, 0, 0])
        return at

    def _forward(self) -> np.ndarray:
        return rotation(*self.rotate_deg) @ np.diag(self.scale)


def draw_deformation(rng: Generator) -> Deformation:
    turn = rng.normal(0.0, ROTATE_SD_DEG, 3).clip(-MAX_ROTATE_DEG, MAX_ROTATE_DEG)
    scale = np.exp(rng.normal(0.0, SCALE_SD, 3)).clip(1 / MAX_SCALE, MAX_SCALE)
    elastic = float(rng.uniform(*ELASTIC_MM))
    return Deformation(tuple(turn), tuple(scale), elastic, tuple(SmoothField(rng, ELASTIC_SCALE_MM) for _ in range(3)))


def deform(label: np.ndarray, spacing_mm: Vec3, deformation: Deformation) -> np.ndarray:
    """Labels (D, H, W) of 0-3, not empty, spacing (d, h, w) -> uint8 of the same shape.

    A voxel is annotated where at least half of its linearly interpolated surroundings are, and gets the label with the
    largest share: smooth surfaces between thick slices, and no id that was not there. That eats corners, and so the
    smallest pieces; a connected piece that kept less than half of what nearest-neighbour sampling gives it is put in
    as that has it, and one that falls between all samples keeps the voxel nearest to its middle. What the annotation
    shows at the end of the scan goes on beyond it; what is moved out of the grid is cut.
    """
    source, target, axes = _boxes(label, spacing_mm, deformation)
    inside = np.ascontiguousarray(label[source])
    pieces = cc3d.connected_components(inside, connectivity=26)
    piece_label = np.zeros(int(pieces.max()) + 1, np.uint8)
    piece_label[pieces] = inside
    masks = [(inside == value).astype(np.uint8) for value in (KIDNEY, TUMOR, CYST)]
    first_mm = np.array([a[s.start] for a, s in zip(axes, source, strict=True)])
    step_mm = np.array(spacing_mm)

    out = np.zeros(label.shape, np.uint8)
    nearest = np.zeros([s.stop - s.start for s in target], pieces.dtype)
    for start in range(target[0].start, target[0].stop, SLICES_AT_ONCE):
        slab = slice(start, min(start + SLICES_AT_ONCE, target[0].stop)), *target[1:]
        at_mm = deformation.source_mm(axes.crop(slab))
        at = (at_mm - first_mm[:, None, None, None]) / step_mm[:, None, None, None]
        shares = np.stack([ndimage.map_coordinates(m, at, np.float32, order=1, mode="nearest") for m in masks])
        out[slab] = np.where(shares.sum(0) >= 0.5, 1 + shares.argmax(0), 0)
        rows = slice(slab[0].start - target[0].start, slab[0].stop - target[0].start)
        nearest[rows] = ndimage.map_coordinates(pieces, at, pieces.dtype, order=0, mode="nearest")

    given = _restore(out[target], nearest, piece_label)
    for piece in np.flatnonzero(given[1:] == 0) + 1:
        _put_voxel(out, piece_label[piece], np.argwhere(pieces == piece), axes, source, deformation)
    return out


def _restore(out: np.ndarray, nearest: np.ndarray, piece_label: np.ndarray) -> np.ndarray:
    """Put in, as `nearest` has them, the pieces of which `out` kept less than half. Returns the voxels of each there.

    out           (d, h, w) labels, changed in place
    nearest       (d, h, w) number of the piece at each voxel, 0 for none
    piece_label   (pieces + 1,) label of each piece
    """
    kept = np.bincount(nearest[out == piece_label[nearest]], minlength=len(piece_label))
    given = np.bincount(nearest.ravel(), minlength=len(piece_label))
    shrunk = kept < 0.5 * given
    shrunk[0] = False
    np.copyto(out, piece_label[nearest], where=shrunk[nearest])
    return given


def _boxes(label: np.ndarray, spacing_mm: Vec3, deformation: Deformation) -> tuple[Box, Box, Axes]:
    """(the annotated box and a voxel around it, the box it can be moved to, axes in mm from its middle).

    Where the annotation reaches the end of the scan the result may, too.
    """
    box = bounding_box(label)
    middle = [(s.start + s.stop - 1) / 2 * step for s, step in zip(box, spacing_mm, strict=True)]
    axes = grid_axes(label.shape, spacing_mm, tuple(-m for m in middle))
    source = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, label.shape, strict=True))
    half = np.array([(s.stop - s.start) / 2 * step for s, step in zip(box, spacing_mm, strict=True)])
    reach = deformation.reach_mm(half + np.array(spacing_mm))
    target = tuple(
        slice(0 if s.start == 0 else t.start, n if s.stop == n else t.stop)
        for s, t, n in zip(box, axes.box(tuple(-reach), tuple(reach)), label.shape, strict=True)
    )
    return source, target, axes


def _put_voxel(
    out: np.ndarray, value: int, voxels: np.ndarray, axes: Axes, source: Box, deformation: Deformation
) -> None:
    """Where the piece's voxel nearest to its middle goes; nowhere when that is outside the grid. voxels: (N, 3)."""
    middle = voxels[np.abs(voxels - voxels.mean(0)).sum(1).argmin()]
    from_mm = np.array([a[s.start + i] for a, s, i in zip(axes, source, middle, strict=True)], float)
    target = deformation.target_mm(from_mm)
    step = np.array([a[1] - a[0] for a in axes])
    index = np.rint((target - np.array([a[0] for a in axes])) / step).astype(int)
    if (index >= 0).all() and (index < out.shape).all():
        out[tuple(index)] = value
