"""Deform an annotation into the anatomy of another patient: a small affine map and a smooth elastic one.

Maps are in mm and pull: for each voxel of the result they give the source position in the annotation. Rotation and
scale are about the middle of the annotated box; elastic displacements are three smooth random fields. Their sizes match
the variation between patients, not between two scans of one: kidney length has an sd of about 8 % among adults (Emamian
et al., Kidney dimensions at sonography, AJR 160 (1993) 83-86).
"""

from typing import NamedTuple

import cc3d
import numpy as np
from numpy.random import Generator
from scipy import ndimage

from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.shapes import Axes, SmoothField, Vec3, box3, grid_axes, rotation, vec3
from kits_dist.utils.components import Box3, bounding_box

ROTATE_SD_DEG, MAX_ROTATE_DEG = 4.0, 10.0
SCALE_SD, MAX_SCALE = 0.06, 1.15  # log-normal factor per direction, and its largest value
ELASTIC_MM = (1.5, 3.5)  # range of the sd of displacements
ELASTIC_SCALE_MM = 45.0  # the width of a kidney: it bends, and its surface does not ripple
SLICES_AT_ONCE = 8  # bounds memory


class Deformation(NamedTuple):
    """An affine map and an elastic one about the middle of the annotation."""

    rotate_deg: Vec3  # about z, y, x
    scale: Vec3  # along z, y, x; above 1 enlarges the patient
    elastic_mm: float  # sd of each component of the displacement
    fields: tuple[SmoothField, SmoothField, SmoothField]

    def source_mm(self, axes: Axes) -> np.ndarray:
        """Return (3, *axes.shape) float32: the source position of each voxel of the result, mm from the same middle."""
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
        """Return half the size of a box that holds the image of a box of `half_mm`, both about the middle."""
        return np.abs(self._forward()) @ (half_mm + 5.0 * self.elastic_mm)  # no field is beyond 5 sd

    def target_mm(self, source_mm: np.ndarray) -> np.ndarray:
        """Return where a point (3,) of the annotation goes, by fixed-point iteration: `source_mm` never folds."""
        at = self._forward() @ source_mm
        for _ in range(20):
            point = Axes(*(np.array([value], np.float32) for value in at))
            at = at + self._forward() @ (source_mm - self.source_mm(point)[:, 0, 0, 0])
        return at

    def _forward(self) -> np.ndarray:
        return rotation(*self.rotate_deg) @ np.diag(self.scale)


def draw_deformation(rng: Generator) -> Deformation:
    """Draw a deformation."""
    turn = rng.normal(0.0, ROTATE_SD_DEG, 3).clip(-MAX_ROTATE_DEG, MAX_ROTATE_DEG)
    scale = np.exp(rng.normal(0.0, SCALE_SD, 3)).clip(1 / MAX_SCALE, MAX_SCALE)
    elastic = float(rng.uniform(*ELASTIC_MM))
    fields = SmoothField(rng, ELASTIC_SCALE_MM), SmoothField(rng, ELASTIC_SCALE_MM), SmoothField(rng, ELASTIC_SCALE_MM)
    return Deformation(vec3(turn), vec3(scale), elastic, fields)


def deform(label: np.ndarray, spacing_mm: Vec3, deformation: Deformation) -> np.ndarray:
    """Deform labels (D, H, W) of 0-3, not empty, with spacing (d, h, w). Returns uint8 of the same shape.

    A voxel is annotated where at least half of its linearly interpolated surroundings are, and gets the label with the
    largest share: surfaces stay smooth between thick slices, and no new label appears. That erodes corners, and with
    them the smallest components. A component that kept less than half of its nearest-neighbor resampling is replaced by
    it, and one that falls between all samples keeps the voxel nearest to its middle. Tissue at the end of the scan is
    extended beyond it; what moves out of the grid is cut.
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
    """Copy from `nearest` the components of which `out` kept less than half. Returns the voxels of each in `nearest`.

    out           (d, h, w) labels, changed in place
    nearest       (d, h, w) number of the component at each voxel, 0 for none
    piece_label   (components + 1,) label of each component
    """
    kept = np.bincount(nearest[out == piece_label[nearest]], minlength=len(piece_label))
    given = np.bincount(nearest.ravel(), minlength=len(piece_label))
    shrunk = kept < 0.5 * given
    shrunk[0] = False
    np.copyto(out, piece_label[nearest], where=shrunk[nearest])
    return given


def _boxes(label: np.ndarray, spacing_mm: Vec3, deformation: Deformation) -> tuple[Box3, Box3, Axes]:
    """Return the annotated box with a margin of a voxel, the box it can be moved to, and axes in mm from its middle.

    Where the annotation reaches the end of the scan, so may the result.
    """
    box = bounding_box(label)
    middle = [(s.start + s.stop - 1) / 2 * step for s, step in zip(box, spacing_mm, strict=True)]
    axes = grid_axes(label.shape, spacing_mm, vec3(-m for m in middle))
    source = box3(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, label.shape, strict=True))
    half = np.array([(s.stop - s.start) / 2 * step for s, step in zip(box, spacing_mm, strict=True)])
    reach = deformation.reach_mm(half + np.array(spacing_mm))
    target = box3(
        slice(0 if s.start == 0 else t.start, n if s.stop == n else t.stop)
        for s, t, n in zip(box, axes.box(vec3(-reach), vec3(reach)), label.shape, strict=True)
    )
    return source, target, axes


def _put_voxel(
    out: np.ndarray, value: int, voxels: np.ndarray, axes: Axes, source: Box3, deformation: Deformation
) -> None:
    """Label the position of the component's voxel nearest to its middle, if inside the grid. voxels: (N, 3)."""
    middle = voxels[np.abs(voxels - voxels.mean(0)).sum(1).argmin()]
    from_mm = np.array([a[s.start + i] for a, s, i in zip(axes, source, middle, strict=True)], float)
    target = deformation.target_mm(from_mm)
    step = np.array([a[1] - a[0] for a in axes])
    index = np.rint((target - np.array([a[0] for a in axes])) / step).astype(int)
    if (index >= 0).all() and (index < out.shape).all():
        out[tuple(index)] = value
