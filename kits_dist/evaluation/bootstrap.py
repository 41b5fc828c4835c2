"""95 % intervals of figures over cases, by resampling cases with replacement (percentile method, Efron 1979)."""

import numpy as np

RESAMPLES = 10_000


class Bootstrap:
    """The resamples of `cases` cases, the same for every figure and whenever it is made with the same seed."""

    def __init__(self, cases: int, seed: int = 0, resamples: int = RESAMPLES):
        if cases < 1:
            raise ValueError(f"Bootstrap: cases={cases}, at least 1 is needed.")
        drawn = np.random.default_rng(seed).integers(0, cases, (resamples, cases))
        drawn += np.arange(resamples)[:, None] * cases
        # how often each case is in each resample: a weighted sum is then a matrix product
        self.weights = np.bincount(drawn.ravel(), minlength=resamples * cases).reshape(resamples, cases).astype(float)

    def interval(self, numerator: np.ndarray, denominator: np.ndarray | None = None) -> list[float] | None:
        """[low, high] of sum(numerator) / sum(denominator), both (cases,); without denominator, of the mean over cases.

        So a mean over the cases that have a value, over slices, over lesions or of pooled counts is still resampled by
        case. Resamples whose denominator is 0 say nothing and are left out; None when all are.
        """
        below = np.ones(len(numerator)) if denominator is None else np.asarray(denominator, float)
        above, below = self.weights @ np.asarray(numerator, float), self.weights @ below
        known = below > 0
        if not known.any():
            return None
        low, high = np.percentile(above[known] / below[known], [2.5, 97.5])
        return [float(low), float(high)]
