"""Variants of annotated cases: the same bits again, recorded parents, lesions of one donor at most."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from kits_dist.imaging.nifti import read_labels
from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.lesion_transplant import transplantable_lesions
from kits_dist.synthetic.phantom import paint_case, tissue_hu
from kits_dist.synthetic.variants import AnnotatedCase, draw_donor, make_variant

REAL_LABELS = Path(__file__).parents[4] / "shared" / "data" / "kits23_labels"


def test_a_variant_is_the_same_bits_again_and_says_what_it_is(own, donor):
    first, again = (make_variant(own, donor, 2, 0, 0, 1) for _ in range(2))
    assert np.array_equal(first.case.image, again.case.image) and first.record == again.record
    assert json.loads(json.dumps(first.record)) == first.record
    record, label = first.record, first.case.label
    assert record["made_from"] == [own.case_id, donor.case_id] and (record["seed"], record["variant"]) == (0, 1)
    assert record["lesions"] and all(one["donor"] == donor.case_id for one in record["lesions"])
    assert record["hu"] == tissue_hu(0, 0, 1) != tissue_hu(0, 0, 2)
    assert set(np.unique(label)) <= {0, KIDNEY, TUMOR, CYST} and label.shape == own.label.shape
    alone = make_variant(own, None, 0, 0, 0, 1)
    assert alone.record["made_from"] == [own.case_id] and alone.record["lesions"] == []
    added = label != alone.case.label
    voxel_ml = np.prod(own.spacing_mm) / 1000
    assert added.sum() * voxel_ml == pytest.approx(sum(one["ml"] for one in record["lesions"]), abs=0.02)
    bone, still = alone.case.image > 300, ~ndimage.binary_dilation(added, np.ones((3, 3, 3)))
    assert not (bone & added).any() and np.array_equal((first.case.image > 300) & still, bone & still)


def test_seed_case_and_number_each_make_another_variant(own):
    images = [make_variant(own, None, 0, *key).case.image for key in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2))]
    for i, image in enumerate(images):
        assert all(np.mean(image != other) > 0.9 for other in images[:i])
    zero = paint_case(own.label, own.spacing_mm, 5, 3, 0).image
    assert np.array_equal(zero, paint_case(own.label, own.spacing_mm, 5, 3).image)  # the case itself is variant 0


def test_a_donor_is_another_patient_drawn_in_any_order():
    ids = [f"case_{i:05d}" for i in range(10)]
    drawn = [draw_donor(ids[4], ids, 7, 4, number) for number in range(1, 401)]
    assert drawn == [draw_donor(ids[4], ids[::-1], 7, 4, number) for number in range(1, 401)]
    donors = [donor for donor, _ in drawn if donor]
    assert set(donors) == set(ids) - {ids[4]}
    assert [(donor is None) == (wanted == 0) for donor, wanted in drawn] == [True] * 400
    assert 0.15 < 1 - len(donors) / 400 < 0.35  # a quarter without
    assert {wanted for _, wanted in drawn} == {0, 1, 2}


@pytest.mark.kits
def test_variants_of_real_annotations():
    if not REAL_LABELS.is_dir():
        pytest.skip(f"needs real KiTS23 annotations in {REAL_LABELS}")

    def real(case_id: str) -> AnnotatedCase:
        volume = read_labels(REAL_LABELS / case_id / "segmentation.nii.gz")
        spacing_mm = volume.spacing_mm[0], 2 * volume.spacing_mm[1], 2 * volume.spacing_mm[2]
        return AnnotatedCase(case_id, np.ascontiguousarray(volume.array[:, ::2, ::2]), spacing_mm)

    own = real("case_00148")  # 36 slices, one tumor, no cyst; the donor has both, at another spacing
    label, record = (one := make_variant(own, real("case_00110"), 2, 0, 148, 1)).case.label, one.record
    for value in (KIDNEY, TUMOR):
        assert 0.6 < np.sum(label == value) / np.sum(own.label == value) < 3  # the added tumor is of 29 ml, its own 25
    assert [one["donor"] for one in record["lesions"]] == ["case_00110"] * 2
    found = sum(
        len(transplantable_lesions(np.where(label == value, label, 0), own.spacing_mm)) for value in (TUMOR, CYST)
    )
    assert found == len(transplantable_lesions(own.label, own.spacing_mm)) + 2
    assert np.mean(one.case.image[label >= TUMOR] > 250) < 0.01 and np.mean(one.case.image[label > 0] < -300) < 0.01
