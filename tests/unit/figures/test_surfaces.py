"""Pictures of shapes whose silhouette is known."""

import numpy as np
import pytest

from kits_dist.figures.contours import draw_contours
from kits_dist.figures.surfaces import BACKGROUND_GRAY, Viewpoint, fit_camera, render
from kits_dist.labels import COLORS, CYST, KIDNEY, LABEL_COLORS, TUMOR
from tests.unit.inference.test_measurements import ball

FRONT = Viewpoint(0, 0)
FIELD_MM = 80


def picture(shapes, spacing=(1.0, 1.0, 1.0), viewpoint=FRONT, side_px=120):
    """shapes: (label, center in mm, radius in mm) in a cube of 80 mm."""
    shape = tuple(round(FIELD_MM / mm) for mm in spacing)
    labels = np.zeros(shape, np.uint8)
    for label, center, radius in shapes:
        labels[ball(shape, spacing, center, radius)] = label
    camera = fit_camera(shape, spacing, side_px, viewpoint)
    return render(labels, spacing, camera), camera.mm_per_px


def is_like(pixels, color):
    """(...) bool: of this hue, however shaded."""
    share = pixels / np.maximum(pixels.sum(axis=-1, keepdims=True), 1)
    return np.abs(share - np.array(color) / sum(color)).max(axis=-1) < 0.03


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.8, 0.8), (1.0, 2.0, 0.7)])
@pytest.mark.parametrize("viewpoint", [FRONT, Viewpoint(), Viewpoint(90, 0)], ids=["front", "oblique", "side"])
def test_a_ball_is_round_and_of_its_size_whatever_the_voxels(spacing, viewpoint):
    seen, mm_per_px = picture([(KIDNEY, (40, 40, 40), 25)], spacing, viewpoint)
    rows, columns = np.nonzero((seen != BACKGROUND_GRAY).any(axis=2))
    high, wide = (np.ptp(axis) + 1 for axis in (rows, columns))
    for size in (high, wide):
        # a slice is in or out, and smoothing takes the tips off
        assert size * mm_per_px == pytest.approx(50, abs=max(spacing) + 1)
    middle = (len(seen) - 1) / 2
    assert rows.mean() == pytest.approx(middle, abs=1) and columns.mean() == pytest.approx(middle, abs=1)


def test_head_up_and_the_patients_right_on_the_left():
    """Cranial, right and anterior are at the low ends of D, W and H."""
    seen, _ = picture([(KIDNEY, (20, 40, 40), 8), (TUMOR, (60, 40, 20), 8), (CYST, (60, 40, 60), 8)])
    places = {}
    for name, color in LABEL_COLORS.items():
        rows, columns = np.nonzero(is_like(seen, color) & (seen > 60).any(axis=2))
        places[name] = rows.mean(), columns.mean()
    assert places["kidney"][0] < 60 < places["tumor"][0]
    assert places["tumor"][1] < places["kidney"][1] < places["cyst"][1]


def test_what_is_in_front_hides_what_is_behind_and_the_kidney_is_translucent():
    front, back = (40, 20, 40), (40, 60, 40)
    hidden, _ = picture([(TUMOR, front, 10), (CYST, back, 10)])
    assert is_like(hidden[60, 60], COLORS["tumor"])
    translucent, _ = picture([(KIDNEY, front, 10), (TUMOR, back, 10)])
    assert not is_like(translucent[60, 60], COLORS["tumor"]) and not is_like(
        translucent[60, 60], COLORS["kidney_and_mass"]
    )
    outside, _ = picture([(TUMOR, front, 10), (KIDNEY, back, 10)])
    assert is_like(outside[60, 60], COLORS["tumor"])
    from_the_left, _ = picture([(KIDNEY, (40, 40, 20), 10), (TUMOR, (40, 40, 60), 10)], viewpoint=Viewpoint(90, 0))
    assert is_like(from_the_left[60, 60], COLORS["tumor"])  # azimuth walks to the patient's left


def test_light_falls_from_above_and_the_left():
    seen, _ = picture([(KIDNEY, (40, 40, 40), 30)])
    brightness = seen.sum(axis=2).astype(int)
    assert brightness[40, 45] > brightness[60, 60] > brightness[85, 80]


def test_an_empty_map_is_a_gray_field():
    seen, _ = picture([])
    assert (seen == BACKGROUND_GRAY).all()


def test_a_structure_at_the_border_of_the_volume_is_closed():
    """Cut to its box a mask touches all borders; its surface lies half a voxel outside."""
    labels = np.full((10, 10, 10), KIDNEY, np.uint8)
    camera = fit_camera(labels.shape, (2.0, 2.0, 2.0), 64, FRONT)
    rows, columns = np.nonzero((render(labels, (2.0, 2.0, 2.0), camera) != BACKGROUND_GRAY).any(axis=2))
    assert (np.ptp(rows) + 1) * camera.mm_per_px == pytest.approx(20, abs=1)
    assert (np.ptp(columns) + 1) * camera.mm_per_px == pytest.approx(20, abs=1)


def test_contours_are_drawn_in_mm():
    """A square patch of 24 x 24 mm on pixels of 3 x 1 mm."""
    labels = np.zeros((20, 60), np.uint8)
    labels[6:14, 18:42] = KIDNEY
    seen = draw_contours(np.zeros((20, 60), np.uint8), labels, 120, (3.0, 1.0))
    rows, columns = np.nonzero((seen == COLORS["kidney_and_mass"]).all(axis=2))
    assert np.ptp(rows) + 1 == pytest.approx(48, abs=2) and np.ptp(columns) + 1 == pytest.approx(48, abs=2)
