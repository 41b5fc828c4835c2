"""How much of the kidneys the network's window holds, from the boxes in the store: no voxel is read."""

import numpy as np

from kits_dist.config import DataConfig
from kits_dist.data.augment_params import OutputGrid
from kits_dist.data.store import PLANES, Case, Store
from kits_dist.utils.errors import InputError

WARN_BELOW, REFUSE_BELOW = 0.99, 0.5


def kidney_share_in_window(cases: list[Case], data: DataConfig) -> float | None:
    """Return the share of the volume of all kidneys' boxes that the window holds where it is centered on the body.

    None where the window follows the kidneys (data.box=kidney), or no case has one. Validation and prediction see this
    window; training moves it over the slice (augment.crop), but learns little of what it seldom shows.
    """
    if data.box == "kidney":
        return None
    grid = OutputGrid(data.size_px, data.pixel_mm)
    held, total = 0.0, 0.0
    for case in cases:
        for plane in data.planes:
            geometry = case.slice_geometry(plane)
            half = grid.source_per_output([geometry])[0] * data.size_px / 2
            low, high = (geometry.box.center + side * half for side in (-1, 1))
            for kidney in case.kidneys:
                depth, *sides = (kidney.box[axis] for axis in PLANES[plane])
                edges = np.array(sides, float)  # (2, 2): rows and columns, [first, last)
                inside = np.clip(np.minimum(edges[:, 1], high) - np.maximum(edges[:, 0], low), 0, None)
                thickness = depth[1] - depth[0]
                held += thickness * inside.prod()
                total += thickness * (edges[:, 1] - edges[:, 0]).prod()
    return float(held / total) if total else None


def refuse_narrow_window(store: Store, data: DataConfig) -> None:
    """Raise InputError where the window misses most of the kidneys of the validation cases: no training can help."""
    share = kidney_share_in_window(_val_cases(store, data), data)
    if share is not None and share < REFUSE_BELOW:
        raise InputError(
            f"data.size_px={data.size_px[0]}x{data.size_px[1]}: the window holds {share:.0%} of the kidneys' boxes in "
            f"the validation cases. {_advice(store, data)}"
        )


def coverage_line(store: Store, data: DataConfig) -> str:
    """Return the line that training prints; empty where the window follows the kidneys."""
    share = kidney_share_in_window(_val_cases(store, data), data)
    if share is None:
        return ""
    line = f"the window of {data.size_px[0]}x{data.size_px[1]} holds {share:.1%} of the kidneys in validation cases"
    return line if share >= WARN_BELOW else f"warning  {line}, and scores nothing for the rest. {_advice(store, data)}"


def _val_cases(store: Store, data: DataConfig) -> list[Case]:
    return [store.cases[store.row[case_id]] for case_id in store.splits.select(data.fold)[1]]


def _advice(store: Store, data: DataConfig) -> str:
    """Name both keys, with the pixel size at which the window holds the largest body."""
    needed = 0.0
    for case in _val_cases(store, data):
        for plane in data.planes:
            geometry = case.slice_geometry(plane)
            needed = max(needed, *(np.array(geometry.box.size) * geometry.spacing_mm[1:] / data.size_px))
    return f"Use larger pixels, data.pixel_mm={np.ceil(10 * needed) / 10:g}, or a larger data.size_px."
