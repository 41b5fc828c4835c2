"""Trained networks as one kind of thing: a scan -> the probability of each region in each of its voxels.

What maps a case to region probabilities is a `RegionModel`: one run, with or without mirrored slices; several fused;
a cascade (`cascade.py`); anything else that yields the same chunks.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kits_dist import cli
from kits_dist.config import Config
from kits_dist.data import augment_params
from kits_dist.data.intensity import Window
from kits_dist.data.slice_cache import slab_of
from kits_dist.data.store import PLANES, Case, Normalization, SliceGeometry
from kits_dist.distributed.precision import Precision, choose_precision
from kits_dist.distributed.ranks import launched
from kits_dist.inference.warping import crop_affine, invert_affine, warp
from kits_dist.models import build_model
from kits_dist.models import weights as model_weights
from kits_dist.models.probabilities import region_probabilities
from kits_dist.utils.components import Box3
from kits_dist.utils.errors import InputError

Tta = Literal["none", "flip"]
PrecisionName = Literal["auto", "fp32", "tf32", "fp16", "bf16"]  # precision


class SliceProbabilities(NamedTuple):
    slices: range  # consecutive axial slices
    probability: Tensor  # (n, R, H, W) float32 on the model's device


class RegionModel(Protocol):
    regions: tuple[str, ...]

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """(D, H, W) uint8 levels of the window -> all axial slices in order, each once, some at a time."""


class RunModel:
    """The best weights of one run, with the input they expect: HU window, normalization, output grid, context."""

    def __init__(self, run: Path, batch_size: int, tta: Tta, precision: PrecisionName = "auto", compiled: bool = False):
        """Raises MissingInput / InputError when `run` holds no model or a damaged one, or this machine has not that
        precision."""
        weights, about = model_weights.read_export(run / "model.safetensors")
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
        self.run, self.batch_size, self.tta, self.compiled = run, batch_size, tta, compiled
        self.regions = self.config.model.regions
        self.device = _device()
        self.precision = inference_precision(precision, self.config.train.precision, self.device)
        self.model = build_model(self.config.model, 1 + 2 * self.config.data.context, pretrained=False)
        model_weights.load_weights(self.model, weights, run / "model.safetensors")
        self.model.to(self.device, memory_format=torch.channels_last).eval()
        if compiled:
            self.model.compile()
        self.timer = DeviceTimer(self.device)

    def plane_models(self) -> list["PlaneModel"]:
        """One model for each plane that the run was trained on."""
        return [PlaneModel(self, plane) for plane in self.config.data.planes]

    def predict_stack(self, stack: np.ndarray, geometry: SliceGeometry, box: Box3) -> Iterator[SliceProbabilities]:
        """Slices of one plane, seen through the window that `geometry` asks for.

        stack   (N, rows, columns) uint8 levels
        Yields the slices of `box`, with (n, R, h, w) probabilities of its pixels; 0 outside the window.
        """
        data = self.config.data
        grid = augment_params.OutputGrid(data.size_px, data.pixel_mm)
        matrix = augment_params.centered(grid, [geometry]).matrix[0]
        slices, rows, columns = box
        back = crop_affine(invert_affine(matrix), columns.start, rows.start)
        size = (rows.stop - rows.start, columns.stop - columns.start)
        # as in training, a sagittal slice is never mirrored: no patient has the back in front
        mirrored = self.tta == "flip" and geometry.plane != "sagittal"
        for some in batch_ranges(slices.start, slices.stop, self.batch_size):
            slabs = np.stack([slab_of(stack, i, data.context) for i in some])
            source = torch.from_numpy(slabs).to(self.device).float()
            seen = warp(source, matrix, grid.size_px).sub_(self.norm.mean).div_(self.norm.sd)
            with self.timer.running():
                probability = self.predict_batch_flipped(seen) if mirrored else self.predict_batch(seen)
            yield SliceProbabilities(some, warp(probability, back, size))

    def predict_batch(self, image: Tensor) -> Tensor:
        """(n, C, H, W) normalised -> (n, R, H, W) float32 probabilities."""
        count = len(image)
        if self.compiled and count < self.batch_size:  # each other size of batch would be compiled anew
            image = nn.functional.pad(image, (0, 0, 0, 0, 0, 0, 0, self.batch_size - count))
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision.mode)
        with torch.autocast(self.device.type, half, enabled=half is not None):
            return region_probabilities(self.model, image)[:count]

    def predict_batch_flipped(self, image: Tensor) -> Tensor:
        """The mean with what is seen of the mirrored slices, which go through the network beside the plain ones: half
        as many slices at once, so that a pass holds no more images than without (at least two)."""
        means = []
        for some in image.split(max(1, self.batch_size // 2)):
            plain, mirrored = self.predict_batch(torch.cat([some, some.flip(-1)])).chunk(2)
            means.append((plain + mirrored.flip(-1)) / 2)
        return torch.cat(means)


class PlaneModel:
    """A run that looks along one plane."""

    def __init__(self, of: RunModel, plane: str):
        self.of, self.plane, self.regions = of, plane, of.regions

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        geometry = case.slice_geometry(self.plane)
        chunks = self.of.predict_stack(
            levels.transpose(PLANES[self.plane]), geometry, tuple(slice(0, n) for n in geometry.shape)
        )
        if self.plane == "axial":
            yield from chunks
            return
        volume = torch.empty(len(self.regions), *levels.shape, dtype=torch.float16)  # 0.6 GB for 1,059 slices, 1 region
        along = volume.permute(0, *(1 + axis for axis in PLANES[self.plane]))
        for slices, probability in chunks:
            along[:, slices.start : slices.stop] = to_half(probability).transpose(0, 1).cpu()
        for slices in batch_ranges(0, len(levels), self.of.batch_size):
            yield SliceProbabilities(
                slices, volume[:, slices.start : slices.stop].transpose(0, 1).to(self.of.device).float()
            )


def predict_volume(model: RegionModel, levels: np.ndarray, case: Case) -> Tensor:
    """(R, D, H, W) float16 on the CPU: all chunks of a case together."""
    volume = torch.empty(len(model.regions), *levels.shape, dtype=torch.float16)
    for slices, probability in model.probabilities(levels, case):
        volume[:, slices.start : slices.stop] = to_half(probability).transpose(0, 1).cpu()
    return volume


def to_half(probability: Tensor) -> Tensor:
    """float32 -> float16 on the same side of 0.5: rounding would paint what is just below."""
    half = probability.half()
    return torch.where((probability < 0.5) & (half >= 0.5), torch.nextafter(half, torch.zeros_like(half)), half)


def batch_ranges(first: int, last: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, last)) for start in range(first, last, size))


def inference_precision(asked: PrecisionName, trained: str, device: torch.device) -> Precision:
    """Of the forward pass, and why. Sets TF32 on or off for this process.

    asked     auto: fp32 on a CPU; on a GPU as `trained`, the run's train.precision, says: half where it trained so,
              else TF32. The launcher has no say, so that one process and many paint the same.
    Raises InputError for what a CPU has not.
    """
    if device.type == "cpu":
        if asked in ("fp16", "tf32"):
            raise InputError(f"precision={asked} needs an NVIDIA GPU. Use precision=auto, which is fp32 on a CPU.")
        return Precision("fp32", "no GPU") if asked == "auto" else Precision(asked, "as asked")
    if asked != "auto":
        chosen = Precision(asked, "as asked")
    elif trained in ("fp32", "tf32"):
        chosen = Precision("tf32", f"trained with train.precision={trained}")
    else:
        chosen = choose_precision(trained, "no")
    # not cudnn.benchmark, which may take another algorithm on each rank: their label maps would differ
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = chosen.mode != "fp32"
    return chosen


class DeviceTimer:
    """Seconds that a device worked on what was asked within `running`; a GPU is not made to wait for it."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._on_gpu:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._marks.append((begin, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    @property
    def seconds(self) -> float:
        for begin, end in self._marks:
            end.synchronize()  # sync
            self._seconds += begin.elapsed_time(end) / 1000
        self._marks.clear()
        return self._seconds


def _device() -> torch.device:
    """This process's GPU: a launcher says by LOCAL_RANK which."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", launched().local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)  # events and pinned memory follow the current device
    return device
