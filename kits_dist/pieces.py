"""Connected pieces of a volume, and where it is not empty."""

import cc3d
import numpy as np


def pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D, H, W) bool -> ((D, H, W) numbers from 1, 0 outside the mask, (N,) voxels of each piece).

    Joined over faces, edges and corners (26 neighbours), by cc3d (W. Silversmith, doi:10.5281/zenodo.5535250).
    """
    numbers = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26)
    return numbers, cc3d.statistics(numbers)["voxel_counts"][1:].astype(np.int64)


def foreground_box(labels: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds all that is not background; None where nothing is."""
    box = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        hit = np.flatnonzero(labels.any(axis=axes))
        if not len(hit):
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)
