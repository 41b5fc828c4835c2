"""Transplanted lesions keep their size and shape, and lie where a lesion can grow."""

import cc3d
import numpy as np
import pytest
from scipy import ndimage

from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.lesion_transplant import (
    GROWN_ML,
    DonorLesion,
    grow,
    resample_lesion,
    transplant,
    transplantable_lesions,
)
from kits_dist.synthetic.phantom import paint_case, room_for_lesions
from kits_dist.synthetic.shapes import grid_axes, rotation


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def ball(radius_mm: float, spacing_mm: tuple[float, float, float]) -> DonorLesion:
    axes = grid_axes(tuple(2 * int(radius_mm / s + 2) + 1 for s in spacing_mm), spacing_mm, (0.0, 0.0, 0.0))
    z, y, x = (m - m.mean() for m in axes.mesh())
    return DonorLesion(TUMOR, z * z + y * y + x * x < radius_mm**2, spacing_mm)


@pytest.mark.parametrize("spacing_mm", [(5.0, 0.8, 0.8), (1.0, 1.0, 1.0), (3.0, 1.5, 1.5)])
def test_a_lesion_keeps_size_and_shape_at_another_spacing(spacing_mm):
    for lesion in (ball(10.0, (1.0, 0.7, 0.7)), ball(12.0, (5.0, 0.8, 0.8))):
        mask = resample_lesion(lesion, spacing_mm, rotation(30.0, 80.0, -50.0))
        assert mask.sum() * np.prod(spacing_mm) / 1000 == pytest.approx(lesion.ml, rel=0.03)
        assert cc3d.connected_components(mask).max() == 1
        for axis, step in enumerate(spacing_mm):  # a ball is as wide as before, whatever the turn: 20 or 24 mm
            width = mask.any(axis=tuple(d for d in range(3) if d != axis)).sum() * step
            assert abs(width - 2 * (lesion.ml * 750 / np.pi) ** (1 / 3)) <= 2 * max(step, 2.5)


def test_a_lesion_is_turned_as_its_record_says():
    rod = np.zeros((5, 5, 31), bool)
    rod[1:-1, 1:-1, 1:-1] = True
    turn = rotation(30.0, 0.0, 20.0)
    mask = resample_lesion(DonorLesion(TUMOR, rod, (2.0, 1.0, 1.0)), (1.0, 1.0, 1.0), turn)
    longest = np.linalg.svd(np.argwhere(mask) - np.argwhere(mask).mean(0))[2][0]
    assert abs(longest @ turn[:, 2]) > 0.995  # where the rod's own direction, x, goes: within 6 degrees


def test_half_of_the_tumors_grow_up_to_the_largest_size():
    tumor = ball(12.0, (1.0, 1.0, 1.0))  # 7 ml
    sizes = np.array([grow(tumor, rng(seed)).ml for seed in range(300)])
    assert 0.4 < np.mean(sizes == tumor.ml) < 0.6
    assert sizes.min() == tumor.ml and 0.8 * GROWN_ML < sizes.max() <= GROWN_ML
    middle = np.exp((np.log(tumor.ml) + np.log(GROWN_ML)) / 2)  # half of the grown ones are larger
    assert 0.4 < np.mean(sizes[sizes > tumor.ml] > middle) < 0.6
    for unchanged in (tumor._replace(value=CYST), ball(45.0, (3.0, 3.0, 3.0))):  # a cyst; 382 ml
        assert all(grow(unchanged, rng(seed)) == unchanged for seed in range(9))


def test_lesions_are_those_that_can_be_moved():
    label = np.zeros((20, 60, 60), np.uint8)
    label[5:10, 5:15, 5:15] = TUMOR  # 0.5 ml at 1 mm
    label[10:15, 5:15, 5:15] = CYST  # against it, and a lesion of its own
    label[15:20, 30:40, 30:40] = TUMOR  # cut by the end of the scan
    label[3:5, 40:42, 40:42] = TUMOR  # a speck of 8 mm^3
    found = transplantable_lesions(label, (1.0, 1.0, 1.0))
    assert sorted((one.value, one.ml) for one in found) == [(TUMOR, 0.5), (CYST, 0.5)]


def test_a_transplanted_lesion_lies_where_it_could_have_grown(own, donor):
    room = room_for_lesions(own.label, own.spacing_mm, 0, 0)
    lesions = transplantable_lesions(donor.label, donor.spacing_mm)
    placed = 0
    for seed in range(12):
        found = transplant(own.label, own.spacing_mm, lesions[seed % len(lesions)], room, rng(seed))
        if found is None:
            continue
        after, about = found
        placed += 1
        new = after != own.label
        assert set(np.unique(after[new])) == {about.value} and new.sum() == about.voxels
        assert (own.label[new] <= KIDNEY).all() and (own.label[new] == KIDNEY).any()  # on no lesion, partly in kidney
        grown = ndimage.binary_dilation(new, np.ones((3, 3, 3))) & ~new
        assert (after[grown] == KIDNEY).any() and (after[grown] <= KIDNEY).all()  # against kidney, apart from lesions
        assert room[new].all()
        lost = np.sum(own.label == KIDNEY) - np.sum(after == KIDNEY)
        assert 0 < lost <= 0.25 * np.sum(own.label == KIDNEY)
    assert placed >= 6


def test_no_lesion_is_forced_where_there_is_no_place(own):
    lesion = ball(14.0, (2.0, 2.0, 2.0))
    room = np.ones(own.label.shape, bool)
    assert transplant(own.label, own.spacing_mm, lesion, room, rng(0)) is not None
    assert transplant(own.label, own.spacing_mm, lesion, own.label == KIDNEY, rng(0)) is None
    assert transplant(np.where(own.label == KIDNEY, TUMOR, 0), own.spacing_mm, lesion, room, rng(0)) is None
    assert transplant(own.label, own.spacing_mm, ball(60.0, (4.0, 4.0, 4.0)), room, rng(0)) is None


def test_a_lesion_needs_kidney_to_hang_on_and_to_remain():
    room = np.ones((40, 40, 40), bool)
    string, crumbs = np.zeros((2, 40, 40, 40), np.uint8)
    string[:, 20, 20] = KIDNEY  # a ball 18 mm wide takes 9 of its 40 voxels, and has 380
    assert transplant(string, (2.0, 2.0, 2.0), ball(9.0, (2.0, 2.0, 2.0)), room, rng(0)) is None
    crumbs[5:40:6, 5:40:6, 5:40:6] = crumbs[6:40:6, 5:40:6, 5:40:6] = KIDNEY  # pairs of voxels
    for seed in range(12):
        found = transplant(crumbs, (2.0, 2.0, 2.0), ball(4.0, (2.0, 2.0, 2.0)), room, rng(seed))
        if found:
            new = found[0] == TUMOR
            assert (found[0][ndimage.binary_dilation(new, np.ones((3, 3, 3)))] == KIDNEY).any()


def test_there_is_no_room_in_bone_muscle_and_air(own):
    image = paint_case(own.label, own.spacing_mm, 3, 0, 2).image
    room = room_for_lesions(own.label, own.spacing_mm, 3, 0, 2)
    outside = room & (own.label == 0)
    assert room[own.label > 0].all() and 0.05 < outside.mean() < 0.5
    air, bone = image < -700, image > 280  # HU of a voxel that is half fat: -550
    assert air.mean() > 0.1 and bone.mean() > 0.003
    assert np.mean(air[outside]) < 0.002  # the working grid is not the voxels' own
    assert np.mean(bone[outside]) < 0.01  # nor bone alone as bright: arteries are, and bowel with oral contrast
    assert not room[:, :3].any() and not room[:, -3:].any()  # air before the patient, air and table behind
