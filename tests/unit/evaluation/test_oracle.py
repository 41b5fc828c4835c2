"""Dice and surface Dice against the challenge's own tool: DeepMind's surface_distance (a development dependency)."""

import os
from collections.abc import Callable
from pathlib import Path

import cc3d
import numpy as np
import pytest
from scipy import ndimage

from kits_dist.evaluation.case_scores import score_case
from kits_dist.evaluation.surface_distance import element_areas_mm2, surface_of, surface_scores
from kits_dist.imaging.nifti import read_labels
from kits_dist.labels import REGIONS, TOLERANCES_MM
from kits_dist.utils.components import bounding_box
from tests.unit.evaluation.test_surface_distance import blob

oracle = pytest.importorskip("surface_distance", reason="the oracle is not installed: pip install -e .[dev]")
LABELS = Path(os.environ.get("KITS_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")) / "kits23_labels"
LARGE = 3_000_000  # voxels of a cropped annotation: four of the 34
CASES = sorted(path.name for path in LABELS.glob("case_*"))
needs_labels = pytest.mark.skipif(
    not CASES, reason="no kits23_labels/ in the data folder; set KITS_DATA to one with it"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def official(predicted, truth, spacing_mm, tolerance_mm) -> tuple[float, float]:
    """(Dice, surface Dice) of two masks by the challenge's rules."""
    if not predicted.any() or not truth.any():
        both = float(predicted.any() == truth.any())
        return both, both
    distances = oracle.compute_surface_distances(truth, predicted, spacing_mm)
    return (
        oracle.compute_dice_coefficient(truth, predicted),
        oracle.compute_surface_dice_at_tolerance(distances, tolerance_mm),
    )


def check_case(predicted, truth, spacing_mm) -> dict[str, float]:
    """Compare the three regions; returns our Dice of them."""
    score = score_case("case", predicted, truth, spacing_mm, REGIONS)
    for region, labels in REGIONS.items():
        ours = score.regions[region]
        dice, surface = official(np.isin(predicted, labels), np.isin(truth, labels), spacing_mm, TOLERANCES_MM[region])
        assert ours["dice"] == pytest.approx(dice, abs=1e-12), region
        assert ours["surface_dice"] == pytest.approx(surface, abs=1e-9), region
    return {region: figures["dice"] for region, figures in score.regions.items()}


def test_the_areas_of_all_256_elements():
    rng = np.random.default_rng(0)
    for spacing in ((1.0, 1.0, 1.0), (5.0, 0.7, 0.7), *(tuple(rng.uniform(0.3, 6, 3)) for _ in range(5))):
        theirs = oracle.lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
        np.testing.assert_allclose(element_areas_mm2(spacing), theirs, rtol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_random_blobs_of_random_spacing(seed):
    rng = np.random.default_rng(seed)
    a, b = (blob(rng, tuple(rng.integers(4, 14, 3))) for _ in range(2))
    b = np.pad(b, [(0, n) for n in a.shape])[tuple(map(slice, a.shape))]
    spacing = tuple(rng.uniform(0.4, 5, 3))
    a_surface, b_surface = surface_of(a, spacing), surface_of(b, spacing)
    for tolerance in rng.uniform(0.2, 6, 4):
        ours = surface_scores(a_surface, b_surface, spacing, tolerance)
        assert ours.surface_dice == pytest.approx(official(a, b, spacing, tolerance)[1], abs=1e-9)
    if a.any() and b.any():
        distances = oracle.compute_surface_distances(b, a, spacing)
        assert ours.hd95_mm == pytest.approx(oracle.compute_robust_hausdorff(distances, 95), abs=1e-9)
        of_b, of_a = oracle.compute_average_surface_distance(distances)
        areas = distances["surfel_areas_gt"].sum(), distances["surfel_areas_pred"].sum()
        assert ours.assd_mm == pytest.approx((of_b * areas[0] + of_a * areas[1]) / sum(areas), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_random_label_maps(seed):
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(2):
        labels = blob(rng, (8, 20, 18)).astype(np.uint8)
        labels[blob(rng, labels.shape) & (labels > 0)] = 3
        labels[blob(rng, labels.shape) & blob(rng, labels.shape) & (labels > 0)] = 2
        maps.append(labels)
    spacing = (float(rng.uniform(0.5, 5)), 0.78, 0.78)
    check_case(*maps, spacing)
    apart = [np.pad(one, [(before, 9 - before) for before in rng.integers(0, 9, 3)]) for one in maps]
    check_case(*apart, spacing)  # their boxes begin at other voxels


def perturbations(truth: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """What networks get wrong, and what they never should; small ones get all of them, see `check_real`."""
    cross = ndimage.generate_binary_structure(3, 1)

    def dilated() -> np.ndarray:
        labels = truth.copy()
        for label in (1, 3, 2):
            labels[ndimage.binary_dilation(truth == label, cross) & (labels == 0)] = label
        return labels

    return {
        "equal": lambda: truth,
        "shifted": lambda: np.roll(truth, (1, 2, -3), axis=(0, 1, 2)),
        "a component dropped": lambda: np.where(cc3d.connected_components(truth, connectivity=26) == 1, 0, truth),
        "empty": lambda: np.zeros_like(truth),
        "no tumor": lambda: np.where(truth == 2, 1, truth),
        "relabeled": lambda: np.array([0, 1, 3, 2])[truth],
        "dilated": dilated,
        "eroded": lambda: np.where(ndimage.binary_erosion(truth > 0, cross), truth, 0),
    }


def check_real(case_id: str, most: int = 8) -> None:
    """Compare with up to `most` perturbed copies of an annotation; large ones with three, which take a minute."""
    volume = read_labels(LABELS / case_id / "segmentation.nii.gz")
    # cropped to the labels and a margin: perturbations process every voxel
    truth = volume.array[tuple(slice(max(part.start - 4, 0), part.stop + 4) for part in bounding_box(volume.array))]
    chosen = list(perturbations(truth).items())[: 3 if truth.size > LARGE else most]
    dice = {name: check_case(make().astype(np.uint8), truth, volume.spacing_mm) for name, make in chosen}
    assert dice["equal"] == dict.fromkeys(REGIONS, 1.0) and 0 < dice["shifted"]["tumor"] < 1
    assert "empty" not in dice or dice["empty"]["tumor"] == 0
    assert "eroded" not in dice or dice["eroded"]["kidney_and_mass"] < 1


@pytest.mark.kits
@needs_labels
def test_a_real_annotation_against_perturbed_copies():
    check_real("case_00064", most=4)  # the smallest box


@pytest.mark.slow
@pytest.mark.spread
@pytest.mark.kits
@needs_labels
@pytest.mark.parametrize("case_id", CASES)
def test_all_real_annotations_against_perturbed_copies(case_id):
    check_real(case_id)
