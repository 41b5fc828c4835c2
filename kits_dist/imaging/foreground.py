"""Label maps without the background around them: a case costs its foreground, not its volume."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.imaging.nifti import Geometry, Volume, read_labels_view
from kits_dist.utils.components import Box3, bounding_box
from kits_dist.utils.errors import InputError

SPACING_MM, AFFINE = 1e-3, 1e-3  # how far two headers of one grid may differ (the challenge's evaluator)


class Foreground(NamedTuple):
    """The labels of a map and where they lie in it."""

    array: np.ndarray  # (d, h, w) uint8: the smallest box that holds every label; (0, 0, 0) where there is none
    corner: tuple[int, int, int]  # voxel of the whole map at which the box begins
    grid: Geometry  # of the whole map in our orientation: (D, H, W), and index -> mm

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return self.grid.spacing_mm


def read_foreground(path: Path) -> Foreground:
    """Raises InputError naming `path` as `read_labels` does. For a moment one map as the file holds it is in memory."""
    return foreground_of(read_labels_view(path))


def foreground_of(volume: Volume) -> Foreground:
    """volume.array: (D, H, W) uint8 labels."""
    box = bounding_box(volume.array)
    return Foreground(volume.array[box].copy(), tuple(part.start for part in box), volume.canonical_geometry())


def crop_to_common_box(maps: list[Foreground]) -> tuple[list[np.ndarray], tuple[int, int, int]]:
    """Several maps of one grid -> their labels in the one box that holds all of them, and that box's corner."""
    filled = [one for one in maps if one.array.size]
    if not filled:
        return [one.array for one in maps], (0, 0, 0)
    start = np.min([one.corner for one in filled], axis=0)
    stop = np.max([np.add(one.corner, one.array.shape) for one in filled], axis=0)
    boxes = []
    for one in maps:
        box = np.zeros(stop - start, np.uint8)
        if one.array.size:
            box[_slices_in(one, start)] = one.array
        boxes.append(box)
    return boxes, tuple(int(n) for n in start)


def _slices_in(one: Foreground, start: np.ndarray) -> Box3:
    """Where the labels of `one` lie in a box that begins at `start`."""
    return tuple(slice(c - s, c - s + n) for c, s, n in zip(one.corner, start, one.array.shape, strict=True))


def check_grids(a: Foreground, b: Foreground, a_name: str | Path, b_name: str | Path) -> None:
    """Raises InputError naming both values of what differs: shape, spacing (1e-3 mm) or affine (1e-3).

    Both were read into one orientation, so the same grid stored in another axis order passes, voxel by voxel.
    """
    differing = []
    if a.grid.shape != b.grid.shape:
        differing.append(f"shape {a.grid.shape} and {b.grid.shape} (D, H, W)")
    if not np.allclose(a.spacing_mm, b.spacing_mm, rtol=0, atol=SPACING_MM):
        differing.append(f"spacing {np.round(a.spacing_mm, 4).tolist()} and {np.round(b.spacing_mm, 4).tolist()} mm")
    if not differing and not np.allclose(a.grid.affine, b.grid.affine, rtol=0, atol=AFFINE):
        differing.append(
            f"affine {np.round(a.grid.affine[:3], 4).tolist()} and {np.round(b.grid.affine[:3], 4).tolist()}"
        )
    if differing:
        raise InputError(
            f"{a_name} is not on the grid of {b_name}: {', '.join(differing)}. Resample it onto that grid."
        )
