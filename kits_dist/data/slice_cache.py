"""Where a dataset reads its slices from: mapped files, or GPU memory for the whole training."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kits_dist.config import DataConfig
from kits_dist.data.backends import real_backend
from kits_dist.data.store import PLANE_NAMES, Store
from kits_dist.utils.errors import InputError, JobFailed

Stack = tuple[int, str]  # case, plane


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

    def slab(self, stack: Stack, index: int) -> np.ndarray:
        """Return (F, H, W, 1) uint8 levels around slice `index`, F = 1 + 2 * context."""
        return slab_of(self.store.image(*stack), index, self.context)[..., None]

    def label(self, stack: Stack, index: int) -> np.ndarray:
        """Return (H, W, 1) uint8."""
        return self.store.label(*stack)[index][..., None]


class GpuSlices:
    """uint8 images and labels of the chosen slices in GPU memory, one tensor per stack; samples are views of them.

    End slices are repeated `context` times when a stack is stored, so that every slab is a view: nothing is computed
    here while DALI reads on its own stream.
    """

    def __init__(self, store: Store, rows: np.ndarray, context: int, device: torch.device, description: str = ""):
        """Copy the slices that `rows` of store.slices need to `device`; `description` is for the log."""
        self.device = device
        self.context = context
        self.description = description
        self._stacks: dict[Stack, tuple[Tensor, Tensor, int]] = {}  # image with its neighbors, label, first slice
        for stack, (first, last) in _ranges(store, rows).items():
            image = store.image(*stack)
            frames = np.clip(np.arange(first - context, last + context + 1), 0, len(image) - 1)
            label = np.array(store.label(*stack)[first : last + 1])  # a copy: torch warns of read-only arrays
            self._stacks[stack] = (
                torch.from_numpy(image[frames]).to(device),
                torch.from_numpy(label).to(device),
                first,
            )
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # sync: DALI reads on another stream

    @staticmethod
    def bytes_needed(store: Store, rows: np.ndarray, context: int) -> int:
        """Return the memory that these rows of store.slices take."""
        total = 0
        for (case, plane), (first, last) in _ranges(store, rows).items():
            _, height, width = store.cases[case].slice_geometry(plane).shape
            total += (2 * (last - first + 1) + 2 * context) * height * width
        return total

    def check(self, stacks: set[Stack]) -> None:
        """Do nothing: no file is read during training."""

    def slab(self, stack: Stack, index: int) -> Tensor:
        """Return (F, H, W, 1) uint8 levels on the device, a view."""
        image, _, first = self._stacks[stack]
        return image[index - first : index - first + 1 + 2 * self.context].unsqueeze(-1)

    def label(self, stack: Stack, index: int) -> Tensor:
        """Return (H, W, 1) uint8 on the device, a view."""
        _, label, first = self._stacks[stack]
        return label[index - first].unsqueeze(-1)


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
    possible = device.type == "cuda" and real_backend(data.backend) == "dali"
    if data.residency == "mmap" or (data.residency == "auto" and not possible):
        return MappedSlices(store, data.context)
    if not possible:
        raise InputError("data.residency=gpu needs an NVIDIA GPU and data.backend=dali. Use data.residency=mmap")

    slices = GpuSlices.bytes_needed(store, rows, data.context)
    free = torch.cuda.mem_get_info(device)[0]
    measure = data.residency == "auto" and step_bytes
    step = measure() + queue_bytes(data) if measure else free // 2
    sizes = (
        f"{slices / 1e9:.2f} GB for {len(rows)} slices, {step / 1e9:.2f} GB for a step and its batches, "
        f"{free / 1e9:.2f} GB of GPU memory free"
    )
    if data.residency == "auto" and slices + step > free:
        return MappedSlices(store, data.context, f"mapped files ({sizes})")
    if slices > free:
        raise InputError(f"data.residency=gpu: {sizes}. Use data.residency=mmap, or data.slices=kidney")
    return GpuSlices(store, rows, data.context, device, f"GPU memory ({sizes})")


def queue_bytes(data: DataConfig) -> int:
    """Return the memory of the batches in DALI's queues, of the training and the validation pipeline together.

    Per pixel: float32 and uint8 images and float32 noise for each frame, two uint8 labels.
    """
    frames = 1 + 2 * data.context
    return 2 * (data.prefetch + 2) * data.batch_size * data.size_px[0] * data.size_px[1] * (9 * frames + 2)


def slab_of(volume: np.ndarray, index: int, context: int) -> np.ndarray:
    """Return (1 + 2 * context, H, W) of (N, H, W) around slice `index`.

    A view, except at the ends of the volume, where the first or last slice is repeated.
    """
    low = index - context
    high = index + context + 1
    if low >= 0 and high <= len(volume):
        return volume[low:high]
    return volume[np.clip(np.arange(low, high), 0, len(volume) - 1)]


def _ranges(store: Store, rows: np.ndarray) -> dict[Stack, tuple[int, int]]:
    """Return {stack: (first, last) slice} that holds all of `rows`, which are sorted by stack.

    Slices between two kidneys are included, so that a stack is one block of memory.
    """
    table = store.slices
    ranges = {}
    for part in np.split(rows, np.flatnonzero(np.diff(table.stack[rows])) + 1):
        stack = (int(table.case[part[0]]), PLANE_NAMES[table.plane[part[0]]])
        index = table.index[part]
        ranges[stack] = (int(index.min()), int(index.max()))
    return ranges
