"""The precision of the forward pass."""

import pytest
import torch

from kits_dist.inference.device import inference_precision


@pytest.fixture
def tf32_as_before():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(
    ("asked", "trained", "has_bf16", "mode"),
    [
        ("auto", "auto", True, "bf16"),
        ("auto", "auto", False, "fp16"),
        ("auto", "fp16", True, "fp16"),
        ("auto", "bf16", True, "bf16"),
        ("auto", "fp32", True, "tf32"),
        ("auto", "tf32", True, "tf32"),
        ("fp32", "auto", True, "fp32"),
        ("fp16", "bf16", True, "fp16"),
    ],
)
def test_on_a_gpu_the_precision_follows_the_training(monkeypatch, tf32_as_before, asked, trained, has_bf16, mode):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # the launcher's: not asked
    assert inference_precision(asked, trained, torch.device("cuda")).mode == mode
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (mode != "fp32")
