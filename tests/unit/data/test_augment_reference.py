import numpy as np
import pytest

from kits_dist.config import AugmentConfig
from kits_dist.data import augment_params, augment_reference
from kits_dist.data.augment_params import OutputGrid
from kits_dist.data.intensity import Box, Window
from kits_dist.data.store import Normalization, SliceGeometry

RAW, WINDOW = Normalization(0.0, 1.0), Window(0, 200)
NOTHING = {
    name: 0 for name in ("flip", "crop", *vars(AugmentConfig())) if name in ("flip", "crop") or name.endswith("_p")
}


def case(shape=(1, 64, 80), spacing=(3.0, 0.8, 0.8), body=None, plane="axial"):
    return SliceGeometry(plane, shape, spacing, Box(*(body or (0, shape[1], 0, shape[2]))))


def drawn(n=4000, one=None, grid=None, window=WINDOW, **changes):
    config = AugmentConfig(**(NOTHING | changes))
    u = augment_params.uniforms(0, np.zeros(n, int), np.arange(n))
    return augment_params.draw(config, grid or OutputGrid((64, 64), None), [one or case()] * n, window, u, 1000)


def picture(shape):
    return np.random.default_rng(0).integers(0, 201, shape).astype(np.uint8)


def test_uniforms_are_uniform_independent_and_keyed():
    u = augment_params.uniforms(1, np.zeros(20000, int), np.arange(20000))
    table = np.stack(list(u.values()))
    assert np.abs(table.mean(axis=1) - 0.5).max() < 0.01 and np.abs(table.var(axis=1) - 1 / 12).max() < 0.003
    assert np.abs(np.corrcoef(table) - np.eye(len(table))).max() < 0.035
    one = augment_params.uniforms(1, np.array([3]), np.array([7]))["angle"]
    for seed, epoch, sample in ((2, 3, 7), (1, 4, 7), (1, 3, 8)):
        assert augment_params.uniforms(seed, np.array([epoch]), np.array([sample]))["angle"] != one
    many = augment_params.uniforms(1, np.array([9, 3]), np.array([1, 7]))["angle"]
    assert many[1] == one[0]  # a sample's draw does not depend on its batch


def test_nothing_drawn_is_an_exact_crop_even_at_odd_differences():
    slab, label = picture((2, 65, 81)), picture((65, 81)) % 4
    params = drawn(1, case((1, 65, 81)), OutputGrid((32, 64), None))
    image, cut = augment_reference.apply(slab, label, params, 0, (32, 64), 200, RAW)
    assert np.array_equal(image, slab[:, 16:48, 8:72]) and np.array_equal(cut, label[16:48, 8:72])


def test_a_window_larger_than_the_slice_holds_it_whole():
    slab, label = picture((1, 20, 30)), np.full((20, 30), 2, np.uint8)
    for crop in (0, 1):
        params = drawn(20, case((1, 20, 30)), OutputGrid((64, 64), None), crop=crop)
        for i in range(20):
            image, padded = augment_reference.apply(slab, label, params, i, (64, 64), 200, RAW)
            assert (padded == 2).sum() == 600 and image.sum() == slab.sum()


def test_the_validation_window_is_centered_on_the_body():
    off = case((1, 200, 200), body=(100, 180, 20, 100))
    matrix = augment_params.centered(OutputGrid((64, 64), None), [off]).matrix[0]
    assert matrix.tolist() == [[1, 0, 60 - 32], [0, 1, 140 - 32]]


def test_flip_is_left_right():
    slab = picture((1, 64, 64))
    params = drawn(1, case((1, 64, 64)), flip=1)
    assert np.array_equal(augment_reference.apply(slab, slab[0], params, 0, (64, 64), 200, RAW)[0], slab[:, :, ::-1])


def test_a_vertical_flip_is_up_and_down_and_draws_nothing_else_anew():
    slab = picture((1, 64, 64))
    params = drawn(1, case((1, 64, 64)), flip=0, flip_vertical=1)
    assert np.array_equal(augment_reference.apply(slab, slab[0], params, 0, (64, 64), 200, RAW)[0], slab[:, ::-1])
    before, after = (drawn(50, case((1, 64, 64)), rotate_p=1, noise_p=0.5, flip_vertical=p) for p in (0, 1))
    assert np.array_equal(before.noise_sd, after.noise_sd)
    assert np.array_equal(before.matrix[:, :, 0], after.matrix[:, :, 0])


def test_an_enlarged_crop_is_a_part_of_the_window_anywhere_in_it():
    grid = OutputGrid((64, 96), None)
    shape = (1, 64, 96)
    before = drawn(300, case(shape), grid)
    params = drawn(300, case(shape), grid, zoom_crop=1.6, zoom_crop_p=0.5)
    zoomed = params.matrix[:, 0, 0] != before.matrix[:, 0, 0]
    assert 100 < zoomed.sum() < 200 and np.array_equal(params.matrix[~zoomed], before.matrix[~zoomed])
    assert np.allclose(before.matrix[zoomed, 0, 0] / params.matrix[zoomed, 0, 0], 1.6)
    left, top = params.matrix[zoomed][:, :, 2].T  # of the part, in a slice as large as the window
    assert 0 <= left.min() < 2 and 96 - 96 / 1.6 - 2 < left.max() <= 96 - 96 / 1.6
    assert 0 <= top.min() < 2 and 64 - 64 / 1.6 - 2 < top.max() <= 64 - 64 / 1.6


def test_flips_with_a_rotation_never_shear():
    params = drawn(100, case((1, 64, 64)), rotate_p=1, scale_p=1, flip=0.5, flip_vertical=0.5)
    linear = params.matrix[:, :, :2].astype(float)
    determinants = np.linalg.det(linear)
    assert 20 < (determinants < 0).sum() < 80
    turns = linear / np.sqrt(np.abs(determinants))[:, None, None]
    assert np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(2)).max() < 1e-6


def test_rotation_of_90_degrees_is_exact():
    slab = picture((1, 64, 64))
    still = np.zeros(1)
    matrix = augment_params.matrices(
        OutputGrid((64, 64), None), [case((1, 64, 64))], np.zeros((1, 2)), still + 90, still + 1, still + 1
    )
    turned = augment_reference.warp_linear(slab, matrix[0], (64, 64))[0]
    assert np.abs(turned - np.rot90(slab[0])).max() < 0.01  # float32 matrix


def test_rotation_and_magnification_act_in_mm():
    """A disc stays a disc of the right size where pixels are 1.0 x 0.5 mm."""
    y, x = np.mgrid[:128, :256] + 0.5
    disc = ((((y - 64) * 1.0) ** 2 + ((x - 128) * 0.5) ** 2) < 30**2).astype(np.uint8)
    one = case((1, 128, 256), (3.0, 1.0, 0.5))
    still = np.zeros(1)
    grid = OutputGrid((128, 128), 1.0)
    for degrees, zoom in ((0, 1), (33, 1), (33, 1.2)):
        corner = augment_params._corners(grid, [one], np.zeros((1, 2)), np.array([False]))
        matrix = augment_params.matrices(grid, [one], corner, still + degrees, still + 1, still + zoom)
        seen = augment_reference.warp_nearest(disc, matrix[0], (128, 128))
        rows, columns = np.nonzero(seen)
        assert np.ptp(rows) + 1 == pytest.approx(60 * zoom, abs=2) and np.ptp(columns) + 1 == pytest.approx(
            60 * zoom, abs=2
        )
        assert seen.sum() == pytest.approx(np.pi * 900 * zoom**2, rel=0.01)


def test_image_and_label_move_together():
    """Centroids of a blob in image and label: equal but for nearest-neighbour's sampling of the edge, and without
    bias (half a pixel would show as 0.5)."""
    y, x = np.mgrid[:96, :96] + 0.5
    blob = (np.hypot(y - 46, x - 52) < 25).astype(np.uint8)
    params = drawn(60, case((1, 96, 96)), OutputGrid((96, 96), None), rotate_p=1, scale_p=1, flip=0.5)
    apart = []
    for i in range(60):
        image, label = augment_reference.apply(blob[None] * 200, blob, params, i, (96, 96), 200, RAW)
        grid = np.mgrid[:96, :96]
        image_center, label_center = ((grid * w).sum(axis=(1, 2)) / w.sum() for w in (image[0], label.astype(float)))
        apart.append(image_center - label_center)
    assert np.abs(apart).max() < 0.3 and np.abs(np.mean(apart, axis=0)).max() < 0.02


def test_changes_in_hu_are_halved_in_a_window_whose_levels_are_two_hu():
    changes = {"brightness_p": 1, "brightness_hu": 20, "noise_p": 1, "noise_hu": 15}
    one, two = (drawn(100, window=Window(0, width), **changes) for width in (255, 510))
    assert one.bias == pytest.approx(2 * two.bias) and np.abs(one.bias).max() > 15
    assert one.noise_sd == pytest.approx(2 * two.noise_sd) and one.noise_sd.max() > 10


def test_a_flip_and_a_rotation_together_shear_nothing():
    linear = drawn(200, flip=1, rotate_p=1, rotate_deg=30, scale_p=1, scale=(0.9, 1.1)).matrix[:, :, :2].astype(float)
    zoom = 1 / np.sqrt(np.abs(np.linalg.det(linear)))
    turned = linear * zoom[:, None, None]
    assert turned @ turned.transpose(0, 2, 1) == pytest.approx(np.broadcast_to(np.eye(2), (200, 2, 2)), abs=1e-5)
    assert np.linalg.det(turned) == pytest.approx(-np.ones(200), abs=1e-5)


def test_probabilities_and_ranges_are_as_configured():
    p = drawn(rotate_p=0.5, rotate_deg=15)
    degrees = np.rad2deg(np.arctan2(p.matrix[:, 1, 0], p.matrix[:, 0, 0]))
    assert (degrees != 0).mean() == pytest.approx(0.5, abs=0.03) and np.abs(degrees).max() == pytest.approx(15, abs=0.1)
    zoom = 1 / drawn(scale_p=0.3, scale=(0.85, 1.15)).matrix[:, 0, 0]
    assert (zoom != 1).mean() == pytest.approx(0.3, abs=0.03) and 0.849 < zoom.min() < 0.86 < 1.14 < zoom.max() < 1.151
    noise = drawn(noise_p=0.15, noise_hu=15).noise_sd
    assert (noise > 0).mean() == pytest.approx(0.15, abs=0.02) and 14 < noise.max() <= 15
    posters = drawn(noise_p=1, noise_min_hu=3.2, noise_hu=7.1).noise_sd
    assert 3.19 < posters.min() < 3.3 and 7.0 < posters.max() < 7.11
    corners = drawn(crop=1, grid=OutputGrid((64, 64), None)).matrix[:, :, 2]
    assert set(corners[:, 0]) == set(range(17)) and set(corners[:, 1]) == {0}  # 80 - 64 columns of room, no rows
    assert (drawn(flip=0.5).matrix[:, 0, 0] < 0).mean() == pytest.approx(0.5, abs=0.03)


def test_noise_has_the_drawn_sd_stays_in_the_window_and_varies_with_the_offset():
    flat = np.full((1, 64, 64), 100, np.uint8)
    params = drawn(200, case((1, 64, 64)), noise_p=1, noise_hu=15)
    assert len(set(params.noise_offset)) > 150
    images = [augment_reference.apply(flat, flat[0], params, i, (64, 64), 200, RAW)[0] for i in range(20)]
    for i, image in enumerate(images):
        assert image.std() == pytest.approx(params.noise_sd[i], rel=0.06)
        assert abs(image.mean() - 100) < 1
    a, b = ((image - 100).ravel() / params.noise_sd[i] for i, image in enumerate(images[:2]))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    edge = augment_reference.apply(flat * 0, flat[0], params, 0, (64, 64), 200, RAW)[0]
    assert edge.min() == 0
    values = augment_reference.apply(flat, flat[0], params, 0, (64, 64), 200, Normalization(40, 50))[0]
    assert np.allclose(values, (images[0] - 40) / 50, atol=1e-5)


def changed(flat, **changes):
    """Return what one intensity step makes of a constant slice of level `flat`, over 400 draws, and the parameters."""
    slab = np.full((1, 8, 8), flat, np.uint8)
    params = drawn(400, case((1, 8, 8)), OutputGrid((8, 8), None), **changes)
    images = [augment_reference.apply(slab, slab[0], params, i, (8, 8), 200, RAW)[0] for i in range(400)]
    assert all(np.ptp(image) < 1e-4 for image in images)
    return np.array([image.mean() for image in images]), params


def test_brightness_contrast_and_gamma_by_hand():
    bright, _ = changed(50, brightness_p=0.5, brightness_hu=20)
    assert (
        29.9 < bright.min() < 31 and 69 < bright.max() < 70.1 and (bright == 50).mean() == pytest.approx(0.5, abs=0.1)
    )
    contrast, params = changed(50, contrast_p=1, contrast=(0.5, 2))
    assert np.allclose(contrast, np.clip(100 + (50 - 100) * params.gain, 0, 200), atol=1e-4)  # about the middle, 100 HU
    assert contrast.min() < 1 and 74 < contrast.max() < 75.1
    gamma, params = changed(50, gamma_p=1, gamma=(0.5, 2))
    assert (
        np.allclose(gamma, 200 * 0.25**params.gamma, atol=1e-3) and 12.4 < gamma.min() < 13 < 98 < gamma.max() < 100.1
    )
    both, _ = changed(190, brightness_p=1, brightness_hu=50, noise_p=0)
    assert both.max() == 200  # clipped to the window again


def test_blur_spreads_a_dot_by_the_drawn_sd_and_keeps_its_sum():
    dot = np.zeros((2, 65, 65), np.uint8)
    dot[0, 32, 32] = 200
    params = drawn(30, case((1, 65, 65)), OutputGrid((64, 64), None), blur_p=1, blur_px=(0.8, 2.5))
    for i in range(30):
        image = augment_reference.apply(dot, dot[0], params, i, (64, 64), 200, RAW)[0]
        assert image[0].sum() == pytest.approx(200, rel=1e-5) and image[1].max() == 0  # frames do not mix
        rows = image[0].sum(axis=1) / 200
        y = np.arange(64)
        sd = np.sqrt((rows * (y - (rows * y).sum()) ** 2).sum())
        assert sd == pytest.approx(params.blur[i], rel=0.03)  # cut at 3 sd


def test_shift_moves_the_centered_window_by_mm():
    one = case((1, 200, 300), (3.0, 0.5, 1.0))
    shift = (
        drawn(2000, one, shift_p=0.5, shift_mm=10).matrix[:, :, 2]
        - augment_params.centered(OutputGrid((64, 64), None), [one]).matrix[0, :, 2]
    )
    moved = (shift != 0).any(axis=1)
    assert moved.mean() == pytest.approx(0.5, abs=0.04)
    assert np.abs(shift[:, 0]).max() == pytest.approx(10, abs=0.1) and np.abs(shift[:, 1]).max() == pytest.approx(
        20, abs=0.2
    )
