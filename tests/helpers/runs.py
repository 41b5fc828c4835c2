"""Run folders with networks whose output is known, and a scan to predict."""

import numpy as np
import torch
from torch import nn

from kits_dist import cli
from kits_dist.config import Config, as_plain
from kits_dist.imaging.nifti import Volume, kits_geometry
from kits_dist.inference import region_models
from kits_dist.labels import REGIONS
from kits_dist.models import build_model
from kits_dist.models import weights as model_weights

SHAPE = (3, 71, 90)  # of `scan`
NORM = {"mean": 40.0, "sd": 50.0}


class Threshold(nn.Module):
    """One region per threshold, with logits (levels - at) * 10, so that the expected labels follow from the input.

    channel   the input channel to threshold; with context the first one is a slice further up
    """

    def __init__(self, *at, channel=0):
        super().__init__()
        self.at = torch.tensor(at)[:, None, None]
        self.channel = channel

    def forward(self, image):
        levels = image[:, self.channel, None] * NORM["sd"] + NORM["mean"]
        return (levels - self.at) * 10


class Ramp(nn.Module):
    """Logits that grow from left to right whatever the image, so that a flip changes them; records its inputs."""

    def __init__(self):
        super().__init__()
        self.passes = []
        self.strides = []
        self.compiled = False

    def compile(self):
        self.compiled = True

    def forward(self, image):
        self.passes.append(len(image))
        self.strides.append(image.stride())
        ramp = torch.linspace(-3, 5, image.shape[-1])
        return ramp.expand(len(image), 1, image.shape[2], -1)


def export_run(folder, monkeypatch, model, regions=("kidney_and_mass",), trained_on=("case_00007",), **data):
    """Write a run folder for `model`, which replaces the network whenever a run is loaded; `data` are keys of data."""
    monkeypatch.setattr(region_models, "build_model", lambda *a, **k: model)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = _metadata(regions, data) | {"window_hu": [0, 200], "trained_on_voxels": [*trained_on]}
    model_weights.export(folder / "model.safetensors", nn.Module().state_dict(), metadata)
    return folder


def untrained_run(folder, regions=tuple(REGIONS), seed=0, **data):
    """Write a run folder with an untrained U-Net, for processes that a replaced network does not reach."""
    folder.mkdir(parents=True)
    metadata = _metadata(regions, data) | {"window_hu": [0.0, 200.0], "trained_on_voxels": [], "step": 5}
    config = cli.from_plain(Config, metadata["config"])
    torch.manual_seed(seed)
    model = build_model(config.model, 1 + 2 * config.data.context)
    model_weights.export(folder / "model.safetensors", model.state_dict(), metadata)
    return folder


def _metadata(regions, data):
    keys = ["run=r", "data.store=s", "model.arch=simple_unet", "model.width=2", "model.prior=0.5"]
    keys += [f"data.{key}={value}" for key, value in data.items()]
    config = cli.load(Config, [*keys, f"model.regions=[{','.join(regions)}]"])
    return {"config": as_plain(config), "normalization": NORM, "data": "phantom"}


def scan(spacing=(3.0, 0.8, 0.8)):
    """Return a body of 50 HU with a smooth bright ball off center."""
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    hu = 50 + 120 * np.exp(-(((y - 30) / 9) ** 2 + ((x - 60) / 9) ** 2 + (z - 1) ** 2 / 8))
    hu[:, :5] = hu[:, -5:] = -1000
    return Volume(np.rint(hu).astype(np.int16), kits_geometry(SHAPE, spacing))


def predict_probabilities(predictor, volume):
    """Return (D, R, H, W) probabilities, after checking that each slice is predicted once and in order."""
    levels = predictor.levels_of(volume)
    batches = list(predictor.model.probabilities(levels, predictor.case_of(levels, volume)))
    assert [index for batch in batches for index in batch.slices] == list(range(len(levels)))
    return torch.cat([batch.probability for batch in batches]).numpy()
