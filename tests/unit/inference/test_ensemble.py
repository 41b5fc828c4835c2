"""Several models of the same regions as one."""

import numpy as np
import pytest
import torch

from kits_dist.inference import region_models
from kits_dist.inference.ensemble import MeanEnsemble
from kits_dist.inference.predictor import Predictor
from kits_dist.inference.region_models import SliceProbabilities
from tests.helpers.runs import Threshold, export_run, predict_probabilities, scan


def test_several_runs_are_averaged(tmp_path, monkeypatch):
    models = {"a": Threshold(100.0), "b": Threshold(140.0)}
    for name, model in models.items():
        export_run(tmp_path / name, monkeypatch, model, size_px="96x96")
    loaded = iter([models["a"], models["b"], models["a"], models["b"]])
    monkeypatch.setattr(region_models, "build_model", lambda *a, **k: next(loaded))
    both = Predictor(f"[{tmp_path / 'a'},{tmp_path / 'b'}]", batch_size=2)
    alone = [predict_probabilities(Predictor(tmp_path / name, 2), scan()) for name in models]
    mean = (alone[0] + alone[1]) / 2
    assert np.array_equal(predict_probabilities(both, scan()), mean) and not np.array_equal(*alone)
    assert np.array_equal(both.predict(scan()), (mean[:, 0] >= 0.5).astype(np.uint8))
    assert both.trained_on == {"case_00007"} and both.step == [None, None]


def test_anything_that_yields_slice_batches_can_be_averaged():
    class Fixed:
        regions = ("tumor",)

        def __init__(self, value):
            self.value = value

        def probabilities(self, levels, case):
            for first in range(0, len(levels), 2):
                slices = range(first, min(first + 2, len(levels)))
                yield SliceProbabilities(slices, torch.full((len(slices), 1, 4, 4), self.value))

    nested = MeanEnsemble([MeanEnsemble([Fixed(0.2), Fixed(0.4)]), Fixed(0.5)])
    chunks = list(nested.probabilities(np.zeros((3, 4, 4), np.uint8), None))
    assert [list(chunk.slices) for chunk in chunks] == [[0, 1], [2]]
    assert all(chunk.probability.unique().tolist() == pytest.approx([0.4]) for chunk in chunks)
