"""The nearest of other grid points: every pair is looked at instead."""

import numpy as np
import pytest

from kits_dist.evaluation.nearest import nearest_squared


def every_pair(queries, sources, spacing_mm):
    return ((((queries[:, None] - sources[None]) * spacing_mm) ** 2).sum(axis=-1)).min(axis=1)


@pytest.mark.parametrize("seed", range(40))
def test_of_random_points_at_random_spacings(seed):
    rng = np.random.default_rng(seed)
    spacing_mm = tuple(rng.uniform(0.4, 5, 3))
    queries, sources = (rng.integers(0, rng.integers(1, 30), (rng.integers(1, 60), 3)) for _ in range(2))
    sources = np.unique(sources, axis=0)  # in lexicographic order
    found = nearest_squared(queries, sources, *spacing_mm)
    assert found == pytest.approx(every_pair(queries, sources, spacing_mm), rel=1e-12)


def test_where_everything_is_far_and_equally_near():
    """A point in the middle of a sphere's surface, and a source far outside the queries' rectangle."""
    z, y, x = np.indices((41, 41, 41)) - 20
    shell = np.ascontiguousarray(np.argwhere(np.abs(np.sqrt(z**2 + y**2 + x**2) - 18) < 0.5))
    middle = np.array([[20, 20, 20], [21, 20, 20]])
    assert nearest_squared(middle, shell, 1.0, 1.0, 1.0) == pytest.approx(every_pair(middle, shell, (1, 1, 1)))
    lone = np.array([[0, 0, 0]])
    assert nearest_squared(middle, lone, 2.0, 1.0, 1.0).tolist() == [40**2 + 800, 42**2 + 800]
    assert nearest_squared(lone, middle, 2.0, 1.0, 1.0).tolist() == [40**2 + 800]
