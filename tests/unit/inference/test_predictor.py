"""A volume through all the geometry and back, and runs that do not go together."""

import numpy as np
import pytest

from kits_dist.inference.predictor import Predictor
from kits_dist.inference.region_models import RunModel
from kits_dist.models import build_model
from kits_dist.models import weights as model_weights
from kits_dist.utils.errors import InputError
from tests.helpers.runs import SHAPE, Threshold, export_run, scan, untrained_run


def predictor(tmp_path, monkeypatch, **data):
    return Predictor(export_run(tmp_path, monkeypatch, Threshold(100.0), **data), batch_size=2)


@pytest.mark.parametrize("size", ["64x64", "96x128"])  # smaller than the slice, larger than the slice
def test_native_pixels_survive_the_round_trip_exactly(tmp_path, monkeypatch, size):
    volume = scan()
    labels = predictor(tmp_path, monkeypatch, size_px=size, context=1).predict(volume)
    expected = (np.roll(volume.array, 1, axis=0) >= 100).astype(np.uint8)  # channel 0 is the slice above
    expected[0] = volume.array[0] >= 100
    assert labels.shape == SHAPE and labels.dtype == np.uint8
    if size == "64x64":
        seen = np.zeros(SHAPE, bool)  # body rows 5..66, columns 0..90: the window is rows 3..67, columns 13..77
        seen[:, 3:67, 13:77] = True
        expected[~seen] = 0  # what lies outside the window is background, and so a miss
    assert labels.any() and np.array_equal(labels, expected)


def test_a_volume_that_does_not_fit_its_geometry_is_refused(tmp_path, monkeypatch):
    volume = scan()
    wrong = volume._replace(array=volume.array.transpose(2, 1, 0))
    with pytest.raises(InputError, match="Volume.of"):
        predictor(tmp_path, monkeypatch, size_px="64x64").predict(wrong)


@pytest.mark.parametrize("spacing", [(3.0, 0.8, 0.8), (3.0, 0.8, 0.6)])
def test_resampled_pixels_come_back_to_the_right_place(tmp_path, monkeypatch, spacing):
    volume = scan(spacing)
    labels = predictor(tmp_path, monkeypatch, size_px="96x96", pixel_mm=1.0).predict(volume)
    expected = volume.array >= 100
    overlap = 2 * (labels & expected).sum() / (labels.sum() + expected.sum())
    assert overlap > 0.97  # two interpolations at 1.0 mm move the edge by less than half a pixel
    for axis in (1, 2):  # no half-pixel shift: the edge's sampling moves a centroid by up to 0.13 px, a shift by 0.5
        index = np.arange(SHAPE[axis])
        other = tuple(k for k in range(3) if k != axis)
        a, b = ((m.sum(axis=other) * index).sum() / m.sum() for m in (labels, expected))
        assert abs(a - b) < 0.2


def test_an_ensemble_holds_out_what_none_of_its_members_was_trained_on(tmp_path, monkeypatch):
    runs = [export_run(tmp_path / name, monkeypatch, Threshold(100.0), trained_on=[name]) for name in "ab"]
    assert Predictor(f"[{runs[0]},{runs[1]}]").trained_on == {"a", "b"}


def test_runs_that_do_not_go_together_are_refused(tmp_path, monkeypatch):
    a = export_run(tmp_path / "a", monkeypatch, Threshold(100.0))
    b = export_run(tmp_path / "b", monkeypatch, Threshold(100.0, 150.0), regions=("kidney_and_mass", "tumor"))
    with pytest.raises(InputError, match=f"{a} predicts kidney_and_mass, but {b} predicts kidney_and_mass, tumor: "):
        Predictor(f"[{a},{b}]")
    c = untrained_run(tmp_path / "c", ("kidney_and_mass",))
    _, about = model_weights.read_export(c / "model.safetensors")
    about["window_hu"] = [-100, 300]
    monkeypatch.undo()
    model_weights.export(
        c / "model.safetensors", build_model(RunModel(c, 1, "none").config.model, 1).state_dict(), about
    )
    d = untrained_run(tmp_path / "d", ("kidney_and_mass",))
    with pytest.raises(
        InputError, match=r"c was trained on HU \[-100, 300\], but .*d was trained on HU \[0.0, 200.0\]"
    ):
        Predictor(f"[{c},{d}]")
    for wrong, words in (
        (f"{a},{b}", r"Several are written run=\[A,B\]"),
        (f"[{a},]", "names an empty folder"),
        (f"[{a},{a}]", "names a run twice"),
    ):
        with pytest.raises(InputError, match=words):
            Predictor(wrong)


def test_no_batch_is_refused(tmp_path):
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        Predictor(tmp_path, batch_size=0)
