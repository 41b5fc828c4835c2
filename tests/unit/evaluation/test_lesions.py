import numpy as np
import pytest

from kits_dist.evaluation.case_scores import score_case
from kits_dist.evaluation.lesions import detect
from kits_dist.evaluation.metrics import size_of
from kits_dist.labels import REGIONS


def masks(*boxes, shape=(6, 30, 30)):
    mask = np.zeros(shape, bool)
    for (d, h, w), size in boxes:
        mask[d : d + size, h : h + size, w : w + size] = True
    return mask


def test_found_missed_and_false_lesions():
    truth = masks(((0, 0, 0), 4), ((0, 10, 10), 3), ((0, 20, 20), 2))
    predicted = masks(((0, 2, 0), 4), ((0, 10, 20), 2), ((3, 0, 25), 1))
    found = detect(predicted, truth, voxel_ml=0.1)
    # 64 and 64 voxels, 2 of 4 rows shared: 2 * 32 / 128; the other two lesions are touched by nothing
    assert [(lesion.ml, lesion.dice) for lesion in found.lesions] == [(pytest.approx(6.4), 0.5), (2.7, 0), (0.8, 0)]
    assert found.false_positives == 2


def test_one_prediction_over_two_lesions_and_two_in_one():
    truth = masks(((0, 0, 0), 2), ((0, 0, 4), 2))
    predicted = masks(((0, 0, 0), 2), ((0, 0, 2), 2), ((0, 0, 4), 2))  # one bar of 6 x 2 x 2 over both
    found = detect(predicted, truth, 1)
    assert [lesion.dice for lesion in found.lesions] == [pytest.approx(2 * 8 / (8 + 24))] * 2
    assert found.false_positives == 0
    found = detect(truth, predicted, 1)  # the other way round: both parts belong to the one lesion
    assert [lesion.dice for lesion in found.lesions] == [pytest.approx(2 * 16 / (24 + 16))]


def test_voxels_that_share_a_corner_are_one_lesion():
    truth = masks(((0, 0, 0), 1), ((1, 1, 1), 1))
    assert len(detect(truth, truth, 1).lesions) == 1
    assert len(detect(truth, masks(((0, 0, 0), 1), ((1, 1, 2), 1)), 1).lesions) == 2


def test_without_lesions():
    none, some = masks(), masks(((0, 0, 0), 2))
    assert detect(none, none, 1) == ([], 0)
    assert detect(some, none, 1) == ([], 1)
    (missed,) = detect(none, some, 1).lesions
    assert missed == (8, 0)


def test_sizes():
    sizes = [size_of(ml) for ml in (0.1, 4.999, 5, 30, 30.001)]
    assert sizes == ["under_5_ml", "under_5_ml", "5_to_30_ml", "5_to_30_ml", "over_30_ml"]


def test_they_are_tumors_alone():
    truth = masks(((0, 0, 0), 3)).astype(np.uint8) * 2 + masks(((0, 10, 10), 4)).astype(np.uint8) * 3
    predicted = np.where(truth == 2, 2, 0).astype(np.uint8)
    lesions = score_case("a", predicted, truth, (10, 10, 10), REGIONS).lesions  # a voxel is 1 ml
    assert (lesions["true"], lesions["found"], lesions["false_positives"]) == (1, 1, 0)
    assert (lesions["5_to_30_ml"], lesions["5_to_30_ml_dice"], lesions["under_5_ml_dice"]) == (1, 1, None)
    assert score_case("a", predicted, truth, (1, 1, 1), {"mass": (2, 3)}).lesions == {}
