"""How many images per second does the data path deliver, with nobody training? `python -m benchmarks.loader`.

A real store (phantoms are made where none is named), read through the operating system's page cache. Variants,
interleaved: DALI on the CPU with one and with all threads, DALI on the GPU where there is one, each without
augmentation and with the poster's; and their ceiling, the bare feed (`Feed.batch`: draws, takes views, reads no pixel).
"""

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks.harness import Ceiling, Variant, Windows, interleave, line, median, pick_device, plain, record
from benchmarks.harness import store_or_phantoms as open_store
from kits_dist import cli
from kits_dist.batch import ALONE, Shard
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import build_train_loader
from kits_dist.data.feed import Feed
from kits_dist.data.sampler import train_positions
from kits_dist.data.store import Store
from kits_dist.parallel import cores

POSTER = AugmentConfig()
STILL = AugmentConfig(rotate_p=0, flip=0, scale_p=0, crop=0, noise_p=0)
CPU_BATCH = 16  # a batch of 128 at 512x512 takes one thread over a second
FEED_BATCH = 128  # what the blocked time of the calling thread is stated for


@dataclass(frozen=True)
class Args:
    store: str = (
        ""  # folder written by kits_dist.prepare; empty: phantoms, 24 of 32x512x512 on a GPU, else 10 of 24x256x256
    )
    size_px: tuple[int, int] = (0, 0)  # (height, width) of the images; 0x0: 512x512 on a GPU, 256x256 without
    batch_size: int = 0  # images a batch; 0: 128 on a GPU. DALI on the CPU takes 16 at most, its pace is the same
    devices: tuple[str, ...] = ()  # cpu, cuda or both; empty: all that this machine has
    windows: int = 5  # timed windows a variant, at least 5
    window_s: float = 1.5  # seconds a window, roughly
    out: str = ""  # folder for the line; empty: benchmarks/results
    quick: bool = False  # a few batches of tiny images: proves that it runs


class Way(NamedTuple):
    """One way from the store to a batch."""

    shard: Shard
    threads: int
    batch_size: int
    changes: AugmentConfig


def main(args: Args) -> None:
    device = pick_device()
    on_gpu = device.type == "cuda"
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (256, 256)
    batch_size = args.batch_size or (4 if args.quick else 128 if on_gpu else CPU_BATCH)
    cases, shape = (6, (8, 64, 64)) if args.quick else (24, (32, 512, 512)) if on_gpu else (10, (24, 256, 256))
    warmup_steps, window_s = (1, 0.0) if args.quick else (8, args.window_s)
    with open_store(args.store, cases, shape) as store:
        data = DataConfig(store=str(store.path), size_px=size, batch_size=batch_size)
        paths = _paths(device, data.batch_size)
        if args.devices:
            paths = {name: path for name, path in paths.items() if path.shard.device.type in args.devices}
        feed_step, feed = _feed_step(store, data)
        timed = interleave(
            {"feed": Variant(feed_step)} | {name: Variant(_batches(store, data, path)) for name, path in paths.items()},
            device,
            windows=args.windows,
            window_s=window_s,
            warmup_steps=warmup_steps,
            lead_in=data.prefetch + 2,  # a pipeline that stood still has its queue full: that is not its pace
        )
        common = plain(data) | {"data": store.meta["data"], "slices": len(feed.rows), "cache": "warm"}
        common["slice_px"] = list(store.cases[0].shape[1:])
    ceiling = _record_feed(args, timed["feed"], common, warmup_steps)
    for name, path in paths.items():
        config = {
            "variant": name,
            "device": path.shard.device.type,
            **common,
            "threads": path.threads,
            "batch_size": path.batch_size,
            "dtype": str(path.shard.dtype).removeprefix("torch."),
            "augment": plain(path.changes),
        }
        done = line(
            "loader", timed[name].rates(path.batch_size), "images/s", ceiling, config, args, warmup_steps=warmup_steps
        )
        record(done, args.out)


def _paths(device: torch.device, batch_size: int) -> dict[str, Way]:
    every = cores()
    paths = {}
    for word, changes in (("still", STILL), ("poster", POSTER)):
        for threads in sorted({1, every}):
            paths[f"dali_cpu_{threads}_{word}"] = Way(ALONE, threads, min(batch_size, CPU_BATCH), changes)
        if device.type == "cuda":
            paths[f"dali_gpu_{word}"] = Way(Shard(0, 1, 1, device, torch.float16), every, batch_size, changes)
    return paths


def _batches(store: Store, data: DataConfig, path: Way):
    """Takes the next batch and does nothing with it; on a GPU the kernels that make it end before the window does."""
    changed = DataConfig(**vars(data) | {"threads": path.threads, "batch_size": path.batch_size})
    loader, _ = build_train_loader(store, changed, path.changes, 0, path.shard)
    stream = iter(loader)
    return lambda: next(stream)


def _feed_step(store: Store, data: DataConfig) -> tuple[Any, Feed]:
    _, feed = build_train_loader(store, data, POSTER, 0, ALONE)
    count = itertools.count()
    return (lambda: feed.batch(train_positions(next(count), FEED_BATCH, 0, 1))), feed


def _record_feed(args: Args, timed: Windows, common: dict[str, Any], warmup_steps: int) -> Ceiling:
    """The line of the bare feed, and the ceiling it is to the others."""
    blocked_ms, spread_ms = median([1e3 * s / timed.steps for s in timed.seconds])
    config = {
        "variant": "feed",
        **common,
        "batch_size": FEED_BATCH,
        "augment": plain(POSTER),
        "blocked_ms_per_batch": round(blocked_ms, 3),
        "blocked_ms_spread": [round(ms, 3) for ms in spread_ms],
    }
    none = Ceiling("none", None, "it reads no pixel: only Python and NumPy bound it")
    done = line("loader", timed.rates(FEED_BATCH), "images/s", none, config, args, warmup_steps=warmup_steps)
    record(done, args.out)
    print(f"  the calling thread is blocked {blocked_ms:.2f} ms for {FEED_BATCH} samples in Feed.batch")
    return Ceiling("feed (views only)", done.value)


if __name__ == "__main__":
    cli.run(main, Args)
