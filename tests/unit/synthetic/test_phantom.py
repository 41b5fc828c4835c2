"""The phantom: reproducible, measured in mm, with the HU of real scans, the right way up, and no threshold task."""

from pathlib import Path

import numpy as np
import pytest

from kits_dist.imaging.nifti import read_labels
from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic import phantom
from kits_dist.synthetic.organs import ORGANS
from kits_dist.synthetic.phantom import PhantomCase, make_case, paint_case
from kits_dist.synthetic.shapes import Axes, Ellipsoid, grid_axes, interpolate, rotation, scanner_noise, soften
from tests.helpers.threshold_baseline import threshold_baseline

SIZE = (24, 96, 96)
REAL_LABELS = Path(__file__).parents[4] / "shared" / "data" / "kits23_labels"


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    return [make_case(1, i, (24, 96, 96)) for i in range(20)]


@pytest.fixture(scope="module")
def organs() -> tuple[np.ndarray, PhantomCase]:
    """(organ index per voxel, case): the working grid equals the voxel grid when voxels are coarser than its steps."""
    maps = []
    original = phantom.background

    def spy(*args):
        canvas = original(*args)
        maps.append(canvas.organ)
        return canvas

    phantom.background = spy
    try:
        case = make_case(2, 0, (32, 128, 128))
    finally:
        phantom.background = original
    return maps[0], case


def volume_ml(case: PhantomCase, value: int) -> float:
    return float((case.label == value).sum() * np.prod(case.spacing_mm) / 1000.0)


def lag1(field: np.ndarray, axis: int) -> float:
    """Autocorrelation of a zero-mean field with its neighbour along `axis`."""
    a = np.moveaxis(field, axis, 0)
    return float((a[1:] * a[:-1]).mean() / (a * a).mean())


# --- make_case --------------------------------------------------------------------------------------------------------


def test_same_seed_and_index_same_bits_whatever_came_before():
    first = make_case(5, 3, SIZE)
    np.random.seed(0)
    make_case(5, 4, SIZE)
    again = make_case(5, 3, SIZE)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.label, again.label)
    assert first.spacing_mm == again.spacing_mm
    assert first.image.dtype == np.int16 and first.label.dtype == np.uint8
    assert first.image.shape == first.label.shape == SIZE


@pytest.mark.parametrize(("seed", "index"), [(5, 4), (6, 3), (3, 5)])
def test_another_index_or_seed_is_another_patient(seed, index):
    a, b = make_case(5, 3, SIZE), make_case(seed, index, SIZE)
    assert not np.array_equal(a.label, b.label)
    assert np.mean(a.image != b.image) > 0.9


@pytest.mark.parametrize("size", [(16, 96, 96), (20, 96, 128), (40, 100, 97)])
def test_free_spacing_gives_a_plausible_field_of_view(size):
    case = make_case(0, 1, size)
    d, h, w = case.spacing_mm
    assert 160 <= d * size[0] <= 220.1
    assert h == w and 380 <= h * min(size[1:]) <= 420.1
    assert (case.label == TUMOR).any() and (case.label == KIDNEY).any()


def test_anatomy_is_in_mm():
    coarse = make_case(7, 0, (40, 112, 112), (5.0, 3.6, 3.6))
    fine = make_case(7, 0, (66, 134, 134), (3.0, 3.0, 3.0))
    assert coarse.spacing_mm == (5.0, 3.6, 3.6)
    for value in (KIDNEY, TUMOR):  # 5 %: a 10 ml tumor has 150 voxels of 65 mm^3
        assert volume_ml(fine, value) == pytest.approx(volume_ml(coarse, value), rel=0.05)


def test_thick_slices_and_short_scans_still_hold_a_tumor():
    for index in range(4):
        assert (make_case(0, index, (8, 64, 64), (20.0, 6.0, 6.0)).label == TUMOR).any()
        assert (make_case(0, index, (16, 96, 96), (2.0, 4.0, 4.0)).label == TUMOR).any()


def test_labels_come_in_plausible_shares(cases):
    kidney = np.array([volume_ml(c, KIDNEY) for c in cases])
    tumor = np.array([volume_ml(c, TUMOR) for c in cases])
    cyst = np.array([volume_ml(c, CYST) for c in cases])
    assert kidney.min() > 150 and kidney.max() < 532  # 182-532 ml in the KiTS23 labels at hand; large tumors eat some
    assert tumor.min() > 1.0 and tumor.max() < 450 and 10 < np.median(tumor) < 80  # KiTS21: median 33
    assert 0.25 < np.mean(cyst > 0) < 0.75  # KiTS21: 148 of 300
    assert all(set(np.unique(c.label)) <= {0, KIDNEY, TUMOR, CYST} for c in cases)


def test_every_tumor_touches_a_kidney(cases):
    for case in cases:
        tumor, kidney = case.label == TUMOR, case.label == KIDNEY
        touching = (tumor[:, :, 1:] & kidney[:, :, :-1]).any() | (tumor[:, :, :-1] & kidney[:, :, 1:]).any()
        touching |= (tumor[:, 1:] & kidney[:, :-1]).any() | (tumor[:, :-1] & kidney[:, 1:]).any()
        assert touching


def test_hu_are_those_of_real_scans(cases):
    means = {
        value: np.array([c.image[c.label == value].mean() for c in cases if (c.label == value).sum() > 40])
        for value in (KIDNEY, TUMOR, CYST)
    }
    assert 113 <= means[KIDNEY].mean() <= 138 and means[KIDNEY].min() > 44 and means[KIDNEY].max() < 211
    assert 48 <= means[TUMOR].mean() <= 75 and means[TUMOR].min() > 15 and means[TUMOR].max() < 193
    assert 10 <= means[CYST].mean() <= 40  # measured 14-28, plus the partial volume of 3 mm voxels
    tumor = np.concatenate([c.image[c.label == TUMOR] for c in cases])
    assert 20 < tumor.std() < 45  # measured 35
    assert np.mean(tumor > 44) > 0.3  # overlaps the darkest kidneys and muscle: HU alone cannot tell


def test_hu_of_fat_muscle_liver_and_air(organs):
    organ, case = organs

    def values(name: str) -> np.ndarray:
        inside = organ == ORGANS.index(name)
        inside[:, 1:-1, 1:-1] &= inside[:, 2:, 1:-1] & inside[:, :-2, 1:-1] & inside[:, 1:-1, 2:] & inside[:, 1:-1, :-2]
        return case.image[inside & (case.label == 0)].astype(float)

    assert np.median(values("fat")) == pytest.approx(-103, abs=8)
    assert np.median(values("muscle")) == pytest.approx(59, abs=12)
    assert 10 < values("muscle").std() < 28  # measured 18
    assert 75 < np.median(values("liver")) < 140
    assert np.median(values("air")) == pytest.approx(-1005, abs=8)
    assert np.median(values("bone")) > 180


def test_the_patient_lies_the_kits_way_round(organs):
    """Axis codes I P L: columns grow to the patient's left, rows to the back, slices to the feet."""
    organ, case = organs
    height, width = case.image.shape[1:]
    names = ("liver", "spleen", "bone", "muscle")
    centre = {name: np.argwhere(organ == ORGANS.index(name)).mean(0) for name in names}
    assert centre["liver"][2] < width / 2 < centre["spleen"][2]
    assert centre["bone"][1] > height / 2 and centre["muscle"][1] > centre["liver"][1]
    assert centre["liver"][0] < case.image.shape[0] / 2  # the liver is in the cranial half


# --- paint_case -------------------------------------------------------------------------------------------------------


def test_painting_keeps_the_annotation_bit_for_bit_and_is_reproducible():
    source = make_case(3, 0, SIZE)
    kept = source.label.copy()
    painted = paint_case(source.label, source.spacing_mm, 9, 1)
    again = paint_case(source.label, source.spacing_mm, 9, 1)
    assert np.array_equal(painted.label, kept) and np.array_equal(source.label, kept)
    assert np.array_equal(painted.image, again.image)
    assert painted.image.shape == kept.shape and painted.spacing_mm == source.spacing_mm
    assert not np.array_equal(painted.image, source.image)
    kidney = painted.image[kept == KIDNEY]
    assert 80 < kidney.mean() < 210


@pytest.mark.parametrize("side", ["right", "left", "one voxel"])
def test_painting_one_kidney_puts_the_spine_on_its_inner_side(side):
    case = make_case(3, 0, SIZE)
    label = case.label.copy()
    if side == "one voxel":
        label[:] = 0
        label[12, 48, 30] = TUMOR
    else:
        label[:, :, 48:] *= side == "left"
        label[:, :, :48] *= side == "right"
    painted = paint_case(label, case.spacing_mm, 0, 0)
    columns = np.argwhere(label > 0)[:, 2].mean(), np.argwhere(painted.image > 280)[:, 2].mean()
    assert (columns[1] < columns[0]) == (side == "left")


@pytest.mark.kits
def test_painting_real_annotations_leaves_them_alone():
    if not REAL_LABELS.is_dir():
        pytest.skip(f"needs real KiTS23 annotations in {REAL_LABELS}")
    for case_id in ("case_00110", "case_00148"):  # 34 and 36 slices of 512 x 512
        volume = read_labels(REAL_LABELS / case_id / "segmentation.nii.gz")
        label = volume.array[:, ::2, ::2]
        spacing_mm = volume.spacing_mm[0], 2 * volume.spacing_mm[1], 2 * volume.spacing_mm[2]
        painted = paint_case(label, spacing_mm, 0, 0)
        assert np.array_equal(painted.label, label)
        assert 70 < painted.image[label == KIDNEY].mean() < 210
        assert (painted.image < -500).mean() > 0.1  # there is air around the trunk


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0.3, 0.45, 0.6])
def test_noise_has_the_asked_sd_and_correlation(wanted):
    noise = scanner_noise(np.random.default_rng(0), (12, 128, 128), 20.0, wanted)
    assert noise.dtype == np.float32 and noise.shape == (12, 128, 128)
    assert noise.std() == pytest.approx(20.0, rel=0.02)  # 2e5 voxels, about 1e5 independent: 0.3 %
    assert lag1(noise, 1) == pytest.approx(wanted, abs=0.02)
    assert lag1(noise, 2) == pytest.approx(wanted, abs=0.02)
    assert abs(lag1(noise, 0)) < 0.02


def test_noise_in_a_case_is_correlated_and_thinner_slices_are_noisier(cases):
    for case in cases[:6]:
        corner = case.image[:, :10, :40].astype(float)  # air in front of the patient
        corner -= corner.mean()
        assert 0.3 <= lag1(corner, 1) <= 0.6 and 0.3 <= lag1(corner, 2) <= 0.6
    assert 18 <= phantom.noise_sd_hu(1.5) <= phantom.noise_sd_hu(0.5) <= 28
    assert 10 <= phantom.noise_sd_hu(5.0) <= phantom.noise_sd_hu(3.0) <= 15


def test_ellipsoid_distance_on_the_axes():
    axes = Axes(*(np.array([-20.0, 0.0, 8.0, 10.0, 13.0], np.float32) for _ in range(3)))
    distance = Ellipsoid((0.0, 0.0, 0.0), (10.0, 10.0, 10.0)).distance(axes)
    assert distance[2, 1, 1] == pytest.approx(2.0, abs=1e-4)  # 10 - 8
    assert distance[3, 1, 1] == pytest.approx(0.0, abs=1e-4)
    assert distance[1, 4, 1] == pytest.approx(-3.0, abs=1e-4)  # 10 - 13
    assert distance[1, 1, 1] == pytest.approx(10.0, abs=1e-3)
    turn = rotation(20, 30, 40)
    assert np.allclose(turn @ turn.T, np.eye(3))


def test_interpolation_is_exact_on_a_ramp_and_soften_keeps_the_sum():
    coarse, fine = grid_axes((3, 3, 3), (4.0, 4.0, 4.0), (0, 0, 0)), grid_axes((9, 9, 9), (1.0, 1.0, 1.0), (0, 0, 0))
    ramp = sum(c * m for c, m in zip((1, 2, 3), coarse.mesh(), strict=True)).astype(np.float32)
    want = sum(c * m for c, m in zip((1, 2, 3), fine.mesh(), strict=True))
    assert np.allclose(interpolate(ramp, coarse, fine), want, atol=1e-4)
    dot = np.zeros((3, 5, 5), np.float32)
    dot[1, 2, 2] = 8.0
    soft = soften(dot, (0.0, 0.25, 0.25))
    assert soft.sum() == pytest.approx(8.0) and soft[1, 2, 2] == pytest.approx(2.0)  # 8 * 0.5 * 0.5


# --- is it worth training on? -----------------------------------------------------------------------------------------


def test_a_threshold_cannot_find_the_tumors(cases):
    fit = threshold_baseline(cases[:4], cases[14:])
    assert fit.test_dice <= 0.35, fit
