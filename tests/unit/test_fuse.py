"""Weights of several networks: chosen on `val`, applied to the same networks only."""

import itertools
import json

import numpy as np
import pytest
import torch

from kits_dist import fuse
from kits_dist.evaluation import weight_search
from kits_dist.evaluation.weight_search import RegionLogits, fused_dice, search_weights
from kits_dist.inference import region_models
from kits_dist.inference.ensemble import WeightedLogitEnsemble
from kits_dist.inference.predictor import Predictor
from kits_dist.inference.region_models import SliceProbabilities
from kits_dist.utils.errors import InputError
from tests.helpers.runs import Threshold, export_run, scan


class Says:
    regions = ("kidney_and_mass",)

    def __init__(self, p):
        self.p = p

    def probabilities(self, levels, case):
        yield SliceProbabilities(range(1), torch.full((1, 1, 1, 1), self.p))


def test_logits_are_weighted():
    fused = WeightedLogitEnsemble([Says(0.9), Says(0.2)], np.array([[0.75], [0.25]]))
    ((_, p),) = fused.probabilities(None, None)
    expected = 0.75 * np.log(9) + 0.25 * np.log(0.25)
    assert p.item() == pytest.approx(1 / (1 + np.exp(-expected)))
    sure = WeightedLogitEnsemble([Says(1.0), Says(0.3), Says(0.3)], np.full((3, 1), 1 / 3))
    assert 0.5 < next(sure.probabilities(None, None)).probability.item() < 0.99  # one sure network leads, within reason


def test_the_better_network_gets_the_weight():
    generator = np.random.default_rng(0)
    truth = generator.random(4000) < 0.4
    good, bad = (np.where(truth, 1, -1) + generator.normal(0, sd, 4000) for sd in (0.8, 3.0))
    case = RegionLogits(np.stack([bad, good]).astype(np.float16), truth, missed=0)
    weights, score = search_weights([case], 2, 0.1)
    assert weights[1] >= 0.7 and weights.sum() == pytest.approx(1)
    assert score > max(fused_dice([case], np.eye(2)[m]) for m in (0, 1))  # and together they are better than alone
    same = RegionLogits(np.stack([good] * 3).astype(np.float16), truth, missed=0)
    assert abs(search_weights([same], 3, 0.1)[0] - 1 / 3).max() < 0.1  # no difference: near equal


def test_true_voxels_that_no_network_found_count():
    case = RegionLogits(np.full((2, 10), 3, np.float16), np.ones(10, bool), missed=10)
    assert fused_dice([case], np.array([0.5, 0.5])) == pytest.approx(2 * 10 / 30)


@pytest.fixture
def two_runs(tmp_path, monkeypatch, store):
    folders = [
        export_run(tmp_path / name, monkeypatch, Threshold(at), store=store.path)
        for name, at in (("a", 100.0), ("b", 140.0))
    ]
    models = itertools.cycle([Threshold(100.0), Threshold(140.0)])
    monkeypatch.setattr(region_models, "build_model", lambda *_, **__: next(models))
    return f"[{folders[0]},{folders[1]}]"


def test_chosen_on_val_and_used_by_the_same_runs_only(two_runs, tmp_path, store, capsys):
    output = tmp_path / "fusion.json"
    fuse.main(fuse.Args(run=two_runs, output=str(output), step=0.25))
    content = json.loads(output.read_text())
    assert content["val"]["cases"] == len(store.splits.select(0)[1]) and content["data"] == store.meta["data"]
    (dice,) = content["val"]["dice"]
    assert dice["chosen"] >= max(dice["equal"], *dice["alone"]) - 1e-9
    predictor = Predictor(two_runs, fusion=str(output))
    weights = predictor.model.weights.flatten().numpy()
    assert weights.tolist() == [row["weights"][0] for row in content["members"]]
    for row, w in zip(content["members"], (1.0, 0.0), strict=True):
        row["weights"] = [w]
    output.write_text(json.dumps(content))
    alone = two_runs.strip("[]").split(",")[0]
    assert (Predictor(two_runs, fusion=str(output)).predict(scan()) == (scan().array >= 100)).all()
    with pytest.raises(InputError, match="is for 2 networks"):
        Predictor(alone, fusion=str(output))
    content["members"][0]["sha256"] = "0" * 64
    output.write_text(json.dumps(content))
    with pytest.raises(InputError, match="holds no weights for 'run a, step None, axial"):
        Predictor(two_runs, fusion=str(output))


@pytest.mark.parametrize(("change", "words"), [({"regions": 3}, "is damaged"), ({"members": [{}]}, "holds no weights")])
def test_damaged_weights_are_refused(two_runs, tmp_path, change, words):
    path = tmp_path / "fusion.json"
    path.write_text(json.dumps({"regions": ["kidney_and_mass"], "members": []} | change))
    with pytest.raises(InputError, match=words):
        Predictor(two_runs, fusion=str(path))


def test_what_cannot_be_fused_is_refused(two_runs, tmp_path):
    with pytest.raises(InputError, match="step=0.3: use a part of 1"):
        fuse.Args(run=two_runs, output="x", step=0.3)
    with pytest.raises(InputError, match="name two or more runs"):
        fuse.main(fuse.Args(run=two_runs.strip("[]").split(",")[0], output=str(tmp_path / "f.json")))


def test_all_weights_on_the_grid_are_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(
        weight_search, "fused_dice", lambda cases, weights: tried.append(tuple(np.round(weights, 9))) or 0.0
    )
    search_weights([], 3, 0.25)
    assert len(tried) == len(set(tried)) == 15 and all(sum(one) == 1 and min(one) >= 0 for one in tried)


def test_an_output_that_is_a_folder_is_refused_first(two_runs, tmp_path):
    with pytest.raises(InputError, match=r"is a folder. Name the file"):
        fuse.main(fuse.Args(run=two_runs, output=str(tmp_path)))
