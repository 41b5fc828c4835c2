"""Precisions learn alike, and a step of the trainer never waits for the GPU."""

import contextlib

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from kits_dist.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data.loaders import build_train_loader
from kits_dist.distributed.precision import launched_precision
from kits_dist.distributed.runtime import start
from kits_dist.models import build_model
from kits_dist.training.host_copy import HostCopy
from kits_dist.training.step_timer import StepTimer
from kits_dist.training.train_step import TrainStep, place_model
from kits_dist.utils.errors import InputError

REGIONS = ("kidney_and_mass", "tumor")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
# Relative, of the mean loss over six steps. bf16 has 8 bits of mantissa, fp16 and tf32 11; all add up in float32.
BANDS = {"bf16": 0.05, "fp16": 0.03, "tf32": 0.03}


@pytest.fixture
def learning(store, tmp_path, monkeypatch):
    """precision -> (learner, stream of batches, pace), as kits_dist.train builds them; one accelerator at a time."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")

    def begin(precision: str, **optim):
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate holds one for all
        config = TrainConfig(precision=precision)
        runtime = start(config, 1, tmp_path, seed=0)
        device = runtime.accelerator.device
        model = place_model(build_model(ModelConfig("simple_unet", width=8, regions=REGIONS), 1), config, device)
        train_step = TrainStep(model, REGIONS, OptimConfig(loss="bce_dice", **optim), runtime.accelerator)
        train_step.wrap(config)
        train_step.model.train()
        data = DataConfig(store=str(store.path), batch_size=4, size_px=(64, 64), threads=1)
        loader, _ = build_train_loader(
            store, data, AugmentConfig(), 0, runtime.ranks, device=runtime.device, dtype=runtime.image_dtype
        )
        return train_step, iter(loader), StepTimer(device)

    yield begin
    AcceleratorState._reset_state(reset_partial_state=True)


def losses(train_step, stream, timer, steps: int) -> np.ndarray:
    return np.array([train_step(stream, 3e-3, step, timer).losses.mean().item() for step in range(steps)])


@pytest.mark.parametrize(
    ("asked", "launched", "chosen"),
    [
        ("auto", "no", "fp32"),
        ("auto", "bf16", "bf16"),
        ("bf16", "bf16", "bf16"),
        ("bf16", "no", "bf16"),
        ("fp32", "bf16", "train.precision=fp32 but the launcher's mixed_precision=bf16"),
        ("bf16", "fp16", "train.precision=bf16 but the launcher's mixed_precision=fp16"),
        ("auto", "fp8", "the launcher's mixed_precision=fp8 is not supported"),
        ("auto", "fp16", "the launcher's mixed_precision=fp16 needs an NVIDIA GPU"),
        ("fp16", "no", "train.precision=fp16 needs an NVIDIA GPU"),
        ("tf32", "no", "train.precision=tf32 needs an NVIDIA GPU"),
    ],
)
def test_auto_takes_the_launchers_and_what_contradicts_or_is_not_there_is_refused(monkeypatch, asked, launched, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(InputError, match=chosen) if "=" in chosen else contextlib.nullcontext():
        assert launched_precision(TrainConfig(precision=asked)).mode == chosen


@pytest.mark.parametrize("precision", ["bf16", *(pytest.param(p, marks=needs_gpu) for p in ("fp16", "tf32"))])
def test_the_loss_falls_as_in_fp32(learning, precision):
    full, other = (losses(*learning(mode), steps=24).reshape(4, 6).mean(axis=1) for mode in ("fp32", precision))
    assert full[-1] < 0.9 * full[0]
    np.testing.assert_allclose(other, full, rtol=BANDS[precision])
    assert not np.array_equal(other, full)  # it really was another precision


@pytest.mark.parametrize("precision", [pytest.param(p, marks=needs_gpu) for p in ("bf16", "fp16", "fp32")])
def test_a_step_never_waits_for_the_gpu(learning, precision):
    """Clipped and averaged, log steps as well. fp16: the scaler's own update is asynchronous too."""
    train_step, stream, timer = learning(precision, clip_norm=1.0, ema=0.99)
    losses(train_step, stream, timer, steps=3)  # these allocate and choose kernels
    torch.cuda.synchronize()
    copy, marks = None, timer.cut()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for step in range(3, 9):
            result = train_step(stream, 1e-2, step, timer, want_norm=True)
            if copy:
                copy.wait()
                timer.report(marks, 4)
            copy = HostCopy(result.losses, result.grad_norm, train_step.skipped_on_device)
            marks = timer.cut()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(losses(train_step, stream, timer, steps=1)).all()
