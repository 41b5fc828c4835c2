"""How a network is run: flips, batches, memory format, compilation."""

import numpy as np
import pytest
import torch

from kits_dist.inference.predictor import Predictor
from kits_dist.inference.region_models import RunModel, region_probabilities
from tests.helpers.runs import Ramp, export_run, predict_probabilities, scan, untrained_run


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_flip_averages_with_the_flipped_slice_except_in_sagittal_slices(tmp_path, monkeypatch, plane):
    model = Ramp()
    run = export_run(tmp_path, monkeypatch, model, size_px="96x96", planes=f"[{plane}]")
    plain = predict_probabilities(Predictor(run, 2), scan())
    passes, model.passes = model.passes, []
    flipped = predict_probabilities(Predictor(run, 2, "flip"), scan())
    if plane == "sagittal":
        assert model.passes == passes and np.array_equal(plain, flipped)
        return
    assert sum(model.passes) == 2 * sum(passes) and set(model.passes) == {2}  # a slice and its flip
    # the window of 96 lies around the slice of 90 columns: 3 more on either side, flipped onto themselves
    expected = (plain + plain[..., ::-1]) / 2
    assert (
        np.abs(flipped - expected).max() < 1e-3 and np.abs(flipped - plain).max() > 0.3
    )  # float16 in planes other than axial


@pytest.mark.parametrize(("batch_size", "passes"), [(1, [2] * 5), (5, [4, 4, 2]), (16, [10])])
def test_slices_and_flips_in_one_batch_match_two_batches(tmp_path, batch_size, passes):
    model = RunModel(untrained_run(tmp_path / "run", size_px="64x96"), batch_size, "flip")
    seen = []
    model.model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    image = torch.randn(5, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    together = model.predict_batch_flipped(image)
    assert seen == passes
    plain, flipped = (region_probabilities(model.model, batch) for batch in (image, image.flip(-1)))
    assert (together - (plain + flipped.flip(-1)) / 2).abs().max() < 1e-6  # float32 has 24 bits
    assert (together - plain).abs().max() > 1e-3


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize(("context", "size"), [(0, "96x64"), (0, "71x90"), (2, "96x64")])
def test_what_reaches_the_network_is_channels_last(tmp_path, monkeypatch, context, size, tta):
    """By its strides, by which convolutions choose: one channel passes for contiguous and channels_last at once."""
    model = Ramp()
    framing = {"pixel_mm": 1.0} if size == "71x90" else {}  # warped, not cut
    run = export_run(tmp_path, monkeypatch, model, size_px="96x64", context=context, **framing)
    Predictor(run, 2, tta).predict(scan())
    channels = 1 + 2 * context
    assert set(model.strides) == {(96 * 64 * channels, 1, 64 * channels, channels)}


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_a_compiled_network_gets_one_batch_size(tmp_path, monkeypatch, tta):
    """Another batch size would be compiled again. Padding is dropped."""
    model = Ramp()
    run = export_run(tmp_path, monkeypatch, model, size_px="96x96")
    plain = predict_probabilities(Predictor(run, 2, tta), scan())
    model.passes = []
    compiled = predict_probabilities(Predictor(run, 2, tta, compiled=True), scan())
    assert model.compiled and set(model.passes) == {2} and np.array_equal(plain, compiled)
    assert sum(model.passes) > len(plain)  # the last of three slices was padded
