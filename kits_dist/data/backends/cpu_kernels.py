"""The warps of the CPU backend, compiled by Numba; `augment_reference` defines what they compute.

OpenCV loads the four neighbors of a point one by one. Here they are packed into one 32-bit word first, so a point takes
one load and the rest is arithmetic on whole vector registers. A label map is zero almost everywhere: only the box
around its labels is looked up. Coordinates are float32 and count from the start of each row, with an error below 1e-4
pixel on a slice of 512.

Each point takes three loops (where it is, load, interpolate) over few arrays each, because the compiler turns only such
loops into vector code.
"""

import numpy as np
from numba import types

from kits_dist.utils.jit import compiled


def _array(dtype: types.Type, ndim: int, readonly: bool = True) -> types.Array:
    return types.Array(dtype, ndim, "C", readonly=readonly)


def _compiled(*arguments: types.Type):
    """Compile a function that returns nothing, or, without arguments, one that is compiled where it is called."""
    return compiled(types.void(*arguments) if arguments else None, fastmath=True)


@_compiled()
def _within(value, most):
    """Clamp to [0, most] in float32. Python's min and max do not become vector code."""
    value = np.float32(0) if value < np.float32(0) else value
    return most if value > most else value


@_compiled()
def _source(line, i):
    """Return the source coordinate of the center of the first point of row i, along one axis."""
    return np.float64(line[0]) * 0.5 + np.float64(line[1]) * (i + 0.5) + np.float64(line[2])


@_compiled()
def _reach(line, height, width, length):
    """Return [first, last) of the words that the points of a window may load, along an axis of `length` pixels.

    Word k holds pixels k and k + 1, so words -2 and `length` are empty: points far outside are clamped to them.
    """
    low, high = line[2] - 0.5, line[2] - 0.5
    for step, size in ((line[0], width), (line[1], height)):
        low += min(step * 0.5, step * (size - 0.5))
        high += max(step * 0.5, step * (size - 0.5))
    first = min(max(int(np.floor(low)) - 1, -2), length)
    last = min(max(int(np.floor(high)) + 1, -2), length)
    return first, last + 1


@_compiled()
def _pack(levels, top, left, words):
    """Pack pixel (top + i, left + j), its right neighbor, and the two below into word (i, j); 0 outside."""
    height, width = words.shape
    rows, columns = levels.shape
    padded = np.zeros((height + 1, width + 1), np.uint8)
    first_row, last_row = max(top, 0), min(top + height + 1, rows)
    first, last = max(left, 0), min(left + width + 1, columns)
    if first < last:
        _copy(levels, first_row, last_row, first, last, padded, top, left)
    for i in range(height):
        upper, lower, line = padded[i], padded[i + 1], words[i]
        for j in range(width):
            line[j] = (
                np.uint32(upper[j])
                | np.uint32(upper[j + 1]) << np.uint32(8)
                | np.uint32(lower[j]) << np.uint32(16)
                | np.uint32(lower[j + 1]) << np.uint32(24)
            )


@_compiled()
def _copy(pixels, top, bottom, left, right, into, first_row, first_column):
    """Copy rows [top, bottom) and columns [left, right) to `into`, whose corner is pixel (first_row, first_column)."""
    for i in range(top, bottom):
        line = into[i - first_row, left - first_column : right - first_column]
        pixel = pixels[i, left:right]
        for j in range(line.size):
            line[j] = pixel[j]


@_compiled()
def _labelled(label):
    """Return rows [top, bottom) and columns [left, right) of all foreground; top == bottom where there is none."""
    rows, columns = label.shape
    seen = np.zeros(columns, np.uint8)
    top, bottom = rows, 0
    for i in range(rows):
        line, any_here = label[i], np.uint8(0)
        for j in range(columns):
            any_here |= line[j]
        if any_here:
            top, bottom = min(top, i), i + 1
            for j in range(columns):
                seen[j] |= line[j]
    if bottom == 0:
        return 0, 0, 0, 0
    left, right = 0, columns
    while not seen[left]:
        left += 1
    while not seen[right - 1]:
        right -= 1
    return top, bottom, left, right


@_compiled()
def _landing(matrix, top, bottom, left, right, shape):
    """Return rows [first, last) and columns [first, last) of the output points that a box of the source reaches."""
    a, b, c, d = matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1]
    over = 1 / (np.float64(a) * d - np.float64(b) * c)
    first_row, last_row, first, last = 1e9, -1e9, 1e9, -1e9
    for x in (left - matrix[0, 2], right - matrix[0, 2]):
        for y in (top - matrix[1, 2], bottom - matrix[1, 2]):
            column, row = (d * x - b * y) * over, (a * y - c * x) * over
            first, last = min(first, column), max(last, column)
            first_row, last_row = min(first_row, row), max(last_row, row)
    height, width = shape
    rows = min(max(int(first_row) - 1, 0), height), min(max(int(last_row) + 2, 0), height)
    columns = min(max(int(first) - 1, 0), width), min(max(int(last) + 2, 0), width)
    return rows[0], rows[1], columns[0], columns[1]


_MATRIX = _array(types.float32, 2)


@_compiled(_array(types.uint8, 3), _MATRIX, _array(types.float32, 3, readonly=False))
def warp_linear(slab: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> None:
    """Compute `augment_reference.warp_linear` of (F, H, W) uint8 by a (2, 3) matrix into `out`, (F, h, w) float32."""
    height, width = out.shape[1:]
    top, bottom = _reach(matrix[1], height, width, slab.shape[1])
    left, right = _reach(matrix[0], height, width, slab.shape[2])
    words = np.empty((bottom - top, right - left), np.uint32)
    every_word, stride = words.reshape(words.size), np.int32(right - left)
    x_step, y_step = matrix[0, 0], matrix[1, 0]
    x_most, y_most = np.float32(right - left - 1), np.float32(bottom - top - 1)
    where, taps = np.empty(width, np.uint32), np.empty(width, np.uint32)
    x_part, y_part = np.empty(width, np.float32), np.empty(width, np.float32)
    for frame in range(slab.shape[0]):
        _pack(slab[frame], top, left, words)
        for i in range(height):
            x0 = np.float32(_source(matrix[0], i) - 0.5 - left)
            y0 = np.float32(_source(matrix[1], i) - 0.5 - top)
            for j in range(width):
                x = _within(x0 + x_step * np.float32(np.int32(j)), x_most)
                y = _within(y0 + y_step * np.float32(np.int32(j)), y_most)
                column, row = np.int32(x), np.int32(y)
                x_part[j], y_part[j] = x - np.float32(column), y - np.float32(row)
                where[j] = np.uint32(row * stride + column)
            for j in range(width):
                taps[j] = every_word[where[j]]
            line = out[frame, i]
            for j in range(width):
                four, right_share, lower_share = taps[j], x_part[j], y_part[j]
                upper_left = np.float32(np.int32(four & np.uint32(255)))
                upper_right = np.float32(np.int32((four >> np.uint32(8)) & np.uint32(255)))
                lower_left = np.float32(np.int32((four >> np.uint32(16)) & np.uint32(255)))
                lower_right = np.float32(np.int32(four >> np.uint32(24)))
                upper = upper_left + (upper_right - upper_left) * right_share
                lower = lower_left + (lower_right - lower_left) * right_share
                line[j] = upper + (lower - upper) * lower_share


@_compiled(_array(types.uint8, 2), _MATRIX, _array(types.uint8, 2, readonly=False))
def warp_nearest(label: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> None:
    """Compute `augment_reference.warp_nearest` of (H, W) uint8 by a (2, 3) matrix into `out`, (h, w) uint8."""
    for i in range(out.shape[0]):
        line = out[i]
        for j in range(line.size):
            line[j] = 0
    top, bottom, left, right = _labelled(label)
    if top == bottom:
        return
    box = np.zeros(
        (bottom - top + 2, right - left + 2), np.uint8
    )  # a border of background, to which points outside are clamped
    _copy(label, top, bottom, left, right, box, top - 1, left - 1)
    every_pixel, stride = box.reshape(box.size), np.int32(box.shape[1])
    first_row, last_row, first, last = _landing(matrix, top, bottom, left, right, out.shape)
    x_step, y_step = matrix[0, 0], matrix[1, 0]
    x_most, y_most = np.float32(box.shape[1] - 1), np.float32(box.shape[0] - 1)
    where = np.empty(max(last - first, 0), np.uint32)
    for i in range(first_row, last_row):
        x0 = np.float32(_source(matrix[0], i) + matrix[0, 0] * first - left + 1)
        y0 = np.float32(_source(matrix[1], i) + matrix[1, 0] * first - top + 1)
        for j in range(where.size):
            x = _within(x0 + x_step * np.float32(np.int32(j)), x_most)
            y = _within(y0 + y_step * np.float32(np.int32(j)), y_most)
            where[j] = np.uint32(np.int32(y) * stride + np.int32(x))
        line = out[i, first:last]
        for j in range(where.size):
            line[j] = every_pixel[where[j]]


_SCALAR = types.float32


@_compiled(_array(types.float32, 2, readonly=False), _array(types.float32, 2), _SCALAR, _SCALAR, _SCALAR, _SCALAR)
def finish(image: np.ndarray, noise: np.ndarray, noise_sd: float, levels: float, mean: float, per_level: float) -> None:
    """Add noise to (h, w) float32 levels where noise_sd > 0, clip to [0, levels] then, and normalize, in place.

    noise       (h, w) float32 standard normals; not read where noise_sd is 0
    per_level   1 / sd of the levels
    """
    for i in range(image.shape[0]):
        line = image[i]
        if noise_sd > 0:
            normal = noise[i]
            for j in range(line.size):
                line[j] = (_within(line[j] + noise_sd * normal[j], levels) - mean) * per_level
        else:
            for j in range(line.size):
                line[j] = (line[j] - mean) * per_level
