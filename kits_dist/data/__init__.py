"""The data's journey: sources -> volume -> audit -> store -> splits -> sampler -> augment -> backend -> Batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kits_dist.batch import Batch, Shard
    from kits_dist.config import AugmentConfig, DataConfig
    from kits_dist.data.feed import Feed
    from kits_dist.data.store import Store


def build_train_loader(
    store: Store,
    data: DataConfig,
    augment: AugmentConfig,
    seed: int,
    shard: Shard,
    start: int = 0,
    step_bytes: Callable[[], int] | None = None,
) -> tuple[Iterable[Batch], Feed]:
    """Endless loader from global stream position `start`, and the feed it draws from.

    step_bytes: measures the GPU memory of a training step, for data.residency=auto.
    Raises InputError when one global batch is larger than the epoch.
    """
    from kits_dist.data.feed import Feed, Plan
    from kits_dist.data.fixed_backend import FixedLoader
    from kits_dist.data.pixels import choose
    from kits_dist.data.sampler import train_positions
    from kits_dist.data.selection import select
    from kits_dist.errors import InputError

    samples = select(store, store.splits.select(data.fold)[0], data, near_kidney=True)
    most = len(samples.rows) // shard.world
    if data.batch_size > most:
        raise InputError(
            f"data.batch_size={data.batch_size} on {shard.world} processes is larger than the {len(samples.rows)} "
            f"training slices. " + (f"Use {most} or less, or fewer processes." if most else "Use fewer processes.")
        )
    pixels = choose(store, samples.rows, data, shard.device, step_bytes)
    feed = Feed(store, samples, data, augment, seed, store.normalization(data.fold), pixels)
    plan = Plan(lambda step: train_positions(step, data.batch_size, shard.rank, shard.world, start), None)
    loader = _build(feed, plan, data, shard)
    return FixedLoader(iter(loader)) if data.backend == "fixed" else loader, feed


def build_val_loader(store: Store, data: DataConfig, case_ids: list[str], shard: Shard) -> tuple[Iterable[Batch], Feed]:
    """One pass per `iter` over every slice of `case_ids`, in order, unaugmented; each slice on exactly one rank.

    Always real data: a repeated batch (backend=fixed) would be no validation.
    """
    from kits_dist.data.feed import Feed, Plan
    from kits_dist.data.sampler import val_positions
    from kits_dist.data.selection import select

    samples = select(store, case_ids, data, near_kidney=False)
    batches = val_positions(len(samples.rows), data.batch_size, shard.rank, shard.world)
    feed = Feed(store, samples, data, None, 0, store.normalization(data.fold))
    return _build(feed, Plan(batches.__getitem__, len(batches)), data, shard), feed


def _build(feed: Feed, plan, data: DataConfig, shard: Shard) -> Iterable[Batch]:
    from kits_dist.data.dali_backend import DaliLoader
    from kits_dist.data.fixed_backend import source
    from kits_dist.data.opencv_backend import OpenCVLoader
    from kits_dist.parallel import cores

    if plan.num_batches == 0:
        return ()
    threads = data.threads or max(1, cores() // shard.local_world)
    if source(data.backend) == "opencv":
        return OpenCVLoader(feed, plan, shard.device, threads, data.prefetch, shard.dtype)
    return DaliLoader(feed, plan, data.batch_size, shard.device, threads, data.prefetch, shard.dtype)
