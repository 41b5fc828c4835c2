"""Where the slices of a loader's samples lie: in mapped files, or in a GPU's memory for the whole training."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kits_dist.config import DataConfig
from kits_dist.data.backends.fixed import source
from kits_dist.data.store import PLANE_NAMES, Store
from kits_dist.utils.errors import InputError, JobFailed

Stack = tuple[int, str]  # case, plane


class MappedSlices:
    """Views of the store's mapped files: nothing is read before it is used."""

    device = torch.device("cpu")

    def __init__(self, store: Store, context: int, about: str = "mapped files"):
        """about: for the log."""
        self.store, self.context, self.about = store, context, about

    def check(self, stacks: set[Stack]) -> None:
        """Raises JobFailed when one of their files was cut or removed meanwhile."""
        try:
            self.store.check_files(stacks)
        except InputError as error:
            raise JobFailed(f"the store changed while it was read: {error} Then go on with resume=auto") from error

    def slab(self, stack: Stack, index: int) -> np.ndarray:
        """(F, H, W, 1) uint8 around slice `index`, F = 1 + 2 * context."""
        return slab_of(self.store.image(*stack), index, self.context)[..., None]

    def label(self, stack: Stack, index: int) -> np.ndarray:
        """(H, W, 1) uint8."""
        return self.store.label(*stack)[index][..., None]


class GpuSlices:
    """uint8 images and labels of the chosen slices in device memory, one tensor a stack; samples are views of them.

    End slices are repeated `context` times when a stack is stored, so that every slab is a view: nothing is computed
    here while DALI reads on a stream of its own.
    """

    def __init__(self, store: Store, rows: np.ndarray, context: int, device: torch.device, about: str = ""):
        self.device, self.context, self.about = device, context, about
        self._stacks: dict[Stack, tuple[Tensor, Tensor, int]] = {}  # image with its neighbours, label, first slice
        for stack, (first, last) in _ranges(store, rows).items():
            image, label = store.image(*stack), store.label(*stack)
            frames = np.clip(np.arange(first - context, last + context + 1), 0, len(image) - 1)
            held = (image[frames], np.array(label[first : last + 1]))
            self._stacks[stack] = (*(torch.from_numpy(array).to(device) for array in held), first)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # sync: DALI reads on another stream

    @staticmethod
    def bytes_needed(store: Store, rows: np.ndarray, context: int) -> int:
        total = 0
        for (case, plane), (first, last) in _ranges(store, rows).items():
            _, height, width = store.cases[case].view(plane).shape
            total += (2 * (last - first + 1) + 2 * context) * height * width
        return total

    def check(self, stacks: set[Stack]) -> None:
        """No file is read any more."""

    def slab(self, stack: Stack, index: int) -> Tensor:
        """(F, H, W, 1) uint8 on the device, a view."""
        image, _, first = self._stacks[stack]
        return image[index - first : index - first + 1 + 2 * self.context].unsqueeze(-1)

    def label(self, stack: Stack, index: int) -> Tensor:
        """(H, W, 1) uint8 on the device, a view."""
        _, label, first = self._stacks[stack]
        return label[index - first].unsqueeze(-1)


def choose(
    store: Store,
    rows: np.ndarray,
    data: DataConfig,
    device: torch.device,
    step_bytes: Callable[[], int] | None = None,
) -> MappedSlices | GpuSlices:
    """By data.residency; auto: in the GPU's memory where the slices fit beside the training step and its batches.

    step_bytes: measures the GPU memory that a step takes (`TrainStep.step_bytes`), called only where the answer counts;
    None: half of what is free.
    Raises InputError where data.residency asks for what this machine has not.
    """
    possible = device.type == "cuda" and source(data.backend) == "dali"
    if data.residency == "mmap" or data.residency == "auto" and not possible:
        return MappedSlices(store, data.context)
    if not possible:
        raise InputError("data.residency=gpu needs an NVIDIA GPU and data.backend=dali. Use data.residency=mmap")
    measured = step_bytes() if step_bytes and data.residency == "auto" else None
    needed, free = GpuSlices.bytes_needed(store, rows, data.context), torch.cuda.mem_get_info(device)[0]
    step = free // 2 if measured is None else measured + queue_bytes(data)
    sizes = (
        f"{needed / 1e9:.2f} GB for {len(rows)} slices, {step / 1e9:.2f} GB for a step and its batches, "
        f"{free / 1e9:.2f} GB of GPU memory free"
    )
    if data.residency == "gpu" and needed <= free or needed + step <= free:
        return GpuSlices(store, rows, data.context, device, f"GPU memory ({sizes})")
    if data.residency == "auto":
        return MappedSlices(store, data.context, f"mapped files ({sizes})")
    raise InputError(f"data.residency=gpu: {sizes}. Use data.residency=mmap, or data.slices=kidney")


def queue_bytes(data: DataConfig) -> int:
    """Of the batches that DALI holds at a time, for training and for validation, whose pipelines live side by side.

    Of each: float32 and uint8 images and their normals, two uint8 labels.
    """
    frames = 1 + 2 * data.context
    return 2 * (data.prefetch + 2) * data.batch_size * data.size_px[0] * data.size_px[1] * (9 * frames + 2)


def slab_of(volume: np.ndarray, index: int, context: int) -> np.ndarray:
    """(N, H, W) -> (1 + 2 * context, H, W) around `index`; a view, except where end slices repeat beyond the volume."""
    low, high = index - context, index + context + 1
    if low >= 0 and high <= len(volume):
        return volume[low:high]
    return volume[np.clip(np.arange(low, high), 0, len(volume) - 1)]


def _ranges(store: Store, rows: np.ndarray) -> dict[Stack, tuple[int, int]]:
    """{stack: (first, last) slice} that holds all of `rows`; what lies between two kidneys is held too."""
    table = store.slices
    stacks, one, number = np.unique(table.stack[rows], return_index=True, return_inverse=True)
    first, last = np.full(len(stacks), 2**31 - 1), np.full(len(stacks), -1)
    np.minimum.at(first, number, table.index[rows])
    np.maximum.at(last, number, table.index[rows])
    names = zip(table.case[rows][one].tolist(), table.plane[rows][one].tolist(), strict=True)
    ends = zip(first.tolist(), last.tolist(), strict=True)
    return {(case, PLANE_NAMES[plane]): pair for (case, plane), pair in zip(names, ends, strict=True)}
