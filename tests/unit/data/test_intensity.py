import numpy as np
import pytest

from kits_dist.data.intensity import Box, Window, body_box


def test_the_window_is_lossless_for_integer_hu():
    window = Window(0, 200)
    hu = np.arange(-1000, 1500, dtype=np.int16)
    assert (window.step_hu, window.levels) == (1, 200)
    assert np.array_equal(window.to_levels(hu), np.clip(hu, 0, 200))
    assert window.to_levels(np.array([0.4, 0.6, 199.7], np.float32)).tolist() == [0, 1, 200]
    wide = Window(-79, 304)  # nnU-Net's KiTS window: 383 HU do not fit 255 levels
    assert wide.step_hu == pytest.approx(383 / 255) and wide.levels == 255
    assert wide.to_levels(np.array([-79, 304], np.int16)).tolist() == [0, 255]


def test_the_body_box_leaves_out_the_table():
    levels = np.zeros((10, 50, 60), np.uint8)
    levels[:, 10:30, 15:45] = 60
    levels[:, 40:42, 5:55] = 90  # table
    levels[:1, :, :5] = 90  # one bright slice is no body
    assert body_box(levels) == Box(10, 30, 15, 45)
    assert body_box(levels).center == (20, 30)
    assert body_box(np.zeros((2, 8, 9), np.uint8)) == Box(0, 8, 0, 9)
