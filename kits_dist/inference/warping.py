"""Warp slices on the device by one 2x3 matrix, as `data.augment_reference` defines it in NumPy, and back again."""

import numpy as np
import torch
from torch import Tensor, nn


def warp(source: Tensor, matrix: np.ndarray, size_px: tuple[int, int]) -> Tensor:
    """Sample (B, C, H, W) float at the output pixels' positions: linear interpolation, 0 outside.

    matrix    (2, 3), output (x, y) -> source (x, y), in pixels
    size_px   (h, w) of the result, (B, C, h, w)
    The device's version of `augment_reference.warp_linear`. A shift by whole pixels is copied, not interpolated, so
    that labels warped there and back are unchanged.
    """
    height, width = source.shape[2:]
    shift = matrix[:, 2]
    if np.array_equal(matrix[:, :2], np.eye(2)) and np.array_equal(shift, np.round(shift)):
        left, top = (int(n) for n in shift)
        pad = (-left, left + size_px[1] - width, -top, top + size_px[0] - height)  # negative pads crop
        return nn.functional.pad(source, pad)

    y = torch.arange(size_px[0], device=source.device)[:, None] + 0.5
    x = torch.arange(size_px[1], device=source.device) + 0.5
    m = torch.as_tensor(matrix, device=source.device, dtype=torch.float32)
    points = torch.stack([m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2]], dim=-1)
    # grid_sample's [-1, 1] spans pixel edges
    grid = 2 * points / torch.tensor([width, height], device=source.device) - 1
    return nn.functional.grid_sample(source, grid.expand(len(source), -1, -1, -1), align_corners=False)


def invert_affine(matrix: np.ndarray) -> np.ndarray:
    """Return the (2, 3) inverse of a (2, 3) affine."""
    linear = np.linalg.inv(matrix[:, :2].astype(np.float64))
    return np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)


def crop_affine(matrix: np.ndarray, left: int, top: int) -> np.ndarray:
    """Return the (2, 3) affine whose output begins at pixel (left, top) of the output of `matrix`."""
    return np.concatenate([matrix[:, :2], matrix[:, 2:] + matrix[:, :2] @ [[left], [top]]], axis=1)
