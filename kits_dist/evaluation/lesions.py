"""Detection of lesions: connected components (26 neighbors) of the true and the predicted mask.

A true lesion is found when it holds a predicted voxel; a predicted lesion is a false positive when it holds no true
voxel. The Dice of a true lesion compares it with the union of all predicted lesions that touch it; it is 0 where there
is none.
"""

from typing import NamedTuple

import numpy as np

from kits_dist.utils.components import connected_components


class Lesion(NamedTuple):
    """A true lesion."""

    ml: float
    dice: float  # 0: not found


class Detection(NamedTuple):
    """The true lesions of a case and the number of false positives."""

    lesions: list[Lesion]
    false_positives: int


def detect(predicted: np.ndarray, truth: np.ndarray, voxel_ml: float) -> Detection:
    """Match the lesions of two (D, H, W) bool masks of one grid."""
    ours, our_voxels = connected_components(predicted)
    theirs, their_voxels = connected_components(truth)
    num_ours, num_theirs = len(our_voxels), len(their_voxels)

    # one number for each pair of a true lesion and a predicted one that shares voxels with it
    both = predicted & truth
    pairs, voxels = np.unique(theirs[both].astype(np.int64) * (num_ours + 1) + ours[both], return_counts=True)
    which, touching = np.divmod(pairs, num_ours + 1)
    shared = np.bincount(which, voxels, num_theirs + 1)
    touched = np.bincount(which, our_voxels[touching - 1], num_theirs + 1)

    lesions = [
        Lesion(float(their_voxels[n - 1] * voxel_ml), float(2 * shared[n] / (their_voxels[n - 1] + touched[n])))
        for n in range(1, num_theirs + 1)
    ]
    return Detection(lesions, num_ours - len(np.unique(touching)))
