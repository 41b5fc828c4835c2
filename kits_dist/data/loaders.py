"""Build the loaders of a training: store -> samples -> dataset -> backend -> batches on this rank's device."""

from collections.abc import Callable, Iterable

import torch

from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data.backends.cpu import OpenCVLoader
from kits_dist.data.backends.fixed import FixedLoader, source
from kits_dist.data.batch import Batch
from kits_dist.data.dataset import Plan, SliceDataset
from kits_dist.data.sampler import train_positions, val_positions
from kits_dist.data.samples import select
from kits_dist.data.slice_cache import choose
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils.errors import InputError
from kits_dist.utils.parallel import available_cores


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
    """Endless loader from global stream position `start`, and the feed it draws from.

    step_bytes: measures the GPU memory of a training step, for data.residency=auto.
    Raises InputError when one global batch is larger than the epoch.
    """
    samples = select(store, store.splits.select(data.fold)[0], data, near_kidney=True)
    most = len(samples.rows) // ranks.world
    if data.batch_size > most:
        raise InputError(
            f"data.batch_size={data.batch_size} on {ranks.world} processes is larger than the {len(samples.rows)} "
            f"training slices. " + (f"Use {most} or less, or fewer processes." if most else "Use fewer processes.")
        )
    pixels = choose(store, samples.rows, data, torch.device(device), step_bytes)
    dataset = SliceDataset(store, samples, data, augment, seed, store.normalization(data.fold), pixels)
    plan = Plan(lambda step: train_positions(step, data.batch_size, ranks.rank, ranks.world, start), None)
    loader = _build(dataset, plan, data, ranks, device, dtype)
    return FixedLoader(iter(loader)) if data.backend == "fixed" else loader, dataset


def build_val_loader(
    store: Store,
    data: DataConfig,
    case_ids: list[str],
    ranks: Ranks,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Iterable[Batch], SliceDataset]:
    """One pass per `iter` over every slice of `case_ids`, in order, unaugmented; each slice on exactly one rank.

    Always real data: a repeated batch (backend=fixed) would be no validation.
    """
    samples = select(store, case_ids, data, near_kidney=False)
    batches = val_positions(len(samples.rows), data.batch_size, ranks.rank, ranks.world)
    dataset = SliceDataset(store, samples, data, None, 0, store.normalization(data.fold))
    return _build(dataset, Plan(batches.__getitem__, len(batches)), data, ranks, device, dtype), dataset


def _build(
    dataset: SliceDataset, plan: Plan, data: DataConfig, ranks: Ranks, device: torch.device | str, dtype: torch.dtype
) -> Iterable[Batch]:
    if plan.num_batches == 0:
        return ()
    threads = data.threads or max(1, available_cores() // ranks.local_world)
    if source(data.backend) == "opencv":
        return OpenCVLoader(dataset, plan, torch.device(device), threads, data.prefetch, dtype)
    from kits_dist.data.backends.dali import DaliLoader  # an optional package, and seconds to import

    return DaliLoader(dataset, plan, data.batch_size, torch.device(device), threads, data.prefetch, dtype)
