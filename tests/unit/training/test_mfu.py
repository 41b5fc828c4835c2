"""Model FLOP utilisation: what is counted, and against which peak."""

import pytest
import torch

from benchmarks.lib.model_steps import Mode, counted
from kits_dist.config import ModelConfig
from kits_dist.models import build_model
from kits_dist.training import mfu
from kits_dist.training.mfu import images_per_s_at_peak, training_flop

REGIONS = ("kidney_and_mass", "mass", "tumor")
GPU = torch.device("cuda", 0)


def network(**keys) -> torch.nn.Module:
    return build_model(ModelConfig(encoder_weights="none", **keys), 1, pretrained=False)


def test_a_training_image_of_the_posters_network_costs_185_gflop():
    """Three regions, as the figure of the design counts; a conv by hand is in the next test."""
    assert training_flop(network(regions=REGIONS), 1, (512, 512)) == pytest.approx(185.1e9, rel=0.001)


def test_the_count_is_three_times_the_forward_pass_less_the_gradient_of_the_image():
    conv = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.nn.Conv2d(5, 1, 1, bias=False))
    first, second = 2 * 8 * 8 * 3 * 5 * 9, 2 * 8 * 8 * 5  # multiply and add, pixels, channels, taps
    assert training_flop(conv, 3, (8, 8)) == 2 * first + 3 * second


def test_it_agrees_with_the_roofline_of_the_benchmarks_and_leaves_the_network_alone():
    keys = {"arch": "simple_unet", "width": 4}
    model = network(**keys)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    flop = training_flop(model, 1, (64, 64))
    assert torch.equal(generator, torch.get_rng_state())
    work = counted(ModelConfig(encoder_weights="none", **keys), Mode("fp32", True), (64, 64), 2, "cpu")
    assert flop == work.flop / 2
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Asks(torch.nn.Module):
    """Looks at a value: there is none in a fake tensor."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, image):
        return image * self.scale if float(image.sum()) > 0 else image - self.scale


def test_the_rate_at_peak_is_the_data_sheets_for_the_precision_that_trains(monkeypatch):
    """One multiply and add a pixel, whose weight's gradient is another: 4 x 64 FLOP an image; A6000 154.8, 77.4, 38.7
    TFLOP/s."""
    conv = torch.nn.Conv2d(1, 1, 1, bias=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA RTX A6000")
    for precision, tflops in {"bf16": 154.8, "fp16": 154.8, "tf32": 77.4, "fp32": 38.7}.items():
        assert images_per_s_at_peak(conv, 1, (8, 8), GPU, precision) == pytest.approx(tflops * 1e12 / (4 * 64))
    with pytest.warns(UserWarning, match="perf/mfu is left out: this network cannot be counted"):
        assert images_per_s_at_peak(Asks(), 1, (8, 8), GPU, "bf16") is None


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 2080", "NVIDIA H100 PCIe", None])
def test_no_rate_for_a_device_that_is_not_in_the_table(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(mfu, "training_flop", lambda *args: pytest.fail("counted for nothing"))
    device = GPU if name else torch.device("cpu")
    assert images_per_s_at_peak(torch.nn.Conv2d(1, 1, 1), 1, (8, 8), device, "bf16") is None


@pytest.mark.parametrize("device", ["NVIDIA GeForce RTX 3090", "GeForce RTX 4090", "NVIDIA RTX A5000", "NVIDIA L4"])
def test_cards_of_desktops_and_clouds_are_known(device):
    """By the name that torch gives, and as people type it; their relatives have other peaks."""
    name = mfu.short_name(device)
    assert mfu.peak_of(f"RTX {name}") is mfu.peak_of(f"rtx{name.lower()}") is mfu.PEAKS[name]
    assert mfu.short_name(f"{device} Ti") is mfu.short_name(f"{device} Laptop GPU") is None
