"""95 % intervals of means over cases, by resampling cases with replacement (percentile method, Efron 1979)."""

import numpy as np

RESAMPLES = 10_000


class Bootstrap:
    """Resamples of `cases` cases; the same seed draws the same resamples for every metric."""

    def __init__(self, cases: int, seed: int = 0, resamples: int = RESAMPLES):
        if cases < 1:
            raise ValueError(f"Bootstrap: cases={cases}, at least 1 is needed.")
        drawn = np.random.default_rng(seed).integers(0, cases, (resamples, cases))
        drawn += np.arange(resamples)[:, None] * cases

        # how often each case is in each resample: a weighted sum is then a matrix product
        self.weights = np.bincount(drawn.ravel(), minlength=resamples * cases).reshape(resamples, cases).astype(float)

    def interval(self, numerator: np.ndarray, denominator: np.ndarray | None = None) -> list[float] | None:
        """Return [low, high] of sum(numerator) / sum(denominator), or of the mean over cases without a denominator.

        numerator, denominator   (cases,)

        A mean over slices, over lesions or of pooled counts is thus still resampled by case. Resamples whose
        denominator is 0 are left out; returns None where that leaves no resample.
        """
        below = np.ones(len(numerator)) if denominator is None else np.asarray(denominator, float)
        return _percentiles(self._ratios(numerator, below))

    def interval_of_difference(
        self, a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
    ) -> list[float] | None:
        """Return [low, high] of one ratio minus another, each (numerator, denominator), over the same resamples."""
        return _percentiles(self._ratios(*a) - self._ratios(*b))

    def _ratios(self, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        """(resamples,) ratios of sums; NaN where the denominator is 0."""
        above, below = (self.weights @ np.asarray(sums, float) for sums in (numerator, denominator))
        return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _percentiles(values: np.ndarray) -> list[float] | None:
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return [float(low), float(high)]
