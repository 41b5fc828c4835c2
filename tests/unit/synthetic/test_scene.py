"""Painted scans vary as real ones do: HU by phase, overlap between organs, noise, and what lies around the kidneys."""

import numpy as np
import pytest

from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic import phantom
from kits_dist.synthetic.organs import ORGANS
from kits_dist.synthetic.phantom import make_case, paint_case, tissue_hu
from kits_dist.synthetic.scene import draw_scene

# 10th, 50th and 90th percentile of the means of real KiTS cases, HU clipped to [0, 255].
REAL_KIDNEYS = (50, 114, 158)
REAL_TUMORS = (30, 68, 108)


@pytest.fixture(scope="module")
def drawn() -> list[dict[str, float]]:
    pairs = [draw_scene(np.random.default_rng(seed)) for seed in range(2000)]
    return [patient._asdict() | scene._asdict() for patient, scene in pairs]


@pytest.fixture(scope="module")
def painted() -> list[tuple[phantom.PhantomCase, np.ndarray]]:
    """Four painted CTs with their organ maps; the working grid is the voxel grid, since voxels are no finer."""
    source = make_case(1, 0, (24, 96, 96), (5.0, 4.0, 4.0))
    found, maps, original = [], [], phantom.paint_background

    def spy(*args):
        grid = original(*args)
        maps.append(grid.organ)
        return grid

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "paint_background", spy)
        for index in range(4):
            found.append(paint_case(source.label, source.spacing_mm, 0, index))
    return list(zip(found, maps, strict=True))


def percentiles(values: list[float]) -> np.ndarray:
    return np.percentile(values, (10, 50, 90))


def test_kidneys_and_tumors_spread_as_real_ones_do(drawn):
    kidneys = [0.65 * one["cortex_hu"] + 0.35 * one["medulla_hu"] for one in drawn]  # a third of a kidney is medulla
    assert np.abs(percentiles(kidneys) - REAL_KIDNEYS).max() < 25
    tumors = [one["tumor_hu"] if not one["necrosis"] else 0.7 * one["tumor_hu"] + 0.3 * one["core_hu"] for one in drawn]
    assert np.abs(percentiles(tumors) - REAL_TUMORS).max() < 15


def test_hu_alone_never_tells_the_kidney(drawn):
    """In a tenth of the scans or more, each of these is as bright as the kidney, and in as many clearly is not."""
    kidney = np.array([0.65 * one["cortex_hu"] + 0.35 * one["medulla_hu"] for one in drawn])
    for other in ("spleen_hu", "liver_hu", "vein_hu", "bone_hu", "bowel_wall_hu", "tumor_hu"):
        apart = np.abs(kidney - np.array([one[other] for one in drawn]))
        assert np.mean(apart < 15) > 0.1 and np.mean(apart > 40) > 0.1, other


def test_arterial_native_and_even_kidneys_are_all_drawn(drawn):
    contrast = np.array([one["cortex_hu"] - one["medulla_hu"] for one in drawn])
    assert np.mean(contrast > 60) > 0.2 and np.mean(contrast < 15) > 0.2
    assert np.mean([one["cortex_hu"] < 60 for one in drawn]) > 0.05
    assert np.mean([one["cortex_hu"] > 200 for one in drawn]) > 0.05


def test_the_hu_that_are_drawn_are_those_of_the_image(painted):
    for index, (case, _) in enumerate(painted):
        hu = tissue_hu(0, index)
        kidney = case.image[case.label == KIDNEY].mean()
        low, high = sorted((hu["cortex_hu"], hu["medulla_hu"]))
        assert low - 25 < kidney < high + 15  # voxels of 4 mm hold fat at the surface
        assert -40 < case.image[case.label == CYST].mean() < 60 or not (case.label == CYST).any()
        assert (case.label == TUMOR).any()


def test_organs_lie_where_they_do_in_patients(painted):
    """Axis codes I P L: columns grow to the patient's left, rows to the back, slices to the feet."""
    for case, organ in painted:
        width = case.image.shape[2]
        centre = {
            name: np.argwhere(organ == ORGANS.index(name)).mean(0) for name in ("liver", "spleen", "bone", "bowel")
        }
        assert centre["liver"][2] < width / 2 < centre["spleen"][2]
        assert centre["bone"][1] > np.argwhere(case.label > 0)[:, 1].mean() > centre["bowel"][1]
        shares = [np.mean(organ == ORGANS.index(name)) for name in ("fat", "muscle", "wall", "bowel", "bone", "vessel")]
        assert min(shares) > 0.002 and np.mean(organ == ORGANS.index("air")) > 0.1


def test_fat_muscle_and_noise_are_those_of_real_scans(painted):
    for case, organ in painted:
        inside = organ == ORGANS.index("muscle")
        inside[:, 1:-1, 1:-1] &= inside[:, 2:, 1:-1] & inside[:, :-2, 1:-1] & inside[:, 1:-1, 2:] & inside[:, 1:-1, :-2]
        muscle = case.image[inside & (case.label == 0)]
        assert 25 < np.median(muscle) < 80 and 10 < muscle.std() < 60  # measured 59 +- 18, with streaks of fat
        fat = case.image[(organ == ORGANS.index("fat")) & (case.label == 0)]
        assert np.median(fat) == pytest.approx(-100, abs=15)  # measured -103
        corner = case.image[:, :8, :30].astype(float)  # air in front of the patient
        assert 8 < corner.std() < 38  # measured 10-15 at 3-5 mm and 18-28 at 0.5-1.6 mm, more with sharp kernels
