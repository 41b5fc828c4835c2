"""The box of each kidney in a label map: where phase 2 looks."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from kits_dist.labels import CYST, TUMOR
from kits_dist.utils.components import Box3, bounding_box, connected_components

GAP_MM = 10.0  # pieces no farther apart than this along each axis belong to one kidney: it may be predicted in parts
MIN_SHARE = 0.1  # of the largest piece, or
MIN_ML = 20.0  # this much beside a giant one; what is smaller, and near no larger one, is no kidney

Range = tuple[int, int]  # [first, last)


class Kidney(NamedTuple):
    """A kidney with its masses; a horseshoe kidney, or two that touch, are one."""

    box: tuple[Range, Range, Range]  # slices, rows, columns
    tumor: tuple[Range, ...] = ()  # slices of the box that hold tumor
    cyst: tuple[Range, ...] = ()

    def around(self, margin_mm: float, spacing_mm: tuple[float, ...], shape: tuple[int, ...]) -> Box3:
        """Its box with a margin on all sides, cut at the edges of the volume."""
        sides = [round(margin_mm / mm) for mm in spacing_mm]
        return tuple(
            slice(max(first - more, 0), min(last + more, length))
            for (first, last), more, length in zip(self.box, sides, shape, strict=True)
        )


def find_kidneys(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> list[Kidney]:
    """(D, H, W) uint8 labels, or bool kidney and masses -> its kidneys, from the patient's right to the left.

    Pieces of at least MIN_SHARE of the largest one, or MIN_ML; those within GAP_MM of one another are one kidney, which
    also takes in smaller pieces that lie as near. None where nothing is labelled.
    """
    corner = bounding_box(labels)
    inside = labels[corner]
    numbers, sizes = connected_components(inside > 0)
    if not len(sizes):
        return []
    found = ndimage.find_objects(numbers)
    boxes = np.array([[(part.start, part.stop) for part in box] for box in found])  # (N, 3, 2)
    least = MIN_ML * 1000 / float(np.prod(spacing_mm))
    large = sizes >= min(MIN_SHARE * sizes.max(), least)
    kidneys = _joined(list(boxes[large]), spacing_mm)
    for number, kidney in enumerate(kidneys):
        beside = [box for box in boxes[~large] if _near(kidney, box, spacing_mm)]
        kidneys[number] = _around([kidney, *beside])
    kidneys.sort(key=lambda box: tuple(box[::-1, 0]))
    origin = np.array([[part.start] for part in corner])
    return [_described(inside, box, origin) for box in kidneys]


def _joined(boxes: list[np.ndarray], spacing_mm: tuple[float, ...]) -> list[np.ndarray]:
    """Boxes of (3, 2), those near one another made one until none are."""
    done: list[np.ndarray] = []
    while boxes:
        box = boxes.pop()
        near = [other for other in done if _near(box, other, spacing_mm)]
        if near:  # the larger box may now be near others
            done = [other for other in done if not any(other is one for one in near)]
            boxes.append(_around([box, *near]))
        else:
            done.append(box)
    return done


def _near(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...]) -> bool:
    gap = np.maximum(a[:, 0], b[:, 0]) - np.minimum(a[:, 1], b[:, 1])
    return bool((gap * np.array(spacing_mm) <= GAP_MM).all())


def _around(boxes: list[np.ndarray]) -> np.ndarray:
    every = np.stack(boxes)
    return np.stack([every[:, :, 0].min(axis=0), every[:, :, 1].max(axis=0)], axis=1)


def _described(inside: np.ndarray, box: np.ndarray, origin: np.ndarray) -> Kidney:
    part = inside[tuple(slice(*side) for side in box)]
    first = int(box[0, 0] + origin[0, 0])
    held = [_runs((part == value).any(axis=(1, 2)), first) if part.dtype != bool else () for value in (TUMOR, CYST)]
    return Kidney(tuple((int(a), int(b)) for a, b in box + origin), *held)


def _runs(hit: np.ndarray, first: int) -> tuple[Range, ...]:
    """(D,) bool -> its runs of True, counted from `first`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hit.astype(np.int8), [0]])))
    return tuple((int(a) + first, int(b) + first) for a, b in edges.reshape(-1, 2))
