"""Coronal and sagittal slices: from the volume into the store, through the network's window, and back."""

import itertools

import numpy as np
import pytest

from kits_dist import prepare
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import augment_params, augment_reference
from kits_dist.data.augment_params import OutputGrid
from kits_dist.data.loaders import build_train_loader, build_val_loader
from kits_dist.data.store import PLANES, Store
from kits_dist.distributed.ranks import Ranks
from kits_dist.imaging.nifti import Volume, kits_geometry
from kits_dist.inference.predictor import Predictor
from kits_dist.utils.errors import InputError
from tests.helpers.runs import Threshold, export_run

ALL = tuple(PLANES)


@pytest.fixture(scope="module")
def planes(raw, tmp_path_factory) -> Store:
    path = tmp_path_factory.mktemp("planes") / "store"
    prepare.main(prepare.Args(source=str(raw), store=str(path), planes=ALL, workers=1))
    return Store(path)


def test_every_plane_holds_the_same_voxels_slices_contiguous(planes, store):
    assert planes.planes == list(ALL)
    for row, case in enumerate(planes.cases):
        axial = planes.label(row)
        assert np.array_equal(axial, store.label(row)) and np.array_equal(planes.image(row), store.image(row))
        for plane, axes in PLANES.items():
            view = case.slice_geometry(plane)
            assert np.array_equal(planes.label(row, plane), axial.transpose(axes))
            assert planes.image(row, plane).shape == view.shape and planes.image(row, plane)[1].flags.c_contiguous
        for plane in ("coronal", "sagittal"):
            assert case.slice_geometry(plane).spacing_mm == pytest.approx((0.8, 3.0, 0.8))
        d, h, w = case.shape
        assert case.slice_geometry("coronal").shape == (h, d, w) and case.slice_geometry("sagittal").shape == (w, d, h)
    assert planes.splits == store.splits and planes.normalization(0) == store.normalization(0)


def test_the_table_counts_each_plane(planes):
    table = planes.slices
    for number, plane in enumerate(ALL):
        mine = table.plane == number
        assert mine.sum() == sum(case.slice_geometry(plane).shape[0] for case in planes.cases)
        assert table.tumor[mine].sum() == sum(case.voxels["tumor"] for case in planes.cases)
        for i in np.flatnonzero(mine)[::37]:
            label = planes.label(table.case[i], plane)[table.index[i]]
            assert ((label == 1).sum(), (label == 3).sum()) == (table.kidney[i], table.cyst[i])


def test_preparing_again_keeps_and_another_plane_adds(raw, tmp_path, capsys):
    for wanted, words in ((("axial",), "6 cases written"), (("axial",), "6 already there"), (ALL, "6 cases written")):
        prepare.main(prepare.Args(source=str(raw), store=str(tmp_path / "s"), planes=wanted, workers=1))
        assert words in capsys.readouterr().out
    with pytest.raises(InputError, match=r"planes=\['coronal'\]: name axial, which evaluation reads"):
        prepare.Args(source="a", store="b", planes=("coronal",))


@pytest.mark.parametrize("backend", ["dali", "opencv"])
def test_a_loader_of_all_planes_shows_each_slice_once_with_its_name(planes, backend):
    data = DataConfig(store=str(planes.path), planes=ALL, size_px=(64, 64), batch_size=16, threads=1, backend=backend)
    cases = [case.case_id for case in planes.cases[:2]]
    loader, _ = build_val_loader(planes, data, cases, Ranks())
    seen = []
    for batch in loader:
        names = zip(batch.case.tolist(), batch.index.tolist(), batch.plane.tolist(), strict=True)
        for name, label in zip(names, batch.label.numpy(), strict=True):
            seen.append(name)
            assert label.any() == (planes.label(name[0], ALL[name[2]])[name[1]] > 0).any()
    expected = [
        (row, i, number)
        for row in range(2)
        for number, plane in enumerate(ALL)
        for i in range(planes.cases[row].slice_geometry(plane).shape[0])
    ]
    assert sorted(seen) == sorted(expected)


def test_pixels_are_square_and_sagittal_slices_never_mirrored(planes):
    data = DataConfig(store=str(planes.path), planes=ALL, size_px=(64, 64), batch_size=64, threads=1)
    _, dataset = build_train_loader(planes, data, AugmentConfig(flip=1, rotate_p=0, scale_p=0), 0, Ranks())
    host = dataset.batch(np.arange(len(dataset.rows)))
    for (_, _, plane), matrix in zip(host.identity, host.params.matrix, strict=True):
        rows, columns = (1, 1) if plane == 0 else (0.8 / 3.0, 1)  # source pixels per pixel of 0.8 mm
        assert matrix[1, 1] == pytest.approx(rows) and matrix[0, 0] == (columns if plane == 2 else -columns)


def test_a_plane_that_was_not_prepared_is_refused(store):
    data = DataConfig(store=str(store.path), planes=("coronal",), size_px=(64, 64), batch_size=4)
    with pytest.raises(InputError, match=r"holds \['axial'\]. Prepare it again with planes=\[axial,coronal\]"):
        build_train_loader(store, data, AugmentConfig(), 0, Ranks())
    with pytest.raises(InputError, match="each once"):
        DataConfig(store="s", planes=("axial", "oblique"))


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
@pytest.mark.parametrize("slice_mm", [1.0, 5.0])
def test_a_label_goes_to_square_pixels_and_comes_back(plane, slice_mm):
    """Nearest there, nearest back, as augment means it: Dice at least 0.99 at 5 mm slices."""
    label = _ball(slice_mm)
    stack = label.transpose(PLANES[plane])
    case = _case(label, slice_mm)
    view = case.slice_geometry(plane)
    matrix = augment_params.centered(OutputGrid((160, 160), None), [view]).matrix[0]
    there = np.stack([augment_reference.warp_nearest(one, matrix, (160, 160)) for one in stack])
    linear = np.linalg.inv(matrix[:, :2].astype(float))
    back = np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)
    again = np.stack([augment_reference.warp_nearest(one, back, view.shape[1:]) for one in there])
    assert 2 * (again & stack).sum() / (again.sum() + stack.sum()) >= 0.99
    # square: the ball is as high as wide in what the network sees
    largest = there[there.sum(axis=(1, 2)).argmax()]
    high, wide = (np.ptp(np.nonzero(largest)[axis]) + 1 for axis in (0, 1))
    assert abs(high - wide) <= slice_mm / 0.8 + 1


@pytest.mark.parametrize("wanted", [*itertools.combinations(ALL, 1), ("axial", "coronal"), ALL], ids="+".join)
@pytest.mark.parametrize("slice_mm", [1.0, 5.0])
def test_prediction_along_any_plane_lands_on_the_native_grid(tmp_path, monkeypatch, wanted, slice_mm):
    label = _ball(slice_mm)
    hu = np.where(label, 170, 30).astype(np.int16)
    geometry = kits_geometry(label.shape, (slice_mm, 0.8, 0.8))
    run = export_run(tmp_path, monkeypatch, Threshold(100.0), size_px="160x160", planes=f"[{','.join(wanted)}]")
    found = Predictor(run, batch_size=16).predict(Volume(hu, geometry))
    assert found.shape == label.shape
    assert 2 * ((found == 1) & (label == 1)).sum() / ((found == 1).sum() + label.sum()) >= 0.99


def _ball(slice_mm: float) -> np.ndarray:
    """Radius 35 mm, off centre, in a field of 120 mm."""
    shape = (round(120 / slice_mm), 150, 150)
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]]
    z, y, x = (z + 0.5) * slice_mm, (y + 0.5) * 0.8, (x + 0.5) * 0.8
    return ((z - 61) ** 2 + (y - 55) ** 2 + (x - 66) ** 2 < 35**2).astype(np.uint8)


def _case(label: np.ndarray, slice_mm: float):
    from kits_dist.data.intensity import body_box
    from kits_dist.data.store import Case

    body = {plane: body_box(label.transpose(axes)) for plane, axes in PLANES.items()}
    geometry = kits_geometry(label.shape, (slice_mm, 0.8, 0.8))
    return Case("", label.shape, (slice_mm, 0.8, 0.8), body, {}, {}, geometry, {})
