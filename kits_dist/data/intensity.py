"""HU -> uint8 levels, and the body's bounding box: the same for `prepare` and for prediction on a new scan."""

from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """HU window [low, high], stored as uint8 levels: [0, 200] has 201 integer levels, so clipping is the only loss."""

    low: float
    high: float

    @property
    def step_hu(self) -> float:
        """HU per level: 1 up to 255 HU of width; a wider window is quantized."""
        return max(1.0, (self.high - self.low) / 255)

    @property
    def levels(self) -> int:
        """Highest level; 0 is `low`."""
        return round((self.high - self.low) / self.step_hu)

    def to_levels(self, hu: np.ndarray) -> np.ndarray:
        """Convert HU of any shape to uint8 levels, rounding to the nearest level."""
        clipped = np.clip(hu, self.low, self.high)
        if hu.dtype.kind == "i" and self.step_hu == 1 and float(self.low).is_integer():
            return (clipped - np.asarray(self.low, hu.dtype)).astype(np.uint8)
        return np.rint((clipped.astype(np.float32) - self.low) / self.step_hu).astype(np.uint8)


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right) in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def center(self) -> tuple[float, float]:
        """(row, column) in pixel edges: a pixel covers [i, i+1)."""
        return (self.top + self.bottom) / 2, (self.left + self.right) / 2

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.bottom - self.top, self.right - self.left


def body_box(levels: np.ndarray) -> Box:
    """Return the in-plane bounding box of the body over all slices of a case; the whole slice where there is no body.

    levels   (D, H, W) uint8, 0 = lower end of the window (air and fat for [0, 200] HU)

    A pixel belongs to the body where at least a tenth of the slices show soft tissue. Taking the largest connected
    component leaves out the table and the arms.
    """
    from scipy import ndimage  # half a second to import, and a store opens without it

    occupied = (levels > 0).mean(axis=0) >= 0.1
    numbers, count = ndimage.label(occupied)  # pyright: ignore[reportGeneralTypeIssues]  SciPy's stubs: int or tuple
    if not count:
        return Box(0, levels.shape[1], 0, levels.shape[2])
    sizes = np.bincount(numbers.ravel())[1:]
    rows, columns = ndimage.find_objects(numbers)[int(sizes.argmax())]
    return Box(rows.start, rows.stop, columns.start, columns.stop)
