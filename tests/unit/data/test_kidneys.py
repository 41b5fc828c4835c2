"""The boxes of kidneys, which phase 2 of a cascade segments, and the samples cut from them."""

from dataclasses import replace

import numpy as np
import pytest

from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import augment_params
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.intensity import Box
from kits_dist.data.kidneys import Kidney, find_kidneys
from kits_dist.data.samples import Samples, build_groups, samples_to_show, select_samples
from kits_dist.data.store import SliceGeometry
from kits_dist.utils.errors import InputError

SPACING = (2.0, 1.0, 1.0)
DATA = DataConfig(store="", size_px=(64, 64), batch_size=2, box="kidney", box_margin_mm=6)


def volume(*boxes, shape=(20, 60, 100)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for value, z, y, x in boxes:
        labels[slice(*z), slice(*y), slice(*x)] = value
    return labels


def test_both_kidneys_with_their_own_masses():
    right, left = (1, (2, 12), (10, 30), (10, 30)), (1, (4, 16), (12, 32), (70, 90))
    labels = volume(
        left, right, (2, (5, 8), (10, 14), (10, 14)), (2, (10, 11), (20, 24), (12, 14)), (3, (4, 6), (30, 36), (80, 84))
    )
    found = find_kidneys(labels, SPACING)
    assert found == [
        Kidney(((2, 12), (10, 30), (10, 30)), tumor=((5, 8), (10, 11))),
        Kidney(((4, 16), (12, 36), (70, 90)), cyst=((4, 6),)),
    ]
    assert [one._replace(tumor=(), cyst=()) for one in found] == find_kidneys(labels > 0, SPACING)


def test_a_kidney_found_in_parts_is_one_and_specks_elsewhere_are_none():
    parts = [(1, (2, 6), (10, 30), (10, 30)), (1, (10, 14), (10, 30), (10, 30))]  # 8 mm apart
    speck, near = (1, (2, 3), (50, 53), (60, 63)), (1, (4, 5), (35, 38), (10, 12))
    assert [one.box for one in find_kidneys(volume(*parts, speck, near), SPACING)] == [((2, 14), (10, 38), (10, 30))]
    assert len(find_kidneys(volume(*parts), (3.0, 1.0, 1.0))) == 2  # 12 mm apart
    bridge = (1, (4, 8), (12, 20), (38, 60))  # joins what it is near to on both sides
    far = (1, (2, 14), (10, 30), (68, 90))
    assert (
        len(find_kidneys(volume(*parts, far), SPACING)) == 2
        and len(find_kidneys(volume(*parts, far, bridge), SPACING)) == 1
    )
    assert find_kidneys(volume(), SPACING) == []


def test_the_margin_ends_at_the_edge_of_the_volume():
    kidney = Kidney(((1, 5), (10, 20), (90, 99)))
    assert kidney.around(4, SPACING, (20, 60, 100)) == (slice(0, 7), slice(6, 24), slice(86, 100))


def test_every_slice_of_every_box_is_a_sample_once(store):
    cases = [case.case_id for case in store.cases]
    samples = select_samples(store, cases, DATA, training=True)
    expected = set()
    for number, case in enumerate(store.cases):
        assert case.kidneys == tuple(find_kidneys(np.asarray(store.label(number)), case.spacing_mm))
        for k, kidney in enumerate(case.kidneys):
            slices = kidney.around(6, case.spacing_mm, case.shape)[0]
            expected |= {(number, index, k) for index in range(slices.start, slices.stop)}
    table = store.slices
    found = list(zip(table.case[samples.rows], table.index[samples.rows], samples.kidneys, strict=True))
    assert set(found) == expected and len(found) == len(expected)
    assert len(set(samples.keys(len(table.case)))) == len(found)


def test_a_quota_counts_the_tumor_of_the_kidney_itself(store):
    case = store.cases[0]._replace(
        kidneys=(Kidney(((0, 5), (0, 9), (0, 9)), tumor=((1, 2),)), Kidney(((0, 5), (0, 9), (20, 29))))
    )
    doubled = store_with(store, case)
    samples = select_samples(doubled, [case.case_id], replace(DATA, box_margin_mm=0), training=True)
    tumor, others = build_groups(doubled, samples, replace(DATA, sampler="tumor"))
    assert samples.kidneys.tolist() == [0] * 5 + [1] * 5
    assert tumor.members.tolist() == [1] and len(others.members) == 9
    doubled.slices = doubled.slices._replace(tumor=np.ones_like(doubled.slices.tumor))  # of the slice, not the kidney
    assert samples_to_show(doubled, samples, 1).tolist() == [1]
    assert len(samples_to_show(doubled, samples, 4)) == 4


def store_with(store, first):
    from kits_dist.data.store import Store

    other = Store(store.path)
    other.cases[0] = first
    return other


def test_no_kidney_at_all(store):
    with pytest.raises(InputError, match="none of these 1 cases has a kidney"):
        select_samples(
            store_with(store, store.cases[0]._replace(kidneys=())), [store.cases[0].case_id], DATA, training=True
        )
    with pytest.raises(InputError, match="axial slices only"):
        replace(DATA, planes=("coronal",))


@pytest.mark.parametrize("pixel_mm", [None, 0.7])
def test_whatever_is_drawn_the_window_holds_the_box(pixel_mm):
    """Without rotation and zoom, each corner of the (moved) box lies within the network's image."""
    grid, generator = augment_params.OutputGrid((64, 96), pixel_mm), np.random.default_rng(0)
    augment = AugmentConfig(rotate_p=0, scale_p=0, noise_p=0, flip=0, box_mm=0)
    view = SliceGeometry("axial", (9, 200, 300), (3.0, 0.9, 0.6), Box(0, 0, 0, 0), box_must_fit=True)
    views = []
    for _ in range(300):
        top, left = generator.integers(0, 190), generator.integers(0, 280)
        box = Box(top, generator.integers(top + 1, 201), left, generator.integers(left + 1, 301))
        views.append(view._replace(box=Box(*map(int, box))))
    window = type("", (), {"levels": 200, "step_hu": 1})
    u = augment_params.uniforms(0, np.zeros(300, int), np.arange(300))
    for params in (augment_params.centered(grid, views), augment_params.draw(augment, grid, views, window, u, 9)):
        for matrix, one in zip(params.matrix.astype(float), views, strict=True):
            corners = np.linalg.solve(
                matrix[:, :2],
                np.array([[one.box.left, one.box.right], [one.box.top, one.box.bottom]]) - matrix[:, 2:],
            )
            assert (corners > -1e-3).all() and (corners < np.array([[96], [64]]) + 1e-3).all()
            assert one.box.size[0] > 60 or one.box.size[1] > 60 or pixel_mm or matrix[0, 0] == 1  # no zoom unasked


def test_the_box_is_moved_by_the_sample_alone():
    view = SliceGeometry("axial", (9, 200, 300), (3.0, 1.0, 0.5), Box(50, 90, 100, 180), box_must_fit=True)
    u = augment_params.uniforms(3, np.zeros(400, int), np.arange(400))
    moved = np.array([augment_params._jittered(view, 10, u, i).box for i in range(400)]) - np.array(view.box)
    assert (abs(moved) <= [10, 10, 20, 20]).all() and (abs(moved).max(axis=0) >= [9, 9, 18, 18]).all()
    assert len(np.unique(moved, axis=0)) > 300
    assert augment_params._jittered(view, 0, u, 7) == view
    small = view._replace(box=Box(50, 51, 100, 101))
    assert all(min(augment_params._jittered(small, 10, u, i).box.size) > 0 for i in range(400))


def test_samples_of_two_kidneys_of_one_slice_are_augmented_differently(store):
    twins = (Kidney(((0, 5), (20, 30), (20, 30))), Kidney(((0, 5), (20, 30), (20, 30))))
    doubled = store_with(store, store.cases[0]._replace(kidneys=twins))
    row = int(np.flatnonzero(store.slices.case == 0)[2])
    samples = Samples(np.array([row, row]), np.array([0, 1]))
    dataset = SliceDataset(
        doubled, samples, DATA, augment=AugmentConfig(rotate_p=1), seed=0, norm=store.normalization(0)
    )
    params = dataset.batch(np.array([0, 1])).params
    assert not np.allclose(params.matrix[0], params.matrix[1])


def test_a_kidney_next_to_a_giant_tumor_counts():
    giant, small = (2, (0, 20), (0, 60), (0, 60)), (1, (5, 15), (10, 40), (75, 99))  # 144 ml and 14 ml, 10 %
    assert len(find_kidneys(volume(giant, small), SPACING)) == 2  # where nothing is smaller than a tenth
    less = (1, (5, 12), (10, 40), (75, 95))  # 8 ml
    assert len(find_kidneys(volume(giant, less), SPACING)) == 1
    large = (4.0, 2.0, 2.0)  # the same voxels: 67 ml beside 1,152 ml
    assert len(find_kidneys(volume(giant, less), large)) == 2
