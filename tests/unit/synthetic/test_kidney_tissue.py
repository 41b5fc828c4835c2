"""Annotated tissue: cortex is outside, medulla inside and around the sinus, and a core is darker than its rim."""

import numpy as np
import pytest

from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.kidney_tissue import closed_in, depth_below_cortex, paint_tissue
from kits_dist.synthetic.organs import DistanceMaps
from kits_dist.synthetic.scene import draw_scene
from kits_dist.synthetic.shapes import SmoothField, distance_mm, grid_axes

STEP_MM = 2.0


@pytest.fixture(scope="module")
def radius_mm() -> np.ndarray:
    axes = grid_axes((41, 41, 41), (STEP_MM,) * 3, (-40.0,) * 3)
    return np.sqrt(sum(m * m for m in axes.mesh()))


def maps_of(annotated: np.ndarray, tumor: np.ndarray) -> DistanceMaps:
    axes = grid_axes(annotated.shape, (STEP_MM,) * 3, (-40.0,) * 3)
    inside, share = (distance_mm(mask, (STEP_MM,) * 3).astype(np.float32) for mask in (annotated, tumor))
    box = (slice(0, 41),) * 3
    return DistanceMaps(axes, ((-40.0,) * 3, (40.0,) * 3), inside, inside, share / max(share.max(), 1.0), box)


def test_depth_is_counted_from_the_outer_surface_and_not_from_the_sinus(radius_mm):
    maps = maps_of((radius_mm < 30) & (radius_mm > 8), np.zeros_like(radius_mm, bool))
    depth = depth_below_cortex(maps).inside_mm
    rim = (radius_mm > 8) & (radius_mm < 10)
    assert maps.inside_mm[rim].max() < 5 and depth[rim] == pytest.approx(21, abs=3)  # 30 - 9
    outer = (radius_mm > 27) & (radius_mm < 29)
    assert np.array_equal(depth[outer], maps.inside_mm[outer])
    assert closed_in(maps)[20, 20, 20] > 0.5 > closed_in(maps)[0, 0, 0]


def test_cortex_medulla_core_and_cyst_have_their_own_hu(radius_mm):
    patient, scene = draw_scene(np.random.default_rng(0))
    patient = patient._replace(cortex_hu=200.0, medulla_hu=80.0, cyst_hu=10.0)
    patient = patient._replace(tumor_hu=100.0, tumor_rough_hu=3.0, necrosis=0.5, core_hu=20.0)
    scene = scene._replace(cortex_mm=6.0, cortex_edge_mm=2.0, tumor_patch_hu=5.0, core_edge=8.0)
    rng = np.random.default_rng(0)
    fields = {name: SmoothField(rng, scale) for name, scale in (("coarse", 24.0), ("medium", 8.0), ("fine", 5.0))}

    maps = maps_of(radius_mm < 30, np.zeros_like(radius_mm, bool))
    kidney = paint_tissue(np.where(radius_mm < 30, KIDNEY, 0), maps.axes, maps, patient, scene, fields)
    assert kidney[(radius_mm > 26) & (radius_mm < 29)].mean() == pytest.approx(200, abs=5)
    assert np.percentile(kidney[radius_mm < 20], 10) < 90  # pyramids
    assert np.percentile(kidney[radius_mm < 20], 97) > 150  # columns between them

    maps = maps_of(radius_mm < 30, radius_mm < 30)
    tumor = paint_tissue(np.where(radius_mm < 30, TUMOR, 0), maps.axes, maps, patient, scene, fields)
    assert tumor[radius_mm < 5].mean() < 40 < 85 < tumor[(radius_mm > 26) & (radius_mm < 29)].mean()
    cyst = paint_tissue(np.where(radius_mm < 30, CYST, 0), maps.axes, maps, patient, scene, fields)
    assert set(cyst[radius_mm < 30]) == {10.0}
