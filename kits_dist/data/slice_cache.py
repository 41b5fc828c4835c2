"""Where a dataset reads its slices from: mapped files, or GPU memory for the whole training."""

import contextlib
import ctypes
import mmap
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kits_dist.config import DataConfig
from kits_dist.data.backends import real_backend
from kits_dist.data.store import PLANE_NAMES, Store
from kits_dist.utils.errors import InputError, JobFailed

Stack = tuple[int, str]  # case, plane
Place = tuple[Stack, int]  # a stack, and a slice in it

# Of the C library: the method of mmap keeps Python's lock, and a cold page costs it milliseconds.
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class MappedSlices:
    """Views of the store's mapped files: nothing is read before it is used."""

    device = torch.device("cpu")

    def __init__(self, store: Store, context: int, description: str = "mapped files"):
        """Map nothing yet; `description` is for the log."""
        self.store = store
        self.context = context
        self.description = description

    def check(self, stacks: set[Stack]) -> None:
        """Raise JobFailed where a file of these stacks was cut or removed since the store was opened."""
        try:
            self.store.check_files(stacks)
        except InputError as error:
            raise JobFailed(f"the store changed while it was read: {error} Then continue with resume=auto") from error

    def will_need(self, places: list[Place]) -> None:
        """Let the operating system begin to read these slices from the disk."""
        for stack, index in places:
            with contextlib.suppress(OSError, ValueError, InputError):  # of a file that cannot be mapped: see `check`
                _read_ahead(self.store.image(*stack)[max(0, index - self.context) : index + self.context + 1])
                _read_ahead(self.store.label(*stack)[index])

    def take(self, places: list[Place]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return (F, H, W, 1) uint8 levels around each slice, F = 1 + 2 * context, and its (H, W, 1) uint8 labels."""
        slabs = [slab_of(self.store.image(*stack), index, self.context)[..., None] for stack, index in places]
        labels = [self.store.label(*stack)[index][..., None] for stack, index in places]
        return slabs, labels


class MaskedSlices(MappedSlices):
    """Slices in which everything but the annotated kidneys with their masses has level 0 (data.mask=kidney)."""

    def take(self, places: list[Place]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return copies of the masked slices, and views of the labels, as `MappedSlices` does."""
        slabs, labels = super().take(places)
        return [slab * (label > 0) for slab, label in zip(slabs, labels, strict=True)], labels


def mapped_slices(store: Store, data: DataConfig, description: str = "mapped files") -> MappedSlices:
    """Return the slices of the store's files as `data` shows them."""
    kind = MaskedSlices if data.mask == "kidney" else MappedSlices
    return kind(store, data.context, description)


class _Held(NamedTuple):
    """Where a stack lies in the tensors of its slices' shape."""

    shape: tuple[int, int]
    image: int  # row of its slice 0 in the images, were it held from there
    label: int  # likewise in the labels
    first: int  # slices whose images are held: these and all in between
    last: int


class GpuSlices:
    """uint8 images and labels of the chosen slices in GPU memory: one tensor of each for every shape of slices."""

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        context: int,
        device: torch.device,
        description: str = "",
        masked: bool = False,
    ):
        """Copy the slices that `rows` of store.slices need to `device`.

        description   for the log
        masked        as in `MaskedSlices`; needs context = 0
        """
        self.device = device
        self.context = context
        self.description = description
        # DALI reads what was gathered on a stream of its own, when this one has finished.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._stacks: dict[Stack, _Held] = {}
        sizes: dict[tuple[int, int], list[int]] = {}  # images and labels of each shape
        ranges = _ranges(store, rows, context)
        for stack, (label_range, image_range) in ranges.items():
            shape = store.image(*stack).shape[1:]
            images, labels = sizes.setdefault(shape, [0, 0])
            self._stacks[stack] = _Held(
                shape, images - image_range.start, labels - label_range.start, image_range.start, image_range.stop - 1
            )
            sizes[shape] = [images + len(image_range), labels + len(label_range)]

        self._tensors = {
            shape: tuple(torch.empty((count, *shape), dtype=torch.uint8, device=device) for count in counts)
            for shape, counts in sizes.items()
        }
        for stack, (label_range, image_range) in ranges.items():
            held = self._stacks[stack]
            images, labels = self._tensors[held.shape]
            _copy(store.image(*stack), image_range, images, held.image)
            _copy(store.label(*stack), label_range, labels, held.label)
        if masked:
            for images, labels in self._tensors.values():
                images *= labels > 0
        if self._stream:
            torch.cuda.synchronize(device)  # sync: another stream reads them

    @staticmethod
    def bytes_needed(store: Store, rows: np.ndarray, context: int) -> int:
        """Return the memory that these rows of store.slices take."""
        total = 0
        for (case, plane), (labels, images) in _ranges(store, rows, context).items():
            _, height, width = store.cases[case].slice_geometry(plane).shape
            total += (len(labels) + len(images)) * height * width
        return total

    def check(self, stacks: set[Stack]) -> None:
        """Do nothing: no file is read during training."""

    def will_need(self, places: list[Place]) -> None:
        """Do nothing, likewise."""

    def take(self, places: list[Place]) -> tuple[Tensor, Tensor]:
        """Return slabs (B, F, H, W, 1) and labels (B, H, W, 1) uint8 on the device, as large as the largest slice.

        Smaller slices are padded with 0 at the bottom and on the right, which changes no warp: outside it counts as 0.
        """
        held = [self._stacks[stack] for stack, _ in places]
        around = np.arange(-self.context, self.context + 1)
        height, width = np.max([one.shape for one in held], axis=0).tolist()
        shapes = {one.shape for one in held}
        new = torch.empty if len(shapes) == 1 else torch.zeros
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            slabs = new((len(places), len(around), height, width, 1), dtype=torch.uint8, device=self.device)
            labels = new((len(places), height, width, 1), dtype=torch.uint8, device=self.device)
            for shape in shapes:
                samples = [i for i, one in enumerate(held) if one.shape == shape]
                of_shape = [(held[i], places[i][1]) for i in samples]
                frames = [one.image + np.clip(index + around, one.first, one.last) for one, index in of_shape]
                rows = [one.label + index for one, index in of_shape]
                to, image_rows, label_rows = (
                    torch.from_numpy(np.array(numbers)).to(self.device) for numbers in (samples, frames, rows)
                )
                images_of_shape, labels_of_shape = self._tensors[shape]
                slabs[to, :, : shape[0], : shape[1], 0] = images_of_shape[image_rows]
                labels[to, : shape[0], : shape[1], 0] = labels_of_shape[label_rows]
        if self._stream:
            self._stream.synchronize()  # sync: of the thread that makes batches, not of the one that trains
        return slabs, labels


def _copy(volume: np.ndarray, indices: range, into: Tensor, zero: int) -> None:
    """Copy slices of a mapped volume to where `into` holds them; `zero`: the row of slice 0."""
    # np.array copies: torch warns of read-only arrays
    into[zero + indices.start : zero + indices.stop] = torch.from_numpy(np.array(volume[indices.start : indices.stop]))


def choose_residency(
    store: Store,
    rows: np.ndarray,
    data: DataConfig,
    device: torch.device,
    step_bytes: Callable[[], int] | None = None,
) -> MappedSlices | GpuSlices:
    """Return where to read these rows of store.slices from, as data.residency asks.

    auto: in GPU memory where the slices fit in addition to a training step and the batches in DALI's queues.

    step_bytes   measures the GPU memory of a training step (`TrainStep.step_bytes`), called only where the answer
                 depends on it; None: half of what is free

    Raises InputError for data.residency=gpu without an NVIDIA GPU, without DALI, or without enough memory.
    """
    possible = device.type == "cuda" and real_backend(data.backend, device) == "dali"
    if data.residency == "mmap" or (data.residency == "auto" and not possible):
        return mapped_slices(store, data)
    if not possible:
        raise InputError("data.residency=gpu needs an NVIDIA GPU and data.backend=dali. Use data.residency=mmap")

    slices = GpuSlices.bytes_needed(store, rows, data.context)
    free = torch.cuda.mem_get_info(device)[0]
    measure = data.residency == "auto" and step_bytes
    step = measure() + queue_bytes(data) + gathered_bytes(store, data) if measure else free // 2
    sizes = (
        f"{slices / 1e9:.2f} GB for {len(rows)} slices, {step / 1e9:.2f} GB for a step and its batches, "
        f"{free / 1e9:.2f} GB of GPU memory free"
    )
    if data.residency == "auto" and slices + step > free:
        return mapped_slices(store, data, f"mapped files ({sizes})")
    if slices > free:
        raise InputError(f"data.residency=gpu: {sizes}. Use data.residency=mmap, or data.slices=kidney")
    masked = data.mask == "kidney"
    return GpuSlices(store, rows, data.context, device, f"GPU memory ({sizes})", masked)


def queue_bytes(data: DataConfig) -> int:
    """Return the memory of the batches in DALI's queues, of the training and the validation pipeline together.

    Per pixel: float32 and uint8 images and float32 noise for each frame, two uint8 labels.
    """
    frames = 1 + 2 * data.context
    return 2 * (data.prefetch + 2) * data.batch_size * data.size_px[0] * data.size_px[1] * (9 * frames + 2)


def _read_ahead(mapped: np.ndarray) -> None:
    """Let the operating system begin to read a contiguous part of a mapped file."""
    address = mapped.__array_interface__["data"][0]
    before = address % mmap.PAGESIZE
    _madvise(address - before, mapped.nbytes + before, mmap.MADV_WILLNEED)


def gathered_bytes(store: Store, data: DataConfig) -> int:
    """Return the memory of the batches that were gathered from GPU memory and that DALI has not read yet."""
    largest = max(
        case.slice_geometry(plane).shape[1] * case.slice_geometry(plane).shape[2]
        for case in store.cases
        for plane in data.planes
    )
    return (2 * data.prefetch + 5) * data.batch_size * largest * (2 + 2 * data.context)


def slab_of(volume: np.ndarray, index: int, context: int) -> np.ndarray:
    """Return (1 + 2 * context, H, W) of (N, H, W) around slice `index`.

    A view, except at the ends of the volume, where the first or last slice is repeated.
    """
    low = index - context
    high = index + context + 1
    if low >= 0 and high <= len(volume):
        return volume[low:high]
    return volume[np.clip(np.arange(low, high), 0, len(volume) - 1)]


def _ranges(store: Store, rows: np.ndarray, context: int) -> dict[Stack, tuple[range, range]]:
    """Return {stack: slices whose labels, slices whose images} `rows`, which are sorted by stack, need.

    Slices between two kidneys are included, so that a stack is one block of memory.
    """
    table = store.slices
    ranges = {}
    for part in np.split(rows, np.flatnonzero(np.diff(table.stack[rows])) + 1):
        stack = (int(table.case[part[0]]), PLANE_NAMES[table.plane[part[0]]])
        index = table.index[part]
        first, last = int(index.min()), int(index.max())
        count = store.cases[stack[0]].slice_geometry(stack[1]).shape[0]
        ranges[stack] = range(first, last + 1), range(max(0, first - context), min(count, last + context + 1))
    return ranges
