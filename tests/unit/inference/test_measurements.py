"""Volumes, sides and diameters of shapes known in closed form."""

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from kits_dist.imaging.nifti import kits_geometry, read_labels, write_nifti
from kits_dist.inference.measurements import diameter_mm, measure_label_map
from kits_dist.labels import KIDNEY, REGIONS, TUMOR
from tests.helpers import DATA, by_nibabel

TORSO = DATA / "real_ct" / "torso_3mm_totalsegmentator_labels.nii.gz"
SHAPE, MM = (20, 60, 100), (3.0, 0.8, 0.8)


def ball(shape, spacing_mm, center_mm, radius_mm):
    grids = np.meshgrid(*((np.arange(n) + 0.5) * mm for n, mm in zip(shape, spacing_mm, strict=True)), indexing="ij")
    return sum((grid - c) ** 2 for grid, c in zip(grids, center_mm, strict=True)) <= radius_mm**2


@pytest.fixture
def patient():
    """Right kidney 6 x 10 x 12 voxels, left 6 x 10 x 20 of which 2 x 3 x 4 are tumor."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:11, 20:30, 10:22] = KIDNEY
    labels[5:11, 20:30, 70:90] = KIDNEY
    labels[6:8, 22:25, 72:76] = TUMOR
    return labels


def test_volumes_by_hand(patient):
    found = measure_label_map(patient, MM)
    voxel_ml = 3 * 0.8 * 0.8 / 1000
    assert found["kidney_right_ml"] == pytest.approx(720 * voxel_ml, abs=1e-3)
    assert found["kidney_left_ml"] == pytest.approx((1200 - 24) * voxel_ml, abs=1e-3)
    assert found["tumor_ml"] == pytest.approx(24 * voxel_ml, abs=1e-3)
    assert found["tumors"] == 0  # 0.046 ml: below the 0.1 ml that count as one
    patient[6:10, 22:27, 72:80] = TUMOR  # 160 voxels, 0.307 ml
    patient[5, 5, 5] = TUMOR  # a speck
    assert measure_label_map(patient, MM)["tumors"] == 1


def test_left_is_left_however_the_file_is_stored(tmp_path, patient):
    """A file in RAS order, written by nibabel alone from world coordinates."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])  # voxel = mm, x towards the patient's left is negative... R is positive x
    stored = np.zeros((100, 60, 40), np.uint8)  # (x, y, z), x grows towards the patient's right
    stored[70:90, 20:30, 10:20] = KIDNEY  # 2,000 voxels on the right, 2 ml
    stored[10:20, 20:30, 10:20] = KIDNEY  # 1 ml on the left
    image = nib.Nifti1Image(stored, affine)
    assert nib.aff2axcodes(image.affine)[0] == "R"
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_labels(tmp_path / "a.nii.gz")
    found = measure_label_map(volume.array, volume.spacing_mm)
    assert (found["kidney_right_ml"], found["kidney_left_ml"]) == (2.0, 1.0)
    write_nifti(tmp_path / "b.nii.gz", volume.array, kits_geometry(volume.array.shape, (1, 1, 1)))
    again = read_labels(tmp_path / "b.nii.gz")
    assert measure_label_map(again.array, again.spacing_mm) == found


def test_a_kidney_over_the_midline_stays_one_and_a_horseshoe_is_cut(patient):
    both = measure_label_map(patient, MM)
    over = measure_label_map(patient, MM, midline=20)  # 10 of the right kidney's 12 columns lie right of it
    assert over["kidney_right_ml"] == both["kidney_right_ml"]
    everything_left = measure_label_map(patient, MM, midline=5)
    assert everything_left["kidney_right_ml"] == 0
    patient[5:11, 20:30, 22:70] = KIDNEY  # the bridge: one piece of 80 columns, 10..90
    horseshoe = measure_label_map(patient, MM, midline=50)
    assert horseshoe["kidney_right_ml"] == pytest.approx(6 * 10 * 40 * 3 * 0.64 / 1000, abs=1e-3)


def test_what_a_model_cannot_predict_is_absent(patient):
    assert set(measure_label_map(patient, MM, ("kidney_and_mass",))) == {"kidney_right_ml", "kidney_left_ml"}
    assert set(measure_label_map(patient, MM, ("tumor",))) == {"tumor_ml", "tumors", "tumor_diameter_mm"}
    empty = measure_label_map(np.zeros(SHAPE, np.uint8), MM)
    assert set(empty) == set(measure_label_map(patient, MM)) and not any(empty.values())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (3.0, 0.8, 0.6)])
def test_the_diameter_of_a_ball(spacing):
    shape = tuple(round(60 / mm) for mm in spacing)
    mask = ball(shape, spacing, (30, 29, 31), 20)
    assert diameter_mm(mask, spacing) == pytest.approx(40, abs=max(spacing))


def test_the_diameter_is_the_largest_distance_in_any_direction():
    generator = np.random.default_rng(0)
    for _ in range(5):
        mask = generator.random((6, 7, 8)) < 0.15
        spacing = tuple(generator.uniform(0.5, 5, 3))
        faces = np.concatenate([np.eye(3), -np.eye(3)]) / 2
        points = (np.argwhere(mask)[:, None] + faces).reshape(-1, 3) * np.array(spacing)  # every face of every voxel
        assert diameter_mm(mask, spacing) == pytest.approx(pdist(points).max(), rel=1e-12)
    rod = np.zeros((3, 3, 30), bool)
    rod[1, 1, 5:25] = True
    assert diameter_mm(rod, (3.0, 0.8, 0.5)) == pytest.approx(10.0)  # 20 voxels of 0.5 mm, end face to end face
    assert diameter_mm(np.zeros((2, 2, 2), bool), (1, 1, 1)) == 0


def test_only_the_largest_tumor_is_measured(patient):
    patient[patient == TUMOR] = KIDNEY
    patient[5:11, 20:30, 10:20] = TUMOR  # 10 x 0.8 mm wide
    patient[6, 25, 80] = TUMOR
    alone = (patient == TUMOR) & (np.arange(100) < 50)
    assert measure_label_map(patient, MM)["tumor_diameter_mm"] == pytest.approx(diameter_mm(alone, MM), abs=0.01)


def test_all_regions_are_asked_for_by_default():
    assert tuple(REGIONS) == measure_label_map.__defaults__[0]


@pytest.mark.kits
@pytest.mark.skipif(not TORSO.is_file(), reason=f"no {TORSO.name} in the data folder; set KITS_DATA to one with it")
def test_the_kidneys_of_a_real_torso_are_on_their_own_sides(tmp_path):
    """TotalSegmentator's labels, 2 the right kidney of 192.6 ml, 3 the left one of 137.4; stored with R, A and S up."""
    organs = nib.load(TORSO)
    kidneys = np.isin(np.asanyarray(organs.dataobj), (2, 3)).astype(np.uint8)
    nib.save(nib.Nifti1Image(kidneys, organs.affine), tmp_path / "kidneys.nii.gz")
    volume = read_labels(tmp_path / "kidneys.nii.gz")
    measured = measure_label_map(volume.array, volume.spacing_mm)
    assert (measured["kidney_right_ml"], measured["kidney_left_ml"]) == pytest.approx((192.6, 137.4), abs=0.05)
    assert np.array_equal(volume.array, np.isin(by_nibabel(TORSO), (2, 3)))
