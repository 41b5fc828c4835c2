import itertools

import numpy as np
import pytest
import torch

from kits_dist.labels import (
    REGION_LABEL,
    REGIONS,
    TOLERANCES_MM,
    regions_to_labels,
    scored_regions,
    slice_with_most_tumor,
)


def test_later_regions_overwrite_earlier_ones_and_only_inside_the_kidney():
    kidney = np.array([1, 1, 1, 0, 0], bool)
    mass = np.array([0, 1, 1, 1, 0], bool)
    tumor = np.array([0, 0, 1, 1, 0], bool)
    labels = regions_to_labels(np.stack([kidney, mass, tumor]), ("kidney_and_mass", "mass", "tumor"))
    assert labels.tolist() == [1, 3, 2, 0, 0]  # the fourth pixel is outside kidney_and_mass


def test_a_model_of_one_region_gives_its_label():
    assert regions_to_labels(np.array([[1, 0]], bool), ("tumor",)).tolist() == [2, 0]


@pytest.mark.parametrize("regions", [r for n in (1, 2, 3) for r in itertools.combinations(REGIONS, n)], ids="+".join)
def test_arrays_and_tensors_become_the_same_labels(regions):
    inside = np.random.default_rng(0).random((len(regions), 5, 6, 7)) < 0.5
    expected = np.zeros((5, 6, 7), np.uint8)
    within = inside[0] if regions[0] == "kidney_and_mass" else True
    for region, mask in zip(regions, inside, strict=True):
        expected[mask & within] = REGION_LABEL[region]
    for labels in (regions_to_labels(inside, regions), regions_to_labels(torch.from_numpy(inside), regions).numpy()):
        assert labels.dtype == np.uint8 and np.array_equal(labels, expected)


def test_wrong_number_of_maps_is_refused():
    with pytest.raises(ValueError, match="2 masks for 1 regions"):
        regions_to_labels(np.zeros((2, 3), bool), ("tumor",))


def test_what_cannot_be_predicted_is_absent():
    assert list(scored_regions(("kidney_and_mass", "tumor"))) == ["kidney_and_mass", "tumor"]
    assert list(scored_regions(("kidney_and_mass", "mass", "tumor"))) == [
        "kidney_and_mass",
        "mass",
        "tumor",
        "kidney",
        "cyst",
    ]


def test_the_slice_to_show_has_the_most_tumor_or_else_the_most_foreground():
    labels = np.zeros((3, 2, 4), np.uint8)
    assert slice_with_most_tumor(labels) == 0
    labels[1] = 1
    assert slice_with_most_tumor(labels) == 1
    labels[2, 0, 0] = 2
    assert slice_with_most_tumor(labels) == 2


def test_the_tolerances_are_those_of_the_challenge():
    assert list(TOLERANCES_MM.items()) == [  # HEC_SD_TOLERANCES_MM of kits23
        ("kidney_and_mass", 1.0330772532390826),
        ("mass", 1.1328796488598762),
        ("tumor", 1.1498198361434828),
    ]
