"""Prediction on a GPU: the same label maps as on the CPU, and a timer that does not synchronize."""

import numpy as np
import pytest
import torch

from kits_dist.inference.predictor import Predictor
from kits_dist.labels import REGIONS
from tests.helpers.runs import scan, untrained_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("planes", ["[axial]", "[axial,coronal]"])
def test_a_gpu_predicts_what_the_cpu_predicts(tmp_path, monkeypatch, planes):
    run = untrained_run(tmp_path / "run", size_px="64x96", planes=planes)
    labels, shares = {}, {}
    for kind in ("cuda", "cpu"):
        if kind == "cpu":
            monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        predictor = Predictor(run, 2, "flip", precision="auto" if kind == "cpu" else "tf32")
        assert predictor.members[0].device.type == kind
        levels = predictor.levels_of(scan())
        uint8_probabilities = np.empty((len(REGIONS), *levels.shape), np.uint8)
        labels[kind] = predictor.predict_levels(levels, predictor.case_of(levels, scan()), uint8_probabilities)
        shares[kind] = uint8_probabilities.astype(int)
        assert predictor.network_s > 0
    assert np.abs(shares["cuda"] - shares["cpu"]).max() <= 3  # TF32 keeps 10 bits, of 255 steps that is a quarter
    assert (labels["cuda"] != labels["cpu"]).mean() < 0.01


def predicted_shares(run, **how):
    """(3, D, H, W) probabilities in steps of 1/255, and the precision."""
    predictor = Predictor(run, 2, **how)
    levels = predictor.levels_of(scan())
    uint8_probabilities = np.empty((len(REGIONS), *levels.shape), np.uint8)
    predictor.predict_levels(levels, predictor.case_of(levels, scan()), uint8_probabilities)
    return uint8_probabilities.astype(int), predictor.precision


def test_half_precision_follows_the_training_and_predicts_nearly_the_same(tmp_path):
    run = untrained_run(tmp_path / "run", size_px="64x96")
    exact, named = predicted_shares(run, precision="fp32")
    half, chosen = predicted_shares(run)  # trained with train.precision=auto
    assert named == "fp32" and chosen == ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")
    for shares in (
        half,
        predicted_shares(run, precision="bf16")[0],
        predicted_shares(run, precision="fp16")[0],
    ):
        assert 0 < np.abs(shares - exact).max() <= 13  # bf16 has 8 bits, and some twenty layers add up: 5 %


@pytest.mark.slow
def test_a_compiled_network_predicts_nearly_the_same(tmp_path):
    run = untrained_run(tmp_path / "run", size_px="64x96")
    eager, compiled = (predicted_shares(run, compiled=wanted)[0] for wanted in (False, True))
    assert np.abs(eager - compiled).max() <= 13  # in half precision; joined layers round less often


def test_the_timer_synchronizes_only_when_it_is_read(tmp_path):
    predictor = Predictor(untrained_run(tmp_path / "run", size_px="64x96"), 1)
    levels = predictor.levels_of(scan())
    model, case = predictor.members[0], predictor.case_of(levels, scan())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with model.timer.running():
            torch.ones(64, 64, device=model.device) @ torch.ones(64, 64, device=model.device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    before = model.timer.seconds
    predictor.predict_levels(levels, case)
    assert 0 < before < predictor.network_s
