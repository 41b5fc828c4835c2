"""Rules of anatomy on label maps drawn by hand: 1 mm voxels, so 1 ml is 1,000 voxels."""

import json

import numpy as np
import pytest

from kits_dist.inference.postprocessing import FILE, Rules, candidates, clean, load_rules
from kits_dist.labels import BACKGROUND, CYST, KIDNEY, TUMOR
from kits_dist.utils.errors import InputError

MM = (1.0, 1.0, 1.0)


def box(labels, at, size, label):
    labels[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))] = label


@pytest.fixture
def patient():
    """Two kidneys of 1 ml, each 10 x 10 x 10; in the first a tumor of 64 voxels and a cyst of 8 that touch it."""
    labels = np.zeros((20, 40, 60), np.uint8)
    box(labels, (5, 5, 5), (10, 10, 10), KIDNEY)
    box(labels, (5, 5, 45), (10, 10, 10), KIDNEY)
    box(labels, (6, 6, 6), (4, 4, 4), TUMOR)
    box(labels, (12, 12, 12), (2, 2, 2), CYST)
    return labels


def test_no_rule_changes_nothing_and_gives_a_copy(patient):
    cleaned = clean(patient, MM, Rules())
    assert np.array_equal(cleaned, patient) and not np.shares_memory(cleaned, patient)
    assert np.array_equal(clean(np.zeros_like(patient), MM, Rules(two_kidneys=True)), np.zeros_like(patient))


def test_no_rule_changes_a_sound_patient(patient):
    rules = Rules(True, True, min_tumor_ml=0.064, min_cyst_ml=0.008, min_kidney_ml=1.0, two_kidneys=True)
    assert np.array_equal(clean(patient, MM, rules), patient)


def test_all_but_the_two_largest_components_are_removed(patient):
    dirty = patient.copy()
    box(dirty, (0, 30, 30), (4, 4, 4), KIDNEY)
    box(dirty, (0, 30, 50), (2, 2, 2), TUMOR)
    assert np.array_equal(clean(dirty, MM, Rules(two_kidneys=True)), patient)


def test_the_smaller_of_two_unequal_kidneys_stays_when_a_third_piece_goes(patient):
    patient[:, :, 40:] = 0
    box(patient, (5, 5, 45), (6, 6, 6), KIDNEY)
    dirty = patient.copy()
    box(dirty, (0, 30, 30), (2, 2, 2), KIDNEY)
    assert np.array_equal(clean(dirty, MM, Rules(two_kidneys=True)), patient)


def test_components_are_connected_over_corners(patient):
    corner = patient.copy()
    box(corner, (15, 15, 15), (2, 2, 2), KIDNEY)  # touches the first kidney at one corner
    box(corner, (0, 30, 30), (1, 1, 1), KIDNEY)
    cleaned = clean(corner, MM, Rules(two_kidneys=True))
    assert cleaned[16, 16, 16] == KIDNEY and cleaned[0, 30, 30] == BACKGROUND


def test_tumors_and_cysts_that_touch_no_kidney_even_indirectly_are_removed(patient):
    dirty = patient.copy()
    box(dirty, (0, 30, 30), (6, 6, 6), TUMOR)
    box(dirty, (0, 30, 40), (2, 2, 2), CYST)
    kept = patient.copy()
    for labels in (dirty, kept):
        box(labels, (7, 7, 15), (2, 2, 2), CYST)  # next to the first kidney
        box(labels, (7, 7, 17), (2, 2, 2), TUMOR)  # next to that cyst
    assert np.array_equal(clean(dirty, MM, Rules(touch_kidney=True)), kept)


def test_a_small_mass_becomes_what_it_touches(patient):
    dirty = patient.copy()
    box(dirty, (7, 7, 50), (2, 2, 2), TUMOR)  # inside the second kidney
    box(dirty, (0, 30, 30), (2, 2, 2), TUMOR)  # alone
    box(dirty, (12, 12, 13), (1, 1, 1), TUMOR)  # in the cyst, which keeps 7 voxels
    assert np.array_equal(clean(dirty, MM, Rules(min_tumor_ml=0.05)), patient)
    # the cyst of 8 voxels lies in the kidney
    expected = np.where(patient == CYST, KIDNEY, patient)
    assert np.array_equal(clean(patient, MM, Rules(min_cyst_ml=0.009)), expected)


def test_volumes_are_in_ml_whatever_the_voxels(patient):
    spacing = (5.0, 0.8, 0.8)  # 3.2 mm^3: the tumor has 64 * 3.2 = 204.8 mm^3
    assert (clean(patient, spacing, Rules(min_tumor_ml=0.204)) == TUMOR).sum() == 64
    assert not (clean(patient, spacing, Rules(min_tumor_ml=0.206)) == TUMOR).any()


def test_small_components_of_kidney_are_removed_with_their_masses(patient):
    dirty = patient.copy()
    box(dirty, (0, 30, 30), (6, 6, 6), KIDNEY)
    box(dirty, (1, 31, 31), (2, 2, 2), TUMOR)
    assert np.array_equal(clean(dirty, MM, Rules(min_kidney_ml=0.217)), patient)
    assert np.array_equal(clean(dirty, MM, Rules(min_kidney_ml=0.216)), dirty)


def test_holes_are_filled_with_what_encloses_them(patient):
    holed = patient.copy()
    box(holed, (7, 7, 7), (2, 2, 2), KIDNEY)  # a necrotic core, called kidney
    holed[8, 8, 8] = BACKGROUND
    box(holed, (9, 9, 49), (2, 2, 2), BACKGROUND)  # inside the second kidney
    assert np.array_equal(clean(holed, MM, Rules(fill_holes=True)), patient)
    opened = patient.copy()
    box(opened, (9, 9, 49), (2, 2, 6), BACKGROUND)  # open to the right: no hole
    assert np.array_equal(clean(opened, MM, Rules(fill_holes=True)), opened)


def test_what_is_tried_depends_on_what_a_model_predicts():
    assert {rule for rule, _ in candidates(("tumor",))} == {"min_tumor_ml"}
    assert "min_cyst_ml" not in {rule for rule, _ in candidates(("kidney_and_mass", "tumor"))}
    for rule, value in candidates(("kidney_and_mass", "mass", "tumor")):
        assert Rules(**{rule: value}).active == {rule: value}


def test_stored_rules_are_for_one_run_and_its_exact_weights(tmp_path):
    run = [tmp_path]
    assert load_rules(run, 7, True) == (Rules(), load_rules(run, 7, True)[1])
    assert f"python -m kits_dist.postprocess run={tmp_path}" in load_rules(run, 7, True)[1]
    (tmp_path / FILE).write_text(json.dumps({"rules": {"min_tumor_ml": 0.5, "two_kidneys": True}, "step": 7}))
    rules, said = load_rules(run, 7, True)
    assert rules == Rules(min_tumor_ml=0.5, two_kidneys=True)
    assert said == "post-processing: min_tumor_ml=0.5, two_kidneys (chosen on val)"
    for other in (
        load_rules(run, 8, True),
        load_rules(run, 7, False),
        load_rules([tmp_path, tmp_path], [7, 7], True),
    ):
        assert other[0] == Rules() and "post-processing: none" in other[1]
    assert "chosen for the weights of step 7, these are of 8" in load_rules(run, 8, True)[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "not an object"),
        ('{"step": 7}', "cannot be used .'rules'"),
        ('{"step": 7, "rules": {"three_kidneys": true}}', "cannot be used .*three_kidneys"),
        ('{"step": 7, "rules": {"min_tumor_ml": -1}}', "cannot be used .min_tumor_ml=-1: use 0..1000 ml"),
        ('{"step": 7, "rules": {"two_kidneys": 3}}', "cannot be used .two_kidneys=3: true or false"),
    ],
)
def test_a_damaged_choice_is_refused(tmp_path, content, words):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match=words):
        load_rules([tmp_path], 7, True)
