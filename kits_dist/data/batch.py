"""Batch: the one thing that travels from a loader to the loss."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B slices on this rank's device, normalized and augmented."""

    image: Tensor  # (B, C, H, W) float16 or float32, (HU - mean) / sd; C = 1 + 2 * context neighbors, cranial first
    label: Tensor  # (B, H, W) uint8: 0 background, 1 kidney, 2 tumor, 3 cyst
    case: Tensor  # (B,) int32: row of the case in the store's cases.json
    index: Tensor  # (B,) int32: slice of that case in its plane; axial slice 0 is cranial
    plane: Tensor  # (B,) int32: 0 axial, 1 coronal, 2 sagittal
