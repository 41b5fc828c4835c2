"""A CT volume -> a label volume on the same voxels, with a trained run. `predict` and `evaluate` share it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kits_dist import checkpoint, cli
from kits_dist.config import Config
from kits_dist.data import augment
from kits_dist.data.intensity import Window, body_box
from kits_dist.data.pixels import slab_of
from kits_dist.data.store import PLANES, Case, Normalization
from kits_dist.data.volume import Volume
from kits_dist.errors import InputError
from kits_dist.labels import regions_to_labels
from kits_dist.models import build_model


class Predictor:
    """The best model of a run, with what it expects of its input: window, normalisation, framing, context."""

    def __init__(self, run: str | Path, batch_size: int = 16):
        """batch_size: slices at once. Raises MissingInput / InputError when `run` holds no model or a damaged one."""
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1.")
        weights, about = checkpoint.read_export(Path(run) / "model.safetensors")
        try:
            self.config: Config = cli.from_plain(Config, about["config"])
            self.window = Window(*about["window_hu"])
            self.norm = Normalization(**about["normalization"])
            self.data = about["data"]  # kits, phantom or painted: what it was trained on
            self.step = about.get("step")  # optimiser step of these weights
            self.trained_on = set(about["trained_on_voxels"])  # sha256 of each CT's voxels
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{run}/model.safetensors was written by another version of kits_dist ({error})."
            ) from error
        self.regions = self.config.model.regions
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = batch_size
        self.model = build_model(self.config.model, 1 + 2 * self.config.data.context, pretrained=False)
        checkpoint.load_weights(self.model, weights, Path(run) / "model.safetensors")
        self.model.to(self.device, memory_format=torch.channels_last).eval()

    def predict(self, image: Volume) -> np.ndarray:
        """(D, H, W) HU -> (D, H, W) uint8 labels. Every slice is predicted; outside the window is background."""
        levels = self.window.to_levels(image.array)
        return self.predict_levels(levels, self.case_of(levels, image))

    def predict_levels(self, levels: np.ndarray, case: Case) -> np.ndarray:
        """(D, H, W) uint8 levels of the window, as a store holds them -> (D, H, W) uint8 labels.

        A model of several planes sees each voxel once in each; its probabilities are averaged.
        """
        planes = self.config.data.planes
        if len(planes) > 1:
            total = np.zeros((len(self.regions), *levels.shape), np.float16)  # 0.5 GB for 1,000 slices and one region
            for plane in planes:
                of_plane = total.transpose(0, *(1 + axis for axis in PLANES[plane]))
                for indices, probability in self._stack(levels, case, plane):
                    of_plane[:, indices.start : indices.stop] += probability.transpose(1, 0, 2, 3)
            return np.stack(
                [regions_to_labels(total[:, d] >= len(planes) / 2, self.regions) for d in range(len(levels))]
            )
        labels = np.zeros(levels.shape, np.uint8)
        stack = labels.transpose(PLANES[planes[0]])
        for indices, probability in self._stack(levels, case, planes[0]):
            for k, i in enumerate(indices):
                stack[i] = regions_to_labels(probability[k] >= 0.5, self.regions)
        return labels

    def _stack(self, levels: np.ndarray, case: Case, plane: str) -> Iterator[tuple[range, np.ndarray]]:
        """Slices of a plane, some at once -> their (B, R, rows, columns) float32 probabilities on their own pixels."""
        stack, view = levels.transpose(PLANES[plane]), case.view(plane)
        framing = augment.Framing(self.config.data.size_px, self.config.data.pixel_mm)
        matrix = augment.centred(framing, [view]).matrix[0]
        for first in range(0, len(stack), self.batch_size):
            indices = range(first, min(first + self.batch_size, len(stack)))
            slabs = np.stack([slab_of(stack, i, self.config.data.context) for i in indices])
            source = torch.from_numpy(slabs).to(self.device).float()
            seen = (warp(source, matrix, framing.size_px) - self.norm.mean) / self.norm.sd
            probability = region_probabilities(self.model, seen)
            yield indices, warp(probability, inverse(matrix), view.shape[1:]).cpu().numpy()

    def case_of(self, levels: np.ndarray, image: Volume) -> Case:
        """What framing needs to know of a scan that is in no store."""
        body = {plane: body_box(levels.transpose(PLANES[plane])) for plane in self.config.data.planes}
        return Case("", levels.shape, image.spacing_mm, body, {}, {}, image.geometry, {})


@torch.inference_mode()
def region_probabilities(model: nn.Module, image: Tensor) -> Tensor:
    """(B, C, H, W) normalised -> (B, R, H, W) float32 probabilities, in evaluation mode."""
    was_training = model.training
    model.eval()
    logits = model(image.to(memory_format=torch.channels_last))
    model.train(was_training)
    return logits.float().sigmoid()


def warp(source: Tensor, matrix: np.ndarray, size_px: tuple[int, int]) -> Tensor:
    """(B, C, H, W) float -> (B, C, h, w): `augment.warp_linear` on the device; 0 outside.

    A whole-pixel shift is copied, not interpolated, so a label sent there and back is unchanged.
    """
    shift = matrix[:, 2]
    if np.array_equal(matrix[:, :2], np.eye(2)) and np.array_equal(shift, np.round(shift)):
        left, top = (int(n) for n in shift)
        height, width = source.shape[2:]
        pad = (-left, left + size_px[1] - width, -top, top + size_px[0] - height)  # negative pads crop
        return nn.functional.pad(source, pad)
    height, width = source.shape[2:]
    rows = torch.arange(size_px[0], device=source.device) + 0.5
    columns = torch.arange(size_px[1], device=source.device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    m = torch.as_tensor(matrix, device=source.device, dtype=torch.float32)
    points = torch.stack([m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2]], dim=-1)
    grid = (
        2 * points / torch.tensor([width, height], device=source.device) - 1
    )  # grid_sample's [-1, 1] spans pixel edges
    return nn.functional.grid_sample(source, grid.expand(len(source), -1, -1, -1), align_corners=False)


def inverse(matrix: np.ndarray) -> np.ndarray:
    """(2, 3) affine -> the (2, 3) that undoes it."""
    linear = np.linalg.inv(matrix[:, :2].astype(np.float64))
    return np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)


def denormalized(image: np.ndarray, norm: Normalization, levels: int) -> np.ndarray:
    """(H, W) normalised -> uint8 grey that fills 0..255."""
    return np.clip((image * norm.sd + norm.mean) * 255 / levels, 0, 255).astype(np.uint8)
