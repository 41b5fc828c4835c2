"""Two phases: boxes from phase 1's own output, never from the annotation; what phase 1 misses is lost."""

import numpy as np
import pytest
import torch

from kits_dist.data.kidneys import Kidney
from kits_dist.imaging.nifti import Volume, kits_geometry
from kits_dist.inference import region_models
from kits_dist.inference.cascade import CropProbabilities, KidneyCropModel
from kits_dist.inference.predictor import Predictor
from kits_dist.inference.region_models import to_half
from kits_dist.utils.errors import InputError
from tests.helpers.runs import NORM, Threshold, export_run

SHAPE = (8, 96, 160)
HU = {1: 100, 2: 180, 3: 140}


def truth() -> np.ndarray:
    """Two kidneys, the right one with a tumor, the left one with a larger tumor and a cyst."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:7, 30:60, 20:50] = 1
    labels[1:7, 30:60, 110:140] = 1
    labels[2:4, 35:45, 25:35] = 2
    labels[2:6, 40:50, 120:130] = 2
    labels[5:7, 52:58, 112:118] = 3
    return labels


def scan(labels) -> Volume:
    hu = np.full(SHAPE, 50, np.int16)
    for value, level in HU.items():
        hu[labels == value] = level
    return Volume(hu, kits_geometry(SHAPE, (3.0, 1.0, 1.0)))


class Blind(Threshold):
    """Sees nothing from a column of its image on."""

    def __init__(self, *at, beyond):
        super().__init__(*at)
        self.beyond = beyond

    def forward(self, image):
        logits = super().forward(image).clone()
        logits[..., self.beyond :] = -10
        return logits


def runs(tmp_path, monkeypatch, first=None, **second):
    """Phase 1: kidney and mass in the whole slice; phase 2: mass and tumor, in windows of 64x64."""
    options = {"size_px": "64x64", "box": "kidney", "box_margin_mm": 6} | second
    one = export_run(tmp_path / "one", monkeypatch, None, size_px="96x160")
    two = export_run(tmp_path / "two", monkeypatch, None, regions=("mass", "tumor"), **options)
    networks(monkeypatch, first)
    return one, two


def networks(monkeypatch, first=None):
    models = {1: first or Threshold(90.0), 2: Threshold(130.0, 170.0)}
    monkeypatch.setattr(region_models, "build_model", lambda config, *_, **__: models[len(config.regions)])


def test_the_two_phases_together_find_everything(tmp_path, monkeypatch):
    one, two = runs(tmp_path, monkeypatch)
    predictor = Predictor(f"[{two},{one}]", batch_size=3)  # in any order
    assert predictor.regions == ("kidney_and_mass", "mass", "tumor")
    assert (predictor.predict(scan(truth())) == truth()).all()


def test_what_phase_1_misses_is_lost_whatever_the_annotation_says(tmp_path, monkeypatch):
    """A phase 1 that is blind for the left kidney loses that kidney's tumor and no other, though the annotation's boxes
    are at hand."""
    one, two = runs(tmp_path, monkeypatch, first=Blind(90.0, beyond=80))
    predictor = Predictor(f"[{one},{two}]", batch_size=3, annotated=True)
    volume = scan(truth())
    levels = predictor.levels_of(volume)
    kidneys = (Kidney(((1, 7), (30, 60), (20, 50))), Kidney(((1, 7), (30, 60), (110, 140))))
    case = predictor.case_of(levels, volume)._replace(kidneys=kidneys)
    first, boxed, whole = predictor.predict_stages(levels, case)
    seen = truth()
    seen[..., 80:] = 0
    assert (first == (seen > 0)).all() and (whole == seen).all()
    assert (boxed == np.where(truth() > 1, truth(), 0)).all()  # phase 2 in true boxes: mass and tumor of both
    assert (whole == predictor.predict_levels(levels, case._replace(kidneys=()))).all()
    both, sizes = ((whole == 2) & (truth() == 2)).sum(), (whole == 2).sum() + (truth() == 2).sum()
    assert 2 * both / sizes == 2 * 200 / (200 + 600)  # of tumors of 200 and 400 voxels the larger one is lost


def test_outside_of_the_boxes_there_is_no_mass(tmp_path, monkeypatch):
    one, two = runs(tmp_path, monkeypatch)
    labels = truth()
    labels[3, 80:83, 75:78] = 2  # bright, far from the kidneys, and to phase 1 a speck of kidney
    found = Predictor(f"[{one},{two}]").predict(scan(labels))
    assert (found[3, 80:83, 75:78] == 1).all()
    labels[3, 80:83, 75:78] = 1
    assert (found == labels).all()


def test_a_mass_that_phase_1_cut_off_belongs_to_the_kidney(tmp_path, monkeypatch):
    one, two = runs(tmp_path, monkeypatch, first=Blind(90.0, beyond=127))  # cuts through the left kidney's tumor
    found = Predictor(f"[{one},{two}]").predict(scan(truth()))
    assert (found[2:6, 40:50, 120:130] == 2).all() and (found[1:7, 30:60, 132:140] == 0).all()


def test_a_box_larger_than_the_window_is_shrunk_to_fit(tmp_path, monkeypatch):
    one, two = runs(tmp_path, monkeypatch, size_px="32x32")  # the box is 42 pixels wide
    found, labels = Predictor(f"[{one},{two}]").predict(scan(truth())), truth()
    for right_or_left in (slice(0, 80), slice(80, 160)):
        mass, true = found[..., right_or_left] > 1, labels[..., right_or_left] > 1
        assert 2 * (mass & true).sum() / (mass.sum() + true.sum()) > 0.8  # coarser, nothing cut off


def test_boxes_that_overlap_share_their_voxels(tmp_path, monkeypatch):
    one, two = runs(tmp_path, monkeypatch)
    boxed = KidneyCropModel([Predictor(f"[{one},{two}]").members[1]])
    parts = [
        CropProbabilities((slice(0, 3), slice(0, 4), slice(0, 4)), torch.full((2, 3, 4, 4), 0.8).half()),
        CropProbabilities((slice(2, 5), slice(2, 6), slice(2, 6)), torch.full((2, 3, 4, 4), 0.4).half()),
    ]
    laid = torch.cat([boxed.paste(parts, some, (8, 8)) for some in (range(0, 2), range(2, 3), range(3, 6))])
    expected = torch.zeros(6, 8, 8)
    expected[0:3, 0:4, 0:4], expected[2:5, 2:6, 2:6], expected[2, 2:4, 2:4] = 0.8, 0.4, 0.6
    assert torch.allclose(laid[:, 0], expected, atol=1e-3) and torch.equal(laid[:, 0], laid[:, 1])


def test_rounding_to_half_precision_never_crosses_the_threshold():
    p = torch.tensor([0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.49999, 0.2, 1.0])
    assert ((to_half(p) >= 0.5) == (p >= 0.5)).all() and torch.allclose(to_half(p).float(), p, atol=1e-3)


def test_runs_that_make_no_cascade_are_refused(tmp_path, monkeypatch):
    one, two = runs(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="another run must find the kidneys.*run=.PHASE1,"):
        Predictor(two)
    assert Predictor(two, annotated=True).stages[0].name == "phase2"
    wider = export_run(tmp_path / "three", monkeypatch, None, regions=("mass", "tumor"), box="kidney", box_margin_mm=9)
    masses = export_run(tmp_path / "four", monkeypatch, None, regions=("mass", "tumor"))
    networks(monkeypatch)
    with pytest.raises(InputError, match="box_margin_mm 6.0, but .*three.* 9.0"):
        Predictor(f"[{one},{two},{wider}]")
    with pytest.raises(InputError, match="without kidney_and_mass it finds no kidneys"):
        Predictor(f"[{masses},{two}]")


class Recorded(Threshold):
    """Keeps the levels that it was shown last."""

    def forward(self, image):
        self.seen = image[:, 0] * NORM["sd"] + NORM["mean"]
        return super().forward(image)


@pytest.mark.parametrize("batch_size", [3, 8])
def test_masked_slices_show_the_second_phase_nothing_but_the_kidneys_of_the_first(tmp_path, monkeypatch, batch_size):
    one, two = runs(tmp_path, monkeypatch, size_px="96x160", box="body", mask="kidney")
    second = Recorded(130.0, 170.0)
    models = {1: Blind(90.0, beyond=80), 2: second}
    monkeypatch.setattr(region_models, "build_model", lambda config, *_, **__: models[len(config.regions)])
    labels = truth()
    labels[4, 70:80, 20:30] = 2  # as bright as a tumor, but no kidney: phase 1 finds it, too
    volume = scan(labels)
    volume.array[5, 5:10, 5:10] = 85  # brighter than the rest of the body, and no kidney for phase 1
    predictor = Predictor(f"[{two},{one}]", batch_size=batch_size)
    assert [stage.name for stage in predictor.stages] == ["phase1", ""]
    levels = predictor.levels_of(volume)
    first, whole = predictor.predict_stages(levels, predictor.case_of(levels, volume))
    seen = labels.copy()
    seen[..., 80:] = 0  # the left kidney is lost with its tumor
    assert (first == (seen > 0)).all() and (whole == seen).all()
    # the last batch that the second phase was shown: levels within the mask, 0 elsewhere
    last = (levels * (seen > 0))[-len(second.seen) :]
    assert np.allclose(second.seen.numpy(), last, atol=1e-3) and last.any()


def test_what_a_masked_second_phase_predicts_outside_the_kidneys_is_dropped(tmp_path, monkeypatch):
    one, two = runs(tmp_path, monkeypatch, size_px="96x160", box="body", mask="kidney")
    models = {1: Threshold(90.0), 2: Threshold(-50.0, -50.0)}  # tumor everywhere
    monkeypatch.setattr(region_models, "build_model", lambda config, *_, **__: models[len(config.regions)])
    found = Predictor(f"[{one},{two}]", batch_size=3).predict(scan(truth()))
    assert (found == np.where(truth() > 0, 2, 0)).all()


def test_runs_that_see_masks_need_another_and_no_boxes(tmp_path, monkeypatch):
    one, two = runs(tmp_path, monkeypatch, size_px="96x160", box="body", mask="kidney")
    for annotated in (False, True):
        with pytest.raises(InputError, match="trained with data.mask=kidney: another run must find the kidneys"):
            Predictor(two, annotated=annotated)
    boxed = export_run(tmp_path / "three", monkeypatch, None, regions=("mass", "tumor"), size_px="64x64", box="kidney")
    networks(monkeypatch)
    with pytest.raises(InputError, match="sees boxes and .* sees masks of kidneys"):
        Predictor(f"[{one},{two},{boxed}]")
