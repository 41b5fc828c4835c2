"""Identical neighboring slices add no information, so a network with context answers as one without."""

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kits_dist.config import ModelConfig
from kits_dist.models import build_model

REGIONS = ("kidney_and_mass", "tumor")
CONTEXT = 1  # data.context
FRAMES = 1 + 2 * CONTEXT


def answers(one: nn.Module, several: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits for a slice, and for the same slice with itself as its neighbors."""
    image = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return one.eval()(image), several.eval()(image.expand(-1, FRAMES, -1, -1))


def test_identical_neighbors_change_nothing_in_the_simple_unet():
    config, models = ModelConfig("simple_unet", width=4, regions=REGIONS), []
    for channels in (1, FRAMES):
        torch.manual_seed(0)
        models.append(build_model(config, channels))
    one, several = answers(*models)
    assert one.std() > 1e-3  # it does answer
    torch.testing.assert_close(several, one, rtol=0, atol=1e-5)  # order of float32 sums


@pytest.fixture
def weights(tmp_path) -> str:
    """Random weights of an encoder of color images, with batch norms that have seen something."""
    torch.manual_seed(0)
    encoder = build_model(ModelConfig("unet", "resnet18", "none"), 3).encoder
    encoder.train()(torch.randn(4, 3, 64, 64))
    save_file(encoder.state_dict(), tmp_path / "resnet18.safetensors")
    return str(tmp_path / "resnet18.safetensors")


def test_identical_neighbors_change_nothing_behind_pretrained_weights(weights):
    config = ModelConfig("unet", "resnet18", weights, regions=REGIONS)
    models = [build_model(config, channels) for channels in (1, FRAMES)]
    for part in ("decoder", "segmentation_head"):  # not pretrained
        getattr(models[1], part).load_state_dict(getattr(models[0], part).state_dict())
    one, several = answers(*models)
    assert one.std() > 1e-3
    torch.testing.assert_close(several, one, rtol=1e-4, atol=1e-5)
