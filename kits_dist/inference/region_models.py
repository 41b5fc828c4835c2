"""Trained networks behind one interface: the uint8 levels of a CT -> the probability of each region in each voxel.

`RunModel` holds the network of one run, `PlaneModel` applies it to all slices of one plane. Ensembles (`ensemble.py`)
and cascades (`cascade.py`) combine several. All are a `RegionModel`, as is anything that yields the same batches.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kits_dist import cli
from kits_dist.config import Config, PrecisionName, Tta
from kits_dist.data import augment_params
from kits_dist.data.intensity import Window
from kits_dist.data.slice_cache import slab_of
from kits_dist.data.store import PLANES, Case, Normalization, SliceGeometry
from kits_dist.inference.device import DeviceTimer, inference_precision, local_device
from kits_dist.inference.warping import crop_affine, invert_affine, warp
from kits_dist.models import build_model
from kits_dist.models import weights as model_weights
from kits_dist.models.probabilities import region_probabilities
from kits_dist.utils.components import Box3
from kits_dist.utils.errors import InputError


class SliceProbabilities(NamedTuple):
    """Region probabilities of a batch of consecutive slices."""

    slices: range
    probability: Tensor  # (n, R, H, W) float32 on the model's device


class RegionModel(Protocol):
    """Anything that predicts the probabilities of `regions`."""

    regions: tuple[str, ...]

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """Yield all axial slices of (D, H, W) uint8 levels in order, each once, a batch at a time."""
        ...


class RunModel:
    """The best weights of one run, with the input they expect: HU window, normalization, output grid, context."""

    def __init__(self, run: Path, batch_size: int, tta: Tta, precision: PrecisionName = "auto", compiled: bool = False):
        """Load RUN/model.safetensors onto this process's device.

        Raises MissingInput or InputError when it is missing or damaged, or the device does not have that precision.
        """
        weights, metadata = model_weights.read_export(run / "model.safetensors")
        try:
            self.config: Config = cli.from_plain(Config, metadata["config"])
            self.window = Window(*metadata["window_hu"])
            self.norm = Normalization(**metadata["normalization"])
            self.data = metadata["data"]  # the kind of data it was trained on: kits, phantom or painted
            self.step = metadata.get("step")  # optimizer step of these weights
            self.trained_on = set(metadata["trained_on_voxels"])  # sha256 of each CT's voxels
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{run}/model.safetensors was written by another version of kits_dist ({error})."
            ) from error
        self.run = run
        self.batch_size = batch_size
        self.tta = tta
        self.compiled = compiled
        self.regions = self.config.model.regions

        self.device = local_device()
        self.precision = inference_precision(precision, self.config.train.precision, self.device)
        self.model = build_model(self.config.model, 1 + 2 * self.config.data.context, pretrained=False)
        model_weights.load_weights(self.model, weights, run / "model.safetensors")
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.model.eval()
        if compiled:
            self.model.compile()
        self.timer = DeviceTimer(self.device)

    @property
    def is_second_phase(self) -> bool:
        """Whether another run must find the kidneys that this one sees."""
        return self.config.data.box == "kidney" or self.config.data.mask == "kidney"

    def plane_models(self) -> list["PlaneModel"]:
        """Return one model for each plane that the run was trained on."""
        return [PlaneModel(self, plane) for plane in self.config.data.planes]

    def predict_stack(self, stack: np.ndarray, geometry: SliceGeometry, box: Box3) -> Iterator[SliceProbabilities]:
        """Predict the slices of one plane, each through the window that `geometry` asks for.

        stack   (N, rows, columns) uint8 levels
        box     the part to predict: its slices are yielded with (n, R, h, w) probabilities of its pixels, which are 0
                outside the window
        """
        data = self.config.data
        grid = augment_params.OutputGrid(data.size_px, data.pixel_mm)
        to_source = augment_params.centered(grid, [geometry]).matrix[0]  # from the window to the slice
        slices, rows, columns = box
        to_window = crop_affine(invert_affine(to_source), columns.start, rows.start)
        box_size = (rows.stop - rows.start, columns.stop - columns.start)

        # as in training, a sagittal slice is never flipped: that would turn front to back
        flip = self.tta == "flip" and geometry.plane != "sagittal"
        predict = self.predict_batch_flipped if flip else self.predict_batch
        for batch in batch_ranges(slices.start, slices.stop, self.batch_size):
            slabs = np.stack([slab_of(stack, index, data.context) for index in batch])
            source = torch.from_numpy(slabs).to(self.device).float()
            image = warp(source, to_source, grid.size_px).sub_(self.norm.mean).div_(self.norm.sd)
            with self.timer.running():
                probability = predict(image)
            yield SliceProbabilities(batch, warp(probability, to_window, box_size))

    def predict_batch(self, image: Tensor) -> Tensor:
        """Run the network: (n, C, H, W) normalized -> (n, R, H, W) float32 probabilities."""
        count = len(image)
        if self.compiled and count < self.batch_size:  # another batch size would be compiled again
            image = nn.functional.pad(image, (0, 0, 0, 0, 0, 0, 0, self.batch_size - count))
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision.mode)
        with torch.autocast(self.device.type, half, enabled=half is not None):
            return region_probabilities(self.model, image)[:count]

    def predict_batch_flipped(self, image: Tensor) -> Tensor:
        """Average the probabilities of each slice and its horizontal flip, run as one batch.

        Half as many slices go through the network at once, so that a pass holds no more images than without flips.
        """
        means = []
        for part in image.split(max(1, self.batch_size // 2)):
            plain, flipped = self.predict_batch(torch.cat([part, part.flip(-1)])).chunk(2)
            means.append((plain + flipped.flip(-1)) / 2)
        return torch.cat(means)


class PlaneModel:
    """A run applied along one of its planes."""

    def __init__(self, run_model: RunModel, plane: str):
        self.run_model = run_model
        self.plane = plane
        self.regions = run_model.regions

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """Yield all axial slices, whichever plane they were predicted in."""
        geometry = case.slice_geometry(self.plane)
        depth, height, width = geometry.shape
        whole = (slice(0, depth), slice(0, height), slice(0, width))
        batches = self.run_model.predict_stack(levels.transpose(PLANES[self.plane]), geometry, whole)
        if self.plane == "axial":
            yield from batches
            return

        # float16 on the CPU: 0.6 GB for 1,059 slices and one region
        volume = torch.empty(len(self.regions), *levels.shape, dtype=torch.float16)
        fill_volume(volume.permute(0, *(1 + axis for axis in PLANES[self.plane])), batches)
        yield from split_volume(volume, self.run_model.batch_size, self.run_model.device)


def predict_volume(model: RegionModel, levels: np.ndarray, case: Case) -> Tensor:
    """Predict a whole case: (D, H, W) uint8 levels -> (R, D, H, W) float16 probabilities on the CPU."""
    volume = torch.empty(len(model.regions), *levels.shape, dtype=torch.float16)
    fill_volume(volume, model.probabilities(levels, case))
    return volume


def fill_volume(volume: Tensor, batches: Iterable[SliceProbabilities]) -> None:
    """Write batches of slices into (R, N, rows, columns) float16, in place."""
    for slices, probability in batches:
        volume[:, slices.start : slices.stop] = to_half(probability).transpose(0, 1).cpu()


def split_volume(volume: Tensor, batch_size: int, device: torch.device) -> Iterator[SliceProbabilities]:
    """Yield the slices of (R, D, H, W) probabilities as a `RegionModel` does."""
    for slices in batch_ranges(0, volume.shape[1], batch_size):
        yield SliceProbabilities(slices, volume[:, slices.start : slices.stop].transpose(0, 1).to(device).float())


def to_half(probability: Tensor) -> Tensor:
    """Round float32 to float16 without crossing 0.5, which would change the label of what is just below."""
    half = probability.half()
    return torch.where((probability < 0.5) & (half >= 0.5), torch.nextafter(half, torch.zeros_like(half)), half)


def batch_ranges(first: int, last: int, size: int) -> Iterator[range]:
    """Split the indices [first, last) into consecutive ranges of at most `size`."""
    return (range(start, min(start + size, last)) for start in range(first, last, size))
