"""Which lesions were found: connected components of the true and the predicted mask.

A true lesion is found when a predicted voxel lies in it; a predicted one is a false positive when no true voxel lies in
it. The Dice of a true lesion is that of it and all predicted ones that touch it, 0 where none does.
"""

from typing import NamedTuple

import cc3d
import numpy as np

CONNECTIVITY = 26  # voxels that share a corner belong together


class Lesion(NamedTuple):
    """A true one."""

    ml: float
    dice: float  # 0: not found


class Detection(NamedTuple):
    lesions: list[Lesion]
    false_positives: int


def detect(predicted: np.ndarray, truth: np.ndarray, voxel_ml: float) -> Detection:
    """predicted, truth: (D, H, W) bool of one grid."""
    ours, num_ours = cc3d.connected_components(predicted, connectivity=CONNECTIVITY, return_N=True)
    theirs, num_theirs = cc3d.connected_components(truth, connectivity=CONNECTIVITY, return_N=True)
    our_voxels, their_voxels = (np.bincount(labels.ravel(), minlength=1) for labels in (ours, theirs))
    both = predicted & truth
    pairs, voxels = np.unique(theirs[both].astype(np.int64) * (num_ours + 1) + ours[both], return_counts=True)
    which, touching = np.divmod(pairs, num_ours + 1)  # a true lesion, and a predicted one that shares voxels with it
    shared = np.bincount(which, voxels, num_theirs + 1)
    touched = np.bincount(which, our_voxels[touching], num_theirs + 1)
    lesions = [
        Lesion(float(their_voxels[n] * voxel_ml), float(2 * shared[n] / (their_voxels[n] + touched[n])))
        for n in range(1, num_theirs + 1)
    ]
    return Detection(lesions, num_ours - len(np.unique(touching)))
