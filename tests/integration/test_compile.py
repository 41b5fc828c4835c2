"""torch.compile on a CPU, which starts a C++ compiler: the results are those of the eager network."""

import os
import shutil

import numpy as np
import pytest
import torch

from kits_dist.inference.predictor import Predictor
from kits_dist.training.step_timer import StepTimer
from tests.helpers.runs import predict_probabilities, scan, untrained_run
from tests.unit.training.test_train_step import CPU, batches, train_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler"),
]


def test_a_compiled_step_is_the_eager_step():
    found = []
    for compiled in (False, True):
        made = train_step(compiled=compiled, loss="bce_dice", lr=0.01, name="sgd")
        stream = batches()
        losses = [made(stream, 0.01, step, StepTimer(CPU)).losses.item() for step in range(3)]
        found.append((losses, made.plain_model.state_dict()))
    assert isinstance(made.model, torch._dynamo.OptimizedModule)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][0][-1] < found[0][0][0]
    assert found[0][1].keys() == found[1][1].keys()  # the compiler adds no prefix to the names
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=1e-4, atol=1e-6)  # order of float32 sums


def test_a_network_is_compiled_once_and_predicts_the_same(tmp_path):
    run = untrained_run(tmp_path / "run", ("kidney_and_mass",), size_px="64x64")
    plain = predict_probabilities(Predictor(run, 2), scan())
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    compiled = predict_probabilities(Predictor(run, 2, compiled=True), scan())  # two slices, then one
    assert counted["unique_graphs"] == before + 1
    assert np.abs(compiled - plain).max() < 1e-5 and plain.std() > 1e-3  # float32; joined layers may round otherwise
