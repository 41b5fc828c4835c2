import numpy as np
import pytest

from kits_dist.evaluation.case_scores import score_case
from kits_dist.evaluation.metrics import dice, volume_counts
from kits_dist.labels import PLAIN, REGIONS


def brute_force_dice(a, b, labels):
    both = size = 0
    for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
        both += (x in labels) and (y in labels)
        size += (x in labels) + (y in labels)
    return 1.0 if size == 0 else 2 * both / size


def test_volume_dice_equals_a_brute_force_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (rng.choice(4, (3, 5, 6), p=rng.dirichlet(np.ones(4))).astype(np.uint8) for _ in range(2))
        counts = volume_counts(a, b, REGIONS | PLAIN)
        for name, labels in (REGIONS | PLAIN).items():
            assert float(dice(counts[name])) == pytest.approx(brute_force_dice(a, b, labels), abs=1e-12)


def test_dice_of_empty_regions_follows_the_challenge():
    assert dice(np.array([0, 0, 0])) == 1  # both empty
    assert dice(np.array([0, 5, 0])) == dice(np.array([0, 0, 5])) == 0  # exactly one empty
    assert dice(np.array([2, 1, 1])) == pytest.approx(2 * 2 / (3 + 3))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="predicted is .* but truth is"):
        volume_counts(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), REGIONS)


def test_slices_without_the_region_do_not_count_in_dice_slice():
    """A kidney on ten slices, of which three hold tumor, one of them found."""
    truth = np.zeros((12, 4, 4), np.uint8)
    truth[1:11, :2] = 1
    truth[3:6, 0] = 2
    predicted = truth.copy()
    predicted[4:6, 0] = 1
    found = score_case("case", predicted, truth, (3.0, 1.0, 1.0), REGIONS).regions
    tumor, kidney = found["tumor"], found["kidney_and_mass"]
    assert (tumor["slices"], tumor["dice_slice"]) == (3, pytest.approx(1 / 3))
    assert (kidney["slices"], kidney["dice_slice"]) == (10, 1)
