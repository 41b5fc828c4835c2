"""The bounding box of each kidney in a label map: what the second phase of a cascade segments."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kits_dist.labels import CYST, TUMOR
from kits_dist.utils.components import Box3, bounding_box, connected_components

# A predicted kidney may be in several components: those at most GAP_MM apart along each axis are one kidney. Large are
# components from MIN_SHARE of the largest one on, or from MIN_ML, so that a giant tumor hides no other kidney.
GAP_MM = 10.0
MIN_SHARE = 0.1
MIN_ML = 20.0

Range = tuple[int, int]  # [first, last)
Ranges3 = tuple[Range, Range, Range]  # slices, rows, columns


class Kidney(NamedTuple):
    """A kidney with its masses; a horseshoe kidney, or two that touch, are one."""

    box: Ranges3
    tumor: tuple[Range, ...] = ()  # slices of the box that hold tumor
    cyst: tuple[Range, ...] = ()

    def around(self, margin_mm: float, spacing_mm: Sequence[float], shape: Sequence[int]) -> Box3:
        """Return the box with a margin on all sides, cut at the edges of the volume."""
        slices, rows, columns = (
            slice(max(first - round(margin_mm / mm), 0), min(last + round(margin_mm / mm), length))
            for (first, last), mm, length in zip(self.box, spacing_mm, shape, strict=True)
        )
        return slices, rows, columns


def find_kidneys(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> list[Kidney]:
    """Return the kidneys of a label map, from the patient's right to the left; none where nothing is labeled.

    labels   (D, H, W) uint8 labels, or bool kidney and masses (then without the slices of tumor and cyst)

    Large components near one another are one kidney, which also takes in the small components near it. Small components
    elsewhere are dropped.
    """
    from scipy import ndimage  # half a second to import, and a store opens without it

    corner = bounding_box(labels)
    numbers, sizes = connected_components(labels[corner] > 0)
    if not len(sizes):
        return []
    boxes = [_shifted(box, corner) for box in ndimage.find_objects(numbers)]
    smallest = min(MIN_SHARE * sizes.max(), MIN_ML * 1000 / float(np.prod(spacing_mm)))
    large = [box for box, size in zip(boxes, sizes, strict=True) if size >= smallest]
    small = [box for box, size in zip(boxes, sizes, strict=True) if size < smallest]

    kidneys = []
    for box in _merged(large, spacing_mm):
        kidneys.append(_hull([box, *(other for other in small if _near(box, other, spacing_mm))]))
    kidneys.sort(key=lambda box: [first for first, _ in reversed(box)])
    return [_with_masses(labels, box) for box in kidneys]


def _shifted(box: Box3, corner: Box3) -> Ranges3:
    slices, rows, columns = ((side.start + c.start, side.stop + c.start) for side, c in zip(box, corner, strict=True))
    return slices, rows, columns


def _merged(boxes: list[Ranges3], spacing_mm: Sequence[float]) -> list[Ranges3]:
    """Join boxes near one another until none are: a joined box is larger and may be near others."""
    merged: list[Ranges3] = []
    for box in boxes:
        while near := [other for other in merged if _near(box, other, spacing_mm)]:
            merged = [other for other in merged if other not in near]
            box = _hull([box, *near])
        merged.append(box)
    return merged


def _near(a: Ranges3, b: Ranges3, spacing_mm: Sequence[float]) -> bool:
    return all(
        (max(a_first, b_first) - min(a_last, b_last)) * mm <= GAP_MM
        for (a_first, a_last), (b_first, b_last), mm in zip(a, b, spacing_mm, strict=True)
    )


def _hull(boxes: list[Ranges3]) -> Ranges3:
    slices, rows, columns = (
        (min(first for first, _ in sides), max(last for _, last in sides)) for sides in zip(*boxes, strict=True)
    )
    return slices, rows, columns


def _with_masses(labels: np.ndarray, box: Ranges3) -> Kidney:
    if labels.dtype == bool:
        return Kidney(box)
    part = labels[tuple(slice(*side) for side in box)]
    tumor, cyst = (_runs((part == value).any(axis=(1, 2)), box[0][0]) for value in (TUMOR, CYST))
    return Kidney(box, tumor, cyst)


def _runs(hit: np.ndarray, offset: int) -> tuple[Range, ...]:
    """Return the [first, last) runs of True in (D,) bool, counted from `offset`."""
    edges = np.flatnonzero(np.diff(hit, prepend=False, append=False)) + offset
    return tuple((int(first), int(last)) for first, last in edges.reshape(-1, 2))
