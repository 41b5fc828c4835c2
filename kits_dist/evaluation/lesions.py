"""Which lesions were found: connected pieces (26 neighbours) of the true and the predicted mask.

A true lesion is found when a predicted voxel lies in it; a predicted one is a false positive when no true voxel lies in
it. The Dice of a true lesion is that of it and all predicted ones that touch it, 0 where none does.
"""

from typing import NamedTuple

import numpy as np

from kits_dist.utils.components import connected_components


class Lesion(NamedTuple):
    """A true one."""

    ml: float
    dice: float  # 0: not found


class Detection(NamedTuple):
    lesions: list[Lesion]
    false_positives: int


def detect(predicted: np.ndarray, truth: np.ndarray, voxel_ml: float) -> Detection:
    """predicted, truth: (D, H, W) bool of one grid."""
    (ours, our_voxels), (theirs, their_voxels) = connected_components(predicted), connected_components(truth)
    num_ours, num_theirs = len(our_voxels), len(their_voxels)
    both = predicted & truth
    pairs, voxels = np.unique(theirs[both].astype(np.int64) * (num_ours + 1) + ours[both], return_counts=True)
    which, touching = np.divmod(pairs, num_ours + 1)  # a true lesion, and a predicted one that shares voxels with it
    shared = np.bincount(which, voxels, num_theirs + 1)
    touched = np.bincount(which, our_voxels[touching - 1], num_theirs + 1)
    lesions = [
        Lesion(float(their_voxels[n - 1] * voxel_ml), float(2 * shared[n] / (their_voxels[n - 1] + touched[n])))
        for n in range(1, num_theirs + 1)
    ]
    return Detection(lesions, num_ours - len(np.unique(touching)))
