"""Does each slice continue the one before it? Two scans stacked in one file, or a piece that is there twice, do not.

Both measures look at slices averaged down to 32x32 blocks of HU clipped to [-200, 300], where noise and fine structure
are gone and 1,000 slices take a second.

Jump    the mean difference of two neighbouring slices, against the largest such difference among the five before and
        the five after. Measured: at most 1.2 on a real torso at 3 mm and its multiples, 1.4 on phantoms, 1.8 on
        16 real slices picked at random; two phantoms in one file 3.9 or more, the torso begun again somewhere 3.4 or
        more at 3 mm and 2.0 or more at 6 mm. A break is 2.5: a restart between like places of a coarse scan can
        pass, a healthy scan is left alone.
Repeat  a slice whose every voxel equals an earlier one's: noise makes that impossible in two measurements.
"""

from typing import NamedTuple

import numpy as np

BREAK_RATIO = 2.5
_MIN_STEP_HU = 5.0  # of the whole slice: below that it is noise of a blank or synthetic volume
_NEIGHBOURS = 5
_MIN_SLICES = 4  # of the shorter scan


class Discontinuity(NamedTuple):
    index: int  # first slice that does not continue its predecessor
    ratio: float


def find_discontinuities(blocks: np.ndarray) -> list[Discontinuity]:
    """(D, h, w) HU of `coarse` -> where it jumps, cranial first. Blank slices, as padding, are passed over."""
    filled = np.flatnonzero(np.ptp(blocks, axis=(1, 2)))
    steps = np.abs(np.diff(blocks[filled], axis=0)).mean(axis=(1, 2))
    found = []
    for i in range(_MIN_SLICES - 1, len(steps) - _MIN_SLICES + 1):
        near = np.concatenate([steps[max(0, i - _NEIGHBOURS) : i], steps[i + 1 : i + 1 + _NEIGHBOURS]])
        ratio = float(steps[i] / max(near.max(), 1e-6))
        if steps[i] >= _MIN_STEP_HU and ratio >= BREAK_RATIO:
            found.append(Discontinuity(int(filled[i + 1]), ratio))
    return found


def find_repeated_slices(image: np.ndarray, blocks: np.ndarray) -> list[tuple[int, int]]:
    """(slice, earlier slice) with equal voxels, in order. Blank slices are not counted."""
    first: dict[bytes, int] = {}
    found = []
    for i in range(len(image)):
        earlier = first.setdefault(blocks[i].tobytes(), i)
        if earlier < i and np.ptp(blocks[i]) and np.array_equal(image[i], image[earlier]):
            found.append((i, earlier))
    return found


def block_means(image: np.ndarray, blocks: int = 32) -> np.ndarray:
    """(D, H, W) HU -> (D, 32, 32) float32, means of blocks; fewer where the slice has fewer pixels."""
    _, height, width = image.shape
    rows = np.linspace(0, height, min(blocks, height), endpoint=False).astype(int)
    columns = np.linspace(0, width, min(blocks, width), endpoint=False).astype(int)
    area = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    out = np.empty((len(image), len(rows), len(columns)), np.float32)
    for i, one in enumerate(image):
        clipped = np.clip(one, -200, 300).astype(np.float32)
        out[i] = np.add.reduceat(np.add.reduceat(clipped, rows, axis=0), columns, axis=1) / area
    return out


def describe(image: np.ndarray) -> list[tuple[str, str]]:
    """(kind of finding, sentence) for what is wrong with the order of the slices of (D, H, W) HU."""
    blocks = block_means(image)
    said = []
    if breaks := find_discontinuities(blocks):
        edges = [0, *(b.index for b in breaks), len(image)]
        parts = " and ".join(f"{a}..{b - 1}" for a, b in zip(edges, edges[1:], strict=False))
        said.append(
            (
                "break",
                f"slices {parts} do not continue each other (a step {max(b.ratio for b in breaks):.1f} times those "
                "around it): several scans in one file, or slices missing?",
            )
        )
    if repeats := find_repeated_slices(image, blocks):
        (first, earlier), (last, later) = repeats[0], repeats[-1]
        if len(repeats) == last - first + 1 > 1:
            what = f"slices {first}..{last} repeat {earlier}..{later}"
        else:
            what = f"{len(repeats)} slices repeat earlier ones, the first: slice {first} is slice {earlier}"
        said.append(("repeat", f"{what}, voxel by voxel: a piece of the scan is there twice"))
    return said
