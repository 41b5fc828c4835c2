"""How far does a threshold get? The phantom is only worth training on while this answer stays poor.

python -m tests.helpers.threshold_baseline          # fits on 8 cases, tests on 6, prints interval and Dice; about 10 s
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import cc3d
import numpy as np
from scipy import ndimage

from kits_dist.synthetic.phantom import TUMOR, PhantomCase, make_case

LOW_HU, HIGH_HU = range(-10, 140, 20), range(30, 220, 20)  # KiTS tumors average 52-72 HU; no slice mean exceeds 193
SMOOTHING_VOXELS = (0.0, 1.0)  # sd of the in-plane Gaussian: none, or enough to remove most of the noise


class ThresholdFit(NamedTuple):
    """The best interval [low_hu, high_hu] after smoothing, with the mean tumor Dice on fitted and on unseen cases."""

    low_hu: float
    high_hu: float
    smoothing_voxels: float
    train_dice: float
    test_dice: float


def threshold_baseline(train_cases: Sequence[PhantomCase], test_cases: Sequence[PhantomCase]) -> ThresholdFit:
    """Segment tumors as the largest connected component of one HU interval, the best there is for train_cases.

    Every interval of the 20 HU grid is tried with and without smoothing; Dice is per case (volume), then averaged.
    """
    best = (-1.0, 0.0, 0.0, 0.0)
    for sigma in SMOOTHING_VOXELS:
        smooth = [_smooth(c, sigma) for c in train_cases]
        for low, high in product(LOW_HU, HIGH_HU):
            if high - low < 20:
                continue
            score = float(np.mean([_dice(v, c, low, high) for v, c in zip(smooth, train_cases, strict=True)]))
            best = max(best, (score, float(low), float(high), sigma))
    train_dice, low, high, sigma = best
    test_dice = float(np.mean([_dice(_smooth(c, sigma), c, low, high) for c in test_cases]))
    return ThresholdFit(low, high, sigma, train_dice, test_dice)


def _smooth(case: PhantomCase, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(case.image.astype(np.float32), (0.0, sigma, sigma))


def _dice(volume: np.ndarray, case: PhantomCase, low: float, high: float) -> float:
    found = cc3d.largest_k((volume >= low) & (volume <= high), k=1, connectivity=6) > 0
    tumor = case.label == TUMOR
    return 2.0 * float((found & tumor).sum()) / float(found.sum() + tumor.sum())


def main() -> None:
    size = (24, 96, 96)
    fit = threshold_baseline([make_case(1, i, size) for i in range(8)], [make_case(1, i, size) for i in range(20, 26)])
    print(f"interval [{fit.low_hu:.0f}, {fit.high_hu:.0f}] HU, smoothing {fit.smoothing_voxels:g} voxels")
    print(f"tumor Dice: {fit.train_dice:.3f} where fitted, {fit.test_dice:.3f} on unseen cases")


if __name__ == "__main__":
    main()
