"""Build the loaders of a run: store -> samples -> SliceDataset -> backend -> batches on this rank's device."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch

from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data.backends import loader_class
from kits_dist.data.batch import Batch
from kits_dist.data.dataset import BatchPlan, SliceDataset
from kits_dist.data.sampler import train_positions, val_positions
from kits_dist.data.samples import select_samples
from kits_dist.data.slice_cache import choose_residency
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils.errors import InputError


class PeekableLoader:
    """A loader of passes whose first batch can be looked at before the first pass begins."""

    def __init__(self, loader: Iterable[Batch]):
        self._loader = loader
        self._begun: Iterator[Batch] | None = None

    def peek(self) -> Batch | None:
        """Return the first batch, which the first pass yields again; None for an empty pass."""
        begun = iter(self._loader)
        first = next(begun, None)
        if first is not None:
            self._begun = itertools.chain([first], begun)
        return first

    def __iter__(self) -> Iterator[Batch]:
        begun, self._begun = self._begun, None
        return iter(self._loader) if begun is None else begun


def build_train_loader(
    store: Store,
    data: DataConfig,
    augment: AugmentConfig,
    seed: int,
    ranks: Ranks,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    start: int = 0,
    step_bytes: Callable[[], int] | None = None,
) -> tuple[Iterable[Batch], SliceDataset]:
    """Return an endless loader for the training cases of data.fold, and the dataset it reads.

    start        global position in the stream of samples to begin at (see `sampler`)
    step_bytes   measures the GPU memory of one training step, for data.residency=auto

    Raises InputError when the batches of all ranks together are larger than an epoch.
    """
    samples = select_samples(store, store.splits.select(data.fold)[0], data, training=True)
    largest_batch = len(samples.rows) // ranks.world
    if data.batch_size > largest_batch:
        raise InputError(
            f"data.batch_size={data.batch_size} times {ranks.world} processes is more than the {len(samples.rows)} "
            f"training slices. "
            + (f"Use {largest_batch} or less, or fewer processes." if largest_batch else "Use fewer processes.")
        )
    source = choose_residency(store, samples.rows, data, torch.device(device), step_bytes)
    dataset = SliceDataset(
        store,
        samples,
        data,
        augment=augment,
        seed=seed,
        norm=store.normalization(data.fold, data.mask),
        slice_source=source,
    )
    plan = BatchPlan(lambda step: train_positions(step, data.batch_size, ranks.rank, ranks.world, start), None)
    loader = _build(dataset, plan, ranks, device, dtype)
    if data.backend == "fixed":
        batches = iter(loader)  # held until the copies are queued: a backend takes its memory back when it is closed
        loader = itertools.repeat(Batch(*(tensor.clone() for tensor in next(batches))))
    return loader, dataset


def build_val_loader(
    store: Store,
    data: DataConfig,
    case_ids: list[str],
    ranks: Ranks,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[PeekableLoader, SliceDataset]:
    """Return a loader of every slice of `case_ids`, in order and without augmentation, and the dataset it reads.

    Each `iter` is one pass; each slice is on exactly one rank. With data.backend=fixed the batches are still real:
    one repeated batch would validate nothing.
    """
    samples = select_samples(store, case_ids, data, training=False)
    batches = val_positions(len(samples.rows), data.batch_size, ranks.rank, ranks.world)
    dataset = SliceDataset(store, samples, data, augment=None, seed=0, norm=store.normalization(data.fold, data.mask))
    return PeekableLoader(_build(dataset, BatchPlan(batches.__getitem__, len(batches)), ranks, device, dtype)), dataset


def _build(
    dataset: SliceDataset, plan: BatchPlan, ranks: Ranks, device: torch.device | str, dtype: torch.dtype
) -> Iterable[Batch]:
    if plan.num_batches == 0:
        return ()
    threads = dataset.data.threads or ranks.cores
    device = torch.device(device)
    return loader_class(dataset.data.backend, device)(dataset, plan, device, dtype, threads)
