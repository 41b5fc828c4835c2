"""A CT volume -> a label volume on the same voxels, with one trained run or several. `predict` and `evaluate` share it.

What maps a case to region probabilities is a `RegionModel`: one run, with or without mirrored slices; the mean of
several; anything else that yields the same chunks. Labels are painted from its probabilities at the very end.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kits_dist import checkpoint, cli
from kits_dist.config import Config
from kits_dist.data import augment
from kits_dist.data.intensity import Window, body_box
from kits_dist.data.pixels import slab_of
from kits_dist.data.sources import folders_of
from kits_dist.data.store import PLANES, Case, Normalization
from kits_dist.data.volume import Volume
from kits_dist.errors import InputError
from kits_dist.labels import PAINT, REGIONS
from kits_dist.models import build_model
from kits_dist.ranks import launched

Tta = Literal["none", "flip"]


class Chunk(NamedTuple):
    slices: range  # consecutive axial slices
    probability: Tensor  # (n, R, H, W) float32 on the model's device


class RegionModel(Protocol):
    regions: tuple[str, ...]

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[Chunk]:
        """(D, H, W) uint8 levels of the window -> all axial slices in order, each once, some at a time."""


class RunModel:
    """The best weights of one run, with what they expect of their input: window, normalisation, framing, context."""

    def __init__(self, run: Path, batch_size: int, tta: Tta):
        """Raises MissingInput / InputError when `run` holds no model or a damaged one."""
        weights, about = checkpoint.read_export(run / "model.safetensors")
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
        self.run, self.batch_size, self.tta = run, batch_size, tta
        self.regions = self.config.model.regions
        self.device = _device()
        self.model = build_model(self.config.model, 1 + 2 * self.config.data.context, pretrained=False)
        checkpoint.load_weights(self.model, weights, run / "model.safetensors")
        self.model.to(self.device, memory_format=torch.channels_last).eval()
        self.watch = Stopwatch(self.device)

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[Chunk]:
        """A model of several planes sees each voxel once in each; its probabilities are averaged."""
        planes = self.config.data.planes
        if planes == ("axial",):
            yield from self._stack(levels, case, "axial")
            return
        mean = torch.zeros(len(self.regions), *levels.shape, dtype=torch.float16)  # 0.6 GB for 1,059 slices, one region
        for plane in planes:
            of_plane = mean.permute(0, *(1 + axis for axis in PLANES[plane]))
            for slices, probability in self._stack(levels, case, plane):
                part = of_plane[:, slices.start : slices.stop]
                part += probability.transpose(0, 1).cpu() / len(planes)
        for slices in _in_batches(len(levels), self.batch_size):
            yield Chunk(slices, mean[:, slices.start : slices.stop].transpose(0, 1).to(self.device).float())

    def _stack(self, levels: np.ndarray, case: Case, plane: str) -> Iterator[Chunk]:
        """Slices of a plane -> their (n, R, rows, columns) probabilities on their own pixels."""
        stack, view = levels.transpose(PLANES[plane]), case.view(plane)
        framing = augment.Framing(self.config.data.size_px, self.config.data.pixel_mm)
        matrix = augment.centred(framing, [view]).matrix[0]
        # as in training, a sagittal slice is never mirrored: no patient has the back in front
        mirrored = self.tta == "flip" and plane != "sagittal"
        for slices in _in_batches(len(stack), self.batch_size):
            slabs = np.stack([slab_of(stack, i, self.config.data.context) for i in slices])
            source = torch.from_numpy(slabs).to(self.device).float()
            seen = (warp(source, matrix, framing.size_px) - self.norm.mean) / self.norm.sd
            with self.watch.running():
                probability = region_probabilities(self.model, seen)
                if mirrored:
                    probability = (probability + region_probabilities(self.model, seen.flip(-1)).flip(-1)) / 2
            yield Chunk(slices, warp(probability, inverse(matrix), view.shape[1:]))


class Mean:
    """Several models of the same regions: the mean of their probabilities."""

    def __init__(self, members: Sequence[RegionModel]):
        self.members, self.regions = members, members[0].regions

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[Chunk]:
        for chunks in zip(*(member.probabilities(levels, case) for member in self.members), strict=True):
            yield Chunk(chunks[0].slices, sum(chunk.probability for chunk in chunks) / len(chunks))


class Predictor:
    """Runs as one model, and the label map that their probabilities paint."""

    def __init__(self, run: str | Path, batch_size: int = 16, tta: Tta = "none"):
        """run: a folder, or several as `[A,B]`, whose probabilities are averaged. batch_size: slices at once.

        Raises MissingInput / InputError when one holds no model or a damaged one, or they cannot be averaged.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1.")
        folders = folders_of(str(run), "run")
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise InputError(f"run={run} names a run twice; it would count twice. Name each once.")
        self.members = [RunModel(folder, batch_size, tta) for folder in folders]
        self.model: RegionModel = self.members[0] if len(self.members) == 1 else _averaged(self.members)
        self.regions, self.tta = self.model.regions, tta
        first = self.members[0]
        self.config, self.window = first.config, first.window
        self.data = " and ".join(sorted({member.data for member in self.members}))
        self.step = first.step if len(self.members) == 1 else [member.step for member in self.members]
        self.trained_on = set().union(*(member.trained_on for member in self.members))

    @property
    def network_s(self) -> float:
        """Seconds that the networks have worked."""
        return sum(member.watch.seconds for member in self.members)

    def predict(self, image: Volume) -> np.ndarray:
        """(D, H, W) HU -> (D, H, W) uint8 labels. Every slice is predicted; outside the window is background."""
        levels = self.levels_of(image)
        return self.predict_levels(levels, self.case_of(levels, image))

    def predict_levels(self, levels: np.ndarray, case: Case, of_255: np.ndarray | None = None) -> np.ndarray:
        """(D, H, W) uint8 levels of the window, as a store holds them -> (D, H, W) uint8 labels.

        of_255   (R, D, H, W) uint8, filled with round(255 * probability): at least 128 exactly where it is inside
        """
        labels = np.empty(levels.shape, np.uint8)
        for slices, probability in self.model.probabilities(levels, case):
            here = slice(slices.start, slices.stop)
            labels[here] = painted(probability >= 0.5, self.regions).cpu().numpy()  # sync
            if of_255 is not None:
                of_255[:, here] = (probability * 255).round().byte().transpose(0, 1).cpu().numpy()
        return labels

    def levels_of(self, image: Volume) -> np.ndarray:
        """(D, H, W) HU -> (D, H, W) uint8 levels, slice by slice: of a large CT a float copy would be gigabytes."""
        levels = np.empty(image.array.shape, np.uint8)
        for one, hu in zip(levels, image.array, strict=True):
            one[:] = self.window.to_levels(hu)
        return levels

    def case_of(self, levels: np.ndarray, image: Volume) -> Case:
        """What framing needs to know of a scan that is in no store."""
        planes = {"axial", *(plane for member in self.members for plane in member.config.data.planes)}
        body = {plane: body_box(levels.transpose(PLANES[plane])) for plane in PLANES if plane in planes}
        return Case("", levels.shape, image.spacing_mm, body, {}, {}, image.geometry, {})


def _averaged(members: list[RunModel]) -> Mean:
    first = members[0]
    for other in members[1:]:
        for what, a, b in (
            ("predicts", ", ".join(first.regions), ", ".join(other.regions)),
            ("was trained on HU", list(first.window), list(other.window)),
        ):
            if a != b:
                raise InputError(
                    f"{first.run} {what} {a}, but {other.run} {what} {b}: their probabilities cannot be averaged. "
                    "Name runs that agree, or one alone."
                )
    return Mean(members)


def painted(inside: Tensor, regions: tuple[str, ...]) -> Tensor:
    """(n, R, H, W) bool -> (n, H, W) uint8: `labels.regions_to_labels` on the device."""
    labels = torch.zeros_like(inside[:, 0], dtype=torch.uint8)
    within = inside[:, regions.index("kidney_and_mass")] if "kidney_and_mass" in regions else True
    for name in REGIONS:
        if name in regions:
            labels.masked_fill_(inside[:, regions.index(name)] & within, PAINT[name])
    return labels


class Stopwatch:
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


def _in_batches(count: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, count)) for first in range(0, count, size))


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
