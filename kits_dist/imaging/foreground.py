"""Label maps cropped to their foreground, so that scoring a case costs its foreground, not its volume."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.imaging.nifti import Geometry, Volume, read_labels_view
from kits_dist.utils.components import bounding_box
from kits_dist.utils.errors import InputError

SPACING_MM, AFFINE = 1e-3, 1e-3  # how far two headers of one grid may differ (the challenge's evaluator)


class Foreground(NamedTuple):
    """The labels of a map, cropped, and the position of the crop in the map."""

    array: np.ndarray  # (d, h, w) uint8: the smallest box that holds every label; (0, 0, 0) where there is none
    corner: tuple[int, int, int]  # voxel of the whole map at which the box begins
    grid: Geometry  # of the whole map in our orientation: (D, H, W), and index -> mm

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return (d, h, w)."""
        return self.grid.spacing_mm


def read_foreground(path: Path) -> Foreground:
    """Read a label map and keep its foreground. Raises InputError naming `path`, as `read_labels` does."""
    return foreground_of(read_labels_view(path))


def foreground_of(volume: Volume) -> Foreground:
    """Crop a volume of (D, H, W) uint8 labels to its foreground."""
    box = bounding_box(volume.array)
    return Foreground(volume.array[box].copy(), tuple(part.start for part in box), volume.canonical_geometry())


def crop_to_common_box(maps: list[Foreground]) -> tuple[list[np.ndarray], tuple[int, int, int]]:
    """Return the labels of several maps of one grid in the smallest box that holds all of them, and its corner."""
    filled = [labels for labels in maps if labels.array.size]
    if not filled:
        return [labels.array for labels in maps], (0, 0, 0)
    start = np.min([labels.corner for labels in filled], axis=0)
    stop = np.max([np.add(labels.corner, labels.array.shape) for labels in filled], axis=0)

    boxes = []
    for labels in maps:
        box = np.zeros(stop - start, np.uint8)
        if labels.array.size:
            first = labels.corner - start
            box[tuple(slice(n, n + size) for n, size in zip(first, labels.array.shape, strict=True))] = labels.array
        boxes.append(box)
    return boxes, (int(start[0]), int(start[1]), int(start[2]))


def check_grids(a: Foreground, b: Foreground, a_name: str | Path, b_name: str | Path) -> None:
    """Raise InputError naming both values of what differs: shape, spacing (1e-3 mm) or affine (1e-3).

    Both were read into one orientation, so the same grid stored in another axis order passes.
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
