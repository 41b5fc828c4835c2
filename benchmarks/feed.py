"""How fast do raw slices come from the store, with nothing done to them? `python -m benchmarks.feed`.

Variants, interleaved: the bare feed (`SliceDataset.batch`: draws, takes views, reads no pixel), the feed with its
pixels copied
into one host batch, and on a GPU that batch brought to the device, from pinned memory and from pageable. Their
ceilings: a copy of as many bytes within the host's memory, and the largest pinned copy to the device. What the disk
gives when the page cache holds nothing of the store is measured before them; after them, how long each loader keeps the
training thread at work for a batch, of which `SliceDataset.batch` is a part.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.lib.harness import (
    Ceiling,
    Variant,
    Windows,
    interleave,
    line,
    median,
    pick_device,
    plain,
    record,
    rounds,
)
from benchmarks.lib.harness import store_or_phantoms as open_store
from kits_dist import cli
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.sampler import train_positions
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils.errors import InputError, JobFailed, MissingPackage

POSTER = AugmentConfig()
LARGE_COPY = 2**28  # bytes: a larger pinned copy is no faster
COLD_BYTES = 2**31  # of the store, at most, read from the disk in a window


@dataclass(frozen=True)
class Args:
    store: str = ""
    """Folder written by kits_dist.prepare; empty: phantoms of 24x512x512, 24 on a GPU, else 10."""
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the window; whole slices are read. 0x0: as the slices."""
    batch_size: int = 128
    """Images a batch."""
    windows: int = 5
    """Timed windows a variant, at least 5."""
    window_s: float = 1.0
    """Seconds a window, roughly."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """A few batches of tiny images: proves that it runs."""

    def __post_init__(self):
        refuse_half_a_size(self.size_px)


class Step(NamedTuple):
    """A way to bring a batch somewhere."""

    run: Callable[[], object]
    images: int  # a step
    nbytes: int  # a step


def main(args: Args) -> None:
    device = pick_device()
    cases, shape = (6, (8, 64, 64)) if args.quick else (24 if device.type == "cuda" else 10, (24, 512, 512))
    warmup_steps, window_s = (1, 0.0) if args.quick else (8, args.window_s)
    with open_store(args.store, cases, shape) as store:
        side = tuple(n // 32 * 32 for n in store.cases[0].shape[1:])
        size_px = args.size_px if all(args.size_px) else side
        batch_size = min(args.batch_size, 4) if args.quick else args.batch_size
        data = DataConfig(store=str(store.path), size_px=size_px, batch_size=batch_size, backend="opencv")
        cold, images, read_bytes = read_cold(store, args.windows)
        dataset = dataset_of(store, data)
        steps = host_steps(dataset, batch_size) | (
            device_steps(dataset, batch_size, device) if device.type == "cuda" else {}
        )
        timed = interleave(
            {name: Variant(step.run) for name, step in steps.items()},
            device,
            windows=args.windows,
            window_s=window_s,
            warmup_steps=warmup_steps,
        )
        at_work = {name: thread_ms(store, data, name, device, args.windows) for name in ("opencv", "dali")}
        common = plain(data) | {"data": store.meta["data"], "slices": len(dataset.rows), "augment": plain(POSTER)}
        common["slice_px"] = list(store.cases[0].shape[1:])
    rates = {name: timed[name].rates(step.images) for name, step in steps.items()}

    def one(name: str, values: list[float], ceiling: Ceiling, nbytes: float, *, answer=False, ratio=None, **more: Any):
        """nbytes: an image's."""
        config = {"variant": name, **common, "device": device.type, "cache": "warm", **more}
        if values and nbytes:
            config["gb_per_s"] = float(f"{median(values)[0] * nbytes / 1e9:.4g}")
        done = line(
            "feed", values, "images/s", ceiling, config, args, warmup_steps=warmup_steps, answer=answer, ratio=ratio
        )
        record(done, args.out)

    disk = Ceiling("none", None, "this is what the disk and its driver give")
    if isinstance(cold, str):
        one("disk", [], disk, 0, cache="cold", failed=cold)
    else:
        one("disk", [images / s for s in cold], disk, read_bytes / images, cache="cold")
    _record_views(one, timed["views"], batch_size)
    for backend, ms in at_work.items():
        none = Ceiling("none", None, "less is better: a step's kernels are started by the same thread")
        failed = {"failed": ms} if isinstance(ms, str) else {}
        config = {"variant": f"thread_{backend}", **common, "backend": backend, "device": device.type, **failed}
        unit = "ms of the training thread a batch"
        record(line("feed", [] if failed else ms, unit, none, config, args, answer=not failed), args.out)
    measured = Ceiling("none", None, "this is the measured limit itself")
    ceilings = {"read": "host_copy", "to_device": "pinned_copy", "pinned": "pinned_copy", "pageable": "pinned_copy"}
    answer = "to_device" if device.type == "cuda" else "read"
    per_image = steps["read"].nbytes / batch_size
    for name in (name for name in steps if name != "views"):
        if name not in ceilings:
            one(name, rates[name], measured, per_image)
            continue
        limit = ceilings[name]
        ratio = median(rounds(rates[name], rates[limit]))[0]
        ceiling = Ceiling(f"{limit} (as many bytes)", median(rates[limit])[0])
        one(name, rates[name], ceiling, per_image, answer=name == answer, ratio=ratio)


def thread_ms(store: Store, data: DataConfig, backend: str, device: torch.device, windows: int) -> list[float] | str:
    """CPU time of the thread that takes batches, for each; or why there is none. Its waits, for pixels that other
    threads or a GPU make, are not in it."""
    where = "cpu" if backend == "opencv" else device
    try:
        stream = iter(build_train_loader(store, replace(data, backend=backend), POSTER, 0, Ranks(), device=where)[0])
        for _ in range(data.prefetch + 2):  # until the queue is full, and its memory allocated
            next(stream)
    except MissingPackage as error:
        return str(error)
    found = []
    for _ in range(windows):
        begin = time.thread_time()
        next(stream)
        found.append(1e3 * (time.thread_time() - begin))
    return found


def refuse_half_a_size(size_px: tuple[int, int]) -> None:
    if any(size_px) != all(size_px):
        raise InputError(f"size_px={size_px[0]}x{size_px[1]}: name both, or none.")


def dataset_of(store: Store, data: DataConfig) -> SliceDataset:
    return build_train_loader(store, data, POSTER, 0, Ranks())[1]


def host_steps(dataset: SliceDataset, batch_size: int) -> dict[str, Step]:
    """{"views", "read", "host_copy"}: `read` copies what `views` names into one batch, `host_copy` as many bytes."""
    steps = itertools.count()
    target, nbytes = _room(dataset, batch_size)
    source = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)

    def views():
        return dataset.batch(train_positions(next(steps), batch_size, 0, 1))

    return {
        "views": Step(views, batch_size, 0),
        "read": Step(lambda: _copy_into(target, views()), batch_size, nbytes),
        "host_copy": Step(lambda: np.copyto(target[:nbytes], source), batch_size, nbytes),
    }


def device_steps(dataset: SliceDataset, batch_size: int, device: torch.device) -> dict[str, Step]:
    """{"to_device", "pinned", "pageable", "pinned_copy"}: from store to device; a ready host batch to the device from
    either kind of memory; and as fast as the link goes."""
    room, nbytes = _room(dataset, batch_size)
    pageable = torch.from_numpy(room)
    pair = itertools.cycle([_Pinned(len(room), device) for _ in range(2)])
    steps = itertools.count()
    there = torch.empty(nbytes, dtype=torch.uint8, device=device)
    pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    large = torch.empty(LARGE_COPY, dtype=torch.uint8, pin_memory=True)
    large_there = torch.empty_like(large, device=device)

    def to_device():
        place = next(pair)
        place.wait()  # sync: the copy of two batches ago may still read this memory
        _copy_into(place.host.numpy(), dataset.batch(train_positions(next(steps), batch_size, 0, 1)))
        place.send(nbytes)

    images = round(LARGE_COPY / nbytes * batch_size)
    return {
        "to_device": Step(to_device, batch_size, nbytes),
        "pinned": Step(lambda: there.copy_(pinned, non_blocking=True), batch_size, nbytes),
        "pageable": Step(lambda: there.copy_(pageable[:nbytes]), batch_size, nbytes),
        "pinned_copy": Step(lambda: large_there.copy_(large, non_blocking=True), images, LARGE_COPY),
    }


class _Pinned:
    """Host memory that a copy to the device may read later."""

    def __init__(self, nbytes: int, device: torch.device):
        self.host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        self.there = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.read = torch.cuda.Event()

    def wait(self) -> None:
        self.read.synchronize()

    def send(self, nbytes: int) -> None:
        self.there[:nbytes].copy_(self.host[:nbytes], non_blocking=True)
        self.read.record()


def _room(dataset: SliceDataset, batch_size: int) -> tuple[np.ndarray, int]:
    """Memory for any batch, and the bytes of the first: slices may differ in size from case to case."""
    largest = max(int(np.prod(case.shape[1:])) for case in dataset.store.cases)
    room = np.zeros(batch_size * largest * (dataset.frames + 1), np.uint8)
    return room, _copy_into(room, dataset.batch(train_positions(0, batch_size, 0, 1)))


def _copy_into(target: np.ndarray, host: Any) -> int:
    """Images, then labels, one after another. Returns their bytes."""
    end = 0
    for piece in itertools.chain(host.slabs, host.labels):
        begin, end = end, end + piece.size
        target[begin:end] = piece.reshape(-1)
    return end


def read_cold(store: Store, windows: int) -> tuple[list[float] | str, int, int]:
    """(seconds of each window, or why there are none; slices and bytes of one): the store's files from the disk."""
    chosen, images, nbytes = [], 0, 0
    for case in store.cases:
        folder = store.path / "axial" / case.case_id
        chosen += [folder / "image.npy", folder / "label.npy"]
        images, nbytes = images + case.shape[0], nbytes + 2 * int(np.prod(case.shape))
        if nbytes > COLD_BYTES:
            break
    try:
        return [_read_all(chosen) for _ in range(windows)], images, nbytes
    except (JobFailed, OSError, AttributeError) as error:  # os has these calls on Linux only
        return str(error), images, nbytes


def _read_all(paths: list[Path]) -> float:
    """Seconds to read all files, after the page cache was asked to forget them. Raises JobFailed when it did not."""
    buffer = bytearray(2**22)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open(path, "rb", buffering=0)) for path in paths]
        for file in opened:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with contextlib.suppress(BlockingIOError):  # nothing there without waiting for the disk: what we want
                if os.preadv(file.fileno(), [buffer], 0, os.RWF_NOWAIT):
                    raise JobFailed("the page cache keeps the store's files: the disk cannot be measured here")
        begin = time.perf_counter()
        for file in opened:
            while file.readinto(buffer):
                pass
        return time.perf_counter() - begin


def _record_views(one: Callable, timed: Windows, batch_size: int) -> None:
    """The bare feed: how long the calling thread is blocked for a batch."""
    blocked_ms, spread_ms = median([1e3 * s / timed.steps for s in timed.seconds])
    none = Ceiling("none", None, "it reads no pixel: only Python and NumPy bound it")
    blocked = {"blocked_ms_per_batch": round(blocked_ms, 3), "blocked_ms_spread": [round(ms, 3) for ms in spread_ms]}
    one("views", timed.rates(batch_size), none, 0, **blocked)
    print(f"  the calling thread is blocked {blocked_ms:.2f} ms for {batch_size} samples in SliceDataset.batch")


if __name__ == "__main__":
    cli.run(main, Args)
