import numpy as np
import pytest
import torch
from torch import nn

from kits_dist import checkpoint, cli, inference
from kits_dist.config import Config, as_plain
from kits_dist.data import augment
from kits_dist.data.volume import Volume, kits_geometry
from kits_dist.inference import Predictor, inverse, warp

SHAPE = (3, 71, 90)


class Threshold(nn.Module):
    """Every network output is (levels - at): what comes out is known from what goes in, through all the geometry."""

    def __init__(self, at, mean, sd):
        super().__init__()
        self.at, self.mean, self.sd = at, mean, sd

    def forward(self, image):
        return (image[:, :1] * self.sd + self.mean - self.at) * 10


def predictor(tmp_path, monkeypatch, **data):
    arguments = [f"data.{key}={value}" for key, value in data.items()]
    config = cli.load(Config, ["run=r", "data.store=s", "model.arch=simple_unet", "model.width=2", *arguments])
    monkeypatch.setattr(inference, "build_model", lambda *a, **k: Threshold(100.0, 40.0, 50.0))
    about = {
        "config": as_plain(config),
        "window_hu": [0, 200],
        "normalization": {"mean": 40.0, "sd": 50.0},
        "data": "phantom",
        "trained_on": ["case_00007"],
    }
    checkpoint.export(tmp_path / "model.safetensors", nn.Module(), about)
    return Predictor(tmp_path, batch_size=2)


def scan(spacing=(3.0, 0.8, 0.8)):
    """Body of 50 HU with a smooth bright ball off centre."""
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    hu = 50 + 120 * np.exp(-(((y - 30) / 9) ** 2 + ((x - 60) / 9) ** 2 + (z - 1) ** 2 / 8))
    hu[:, :5] = hu[:, -5:] = -1000
    return Volume(np.rint(hu).astype(np.int16), kits_geometry(SHAPE, spacing))


@pytest.mark.parametrize("size", ["64x64", "96x128"])  # smaller than the slice, larger than the slice
def test_on_native_pixels_the_way_there_and_back_is_exact(tmp_path, monkeypatch, size):
    volume = scan()
    labels = predictor(tmp_path, monkeypatch, size_px=size, context=1).predict(volume)
    expected = (np.roll(volume.array, 1, axis=0) >= 100).astype(np.uint8)  # channel 0 is the slice above
    expected[0] = volume.array[0] >= 100
    assert labels.shape == SHAPE and labels.dtype == np.uint8
    if size == "64x64":
        seen = np.zeros(SHAPE, bool)  # body rows 5..66, columns 0..90: the window is rows 3..67, columns 13..77
        seen[:, 3:67, 13:77] = True
        expected[~seen] = 0  # what lies outside the window is background, and so a miss
    assert labels.any() and np.array_equal(labels, expected)


@pytest.mark.parametrize("spacing", [(3.0, 0.8, 0.8), (3.0, 0.8, 0.6)])
def test_resampled_pixels_come_back_to_the_right_place(tmp_path, monkeypatch, spacing):
    volume = scan(spacing)
    labels = predictor(tmp_path, monkeypatch, size_px="96x96", pixel_mm=1.0).predict(volume)
    expected = volume.array >= 100
    overlap = 2 * (labels & expected).sum() / (labels.sum() + expected.sum())
    assert overlap > 0.97  # two interpolations at 1.0 mm move the edge by less than half a pixel
    for axis in (1, 2):  # no half-pixel shift: the edge's sampling moves a centroid by up to 0.13 px, a shift by 0.5
        index = np.arange(SHAPE[axis])
        other = tuple(k for k in range(3) if k != axis)
        a, b = ((m.sum(axis=other) * index).sum() / m.sum() for m in (labels, expected))
        assert abs(a - b) < 0.2


def test_warp_is_the_meaning_of_augment():
    rng = np.random.default_rng(0)
    slab = rng.integers(0, 201, (2, 40, 50)).astype(np.float32)
    for matrix in ([[0.9, 0.3, 2.5], [-0.2, 1.1, -3.2]], [[1, 0, 7], [0, 1, -4]], [[1.3, 0, 0], [0, 0.8, 5]]):
        m = np.array(matrix, np.float32)
        ours = warp(torch.from_numpy(slab)[None], m, (32, 64))[0].numpy()
        assert np.abs(ours - augment.warp_linear(slab, m, (32, 64))).max() < 0.05  # float32 coordinates on 0..200 noise


def test_inverse():
    m = np.array([[0.9, 0.3, 2.5], [-0.2, 1.1, -3.2]])
    point = inverse(m) @ [*(m @ [5, 7, 1]), 1]
    assert point == pytest.approx([5, 7])
