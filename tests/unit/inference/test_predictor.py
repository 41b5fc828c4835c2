import gzip

import numpy as np
import pytest
import torch
from torch import nn

from kits_dist import cli, predict
from kits_dist.config import Config, as_plain
from kits_dist.data import augment_reference
from kits_dist.imaging.nifti import Volume, kits_geometry, read_labels, write_nifti
from kits_dist.inference import region_models
from kits_dist.inference.predictor import Predictor
from kits_dist.inference.warping import invert_affine, warp
from kits_dist.models import weights as model_weights
from kits_dist.utils.errors import InputError, JobFailed
from tests.unit.imaging.test_nifti import HU, nifti_bytes
from tests.unit.imaging.test_nifti import SHAPE as SMALL

SHAPE = (3, 71, 90)
NORM = {"mean": 40.0, "sd": 50.0}


class Threshold(nn.Module):
    """One map per threshold, (levels - at) * 10: what comes out is known from what goes in, through all the geometry.

    It looks at one channel, by default the first: with context that is a slice further up.
    """

    def __init__(self, *at, channel=0):
        super().__init__()
        self.at, self.channel = torch.tensor(at)[:, None, None], channel

    def forward(self, image):
        levels = image[:, self.channel, None] * NORM["sd"] + NORM["mean"]
        return (levels - self.at) * 10


def export_run(folder, monkeypatch, model, regions=("kidney_and_mass",), **data):
    """A run folder with `model` as its best weights, whose data config is `data`."""
    arguments = [f"data.{key}={value}" for key, value in data.items()] + [f"model.regions=[{','.join(regions)}]"]
    config = cli.load(Config, ["run=r", "data.store=s", "model.arch=simple_unet", "model.width=2", *arguments])
    monkeypatch.setattr(region_models, "build_model", lambda *a, **k: model)
    about = {
        "config": as_plain(config),
        "window_hu": [0, 200],
        "normalization": NORM,
        "data": "phantom",
        "trained_on_voxels": ["case_00007"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    model_weights.export(folder / "model.safetensors", nn.Module(), about)
    return folder


def predictor(tmp_path, monkeypatch, **data):
    return Predictor(export_run(tmp_path, monkeypatch, Threshold(100.0), **data), batch_size=2)


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
        assert (
            np.abs(ours - augment_reference.warp_linear(slab, m, (32, 64))).max() < 0.05
        )  # float32 coordinates on 0..200 noise


def test_inverse_affine():
    m = np.array([[0.9, 0.3, 2.5], [-0.2, 1.1, -3.2]])
    point = invert_affine(m) @ [*(m @ [5, 7, 1]), 1]
    assert point == pytest.approx([5, 7])


def test_no_batch_is_refused(tmp_path):
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        Predictor(tmp_path, batch_size=0)


def test_predict_says_what_is_wrong_with_each_scan_and_does_the_others(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "scans"
    write_nifti(folder / "good.nii.gz", np.where(HU > 500, 150, 20).astype(np.int16), kits_geometry(SMALL, (3, 1, 1)))
    good = gzip.compress(nifti_bytes())
    bad = {
        "empty": (b"", "the file is empty (0 bytes)"),
        "four": (
            gzip.compress(nifti_bytes(dim=[4, 3, 5, 1, 7, 1, 1, 1])),
            "4 axes, 3x5x1x7; a CT or label map has three",
        ),
        "huge": (
            gzip.compress(nifti_bytes(version=2, dim=[3, *[100_000] * 3, 1, 1, 1, 1])),
            "the header claims 100000x100000x100000 voxels of int16, 2000000000000544 bytes; the file holds at most",
        ),
        "text": (b"hello, this is no scan", "not a NIfTI file, it begins with b'hello, this '"),
        "cut": (good[: len(good) // 2], "damaged or truncated (Compressed file ended before"),
        "flipped": (good[:-6] + bytes([good[-6] ^ 4]) + good[-5:], "damaged or truncated (CRC check failed"),
        "nan": (gzip.compress(nifti_bytes(np.full(SMALL, np.nan, np.float32))), "105 voxels are NaN or infinite"),
        "infinite": (gzip.compress(nifti_bytes(np.full(SMALL, 1e300))), "105 voxels are NaN or infinite"),
        "sideways": (
            gzip.compress(nifti_bytes(sform_code=0, qform_code=0)),
            "no orientation (qform_code and sform_code are",
        ),
    }
    for name, (content, _) in bad.items():
        (folder / f"{name}.nii.gz").write_bytes(content)
    (folder / "folder.nii.gz").mkdir()
    bad["folder"] = (None, "not a file")
    run = export_run(tmp_path / "run", monkeypatch, Threshold(100.0), size_px="32x32")
    with pytest.raises(JobFailed, match=r"10 of 11 scans could not be read: cut, empty, flipped, folder, four, huge,"):
        predict.main(predict.Args(run=str(run), input=str(folder), output=str(tmp_path / "out")))
    said = capsys.readouterr().out.splitlines()
    for name, (_, words) in bad.items():
        (line,) = [line for line in said if f"{name}.nii.gz" in line]  # one message, one line
        assert line.startswith("error") and words in line
        with pytest.raises(InputError):  # alone it is the file that was named: exit code 2
            predict.main(predict.Args(run=str(run), input=str(folder / f"{name}.nii.gz"), output=str(tmp_path / "b")))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.json", "good.nii.gz"]
    assert np.array_equal(read_labels(tmp_path / "out" / "good.nii.gz").array, HU > 500)


def test_predict_does_not_pass_over_a_case_without_a_ct(raw, tmp_path, monkeypatch, capsys):
    for name in ("case_00000", "case_00001"):
        (tmp_path / "cases" / name).mkdir(parents=True)
    (tmp_path / "cases" / "case_00000" / "imaging.nii.gz").symlink_to(raw / "case_00000" / "imaging.nii.gz")
    run = export_run(tmp_path / "run", monkeypatch, Threshold(100.0), size_px="64x64")
    with pytest.raises(JobFailed, match="1 of 2 scans could not be read: case_00001"):
        predict.main(predict.Args(run=str(run), input=str(tmp_path / "cases"), output=str(tmp_path / "out")))
    assert "error    case_00001: no CT file in" in capsys.readouterr().out
