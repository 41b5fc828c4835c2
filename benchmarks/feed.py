"""How fast do raw slices come from the store, with nothing done to them? `python -m benchmarks.feed`.

Timed in turns: `SliceDataset.batch` alone (draws and views, no pixel is read), the same with its pixels copied into
one host batch, and on a GPU that batch brought to the device from pinned and from pageable memory. Their ceilings: a
copy of as many bytes within the host's memory, and the largest pinned copy to the device. Measured before them: what
the disk gives when the page cache holds nothing of the store. Measured after them: how long each loader occupies the
training thread for a batch, and by how much a thread that starts kernels is delayed while another one makes batches,
because the two share Python's lock.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.arguments import TimedArgs, check_size
from benchmarks.lib.harness import Candidate, Windows, interleave, pick_device
from benchmarks.lib.host_copy import CopyStep, copy_into, host_steps, room_for
from benchmarks.lib.lines import Baseline, Recorder, median, no_ceiling
from benchmarks.lib.stores import AUGMENTED, dataset_of, described, open_store, plain
from kits_dist import cli
from kits_dist.config import DataConfig
from kits_dist.data.backends.stacking import Stacker
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.sampler import train_positions
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils.errors import JobFailed, MissingPackage

LARGE_COPY = 2**28  # bytes: a larger pinned copy is no faster
COLD_BYTES = 2**31  # of the store, at most, read from the disk in a window
CEILINGS = {"read": "host_copy", "to_device": "pinned_copy", "pinned": "pinned_copy", "pageable": "pinned_copy"}


@dataclass(frozen=True)
class Args(TimedArgs):
    """Arguments of the program."""

    store: str = ""
    """Folder written by kits_dist.prepare; empty: phantoms of 24x512x512, 24 on a GPU, else 10."""
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the window; whole slices are read. 0x0: as the slices."""
    batch_size: int = 128
    """Images per batch."""
    window_s: float = 1.0
    """Seconds per window, approximately."""

    def __post_init__(self):
        check_size(self.size_px)


def main(args: Args) -> None:
    """Measure the disk, the copies and the loaders' threads, and write their lines."""
    device = pick_device()
    large = (24, 512, 512)
    cases, shape = args.default(gpu=(24, large), cpu=(10, large), quick=(6, (8, 64, 64)))
    batch_size = min(args.batch_size, 4) if args.quick else args.batch_size
    timing = args.timing(warmup_steps=8)

    with open_store(args.store, cases, shape) as store:
        whole = tuple(n // 32 * 32 for n in store.cases[0].shape[1:])
        size_px = args.size_px if all(args.size_px) else whole
        data = DataConfig(store=str(store.path), size_px=size_px, batch_size=batch_size, backend="opencv")
        cold, images, nbytes = read_cold(store, args.windows)
        dataset = dataset_of(store, data)
        steps = host_steps(dataset, batch_size)
        if device.type == "cuda":
            steps |= _device_steps(dataset, batch_size, device)
        timed = interleave({name: Candidate(step.run) for name, step in steps.items()}, device, **timing)
        thread = {name: _thread_ms(store, data, name, device, args.windows) for name in ("opencv", "dali")}
        delay = [_delay_ms(dataset, batch_size, device, args.window_s) for _ in range(args.windows)]
        common = plain(data) | described(store, dataset) | {"augment": plain(AUGMENTED), "device": device.type}

    recorder = Recorder("feed", args, common, warmup_steps=timing["warmup_steps"])
    from_disk = no_ceiling("this is what the disk and its driver give")
    if isinstance(cold, str):
        recorder.write("disk", [], from_disk, {"cache": "cold", "failed": cold})
    else:
        rates = [images / s for s in cold]
        recorder.write("disk", rates, from_disk, {"cache": "cold", "gb_per_s": _gb_per_s(rates, nbytes / images)})

    _record_views(recorder, timed["views"], batch_size)
    threads = Recorder("feed", args, common, unit="ms of the training thread a batch", warmup_steps=data.prefetch + 2)
    less = no_ceiling("less is better: a step's kernels are started by the same thread")
    for backend, ms in thread.items():
        failed = {"failed": ms} if isinstance(ms, str) else {}
        threads.write(f"thread_{backend}", [] if failed else ms, less, {"backend": backend} | failed, answer=not failed)

    threads.write("launch_delay", delay, no_ceiling("less is better"), {"backend": "dali"}, answer=True)

    answer = "to_device" if device.type == "cuda" else "read"
    rates = {name: timed[name].rates(step.images) for name, step in steps.items() if name != "views"}
    for name, values in rates.items():
        limit = CEILINGS.get(name)
        ceiling = no_ceiling("this is the measured limit itself")
        if limit:
            ceiling = Baseline(f"{limit} (as many bytes)", rates[limit])
        config = {"gb_per_s": _gb_per_s(values, steps["read"].nbytes / batch_size)}
        recorder.write(name, values, ceiling, config, answer=name == answer)


def _gb_per_s(rates: list[float], nbytes: float) -> float:
    """nbytes: of an image."""
    return float(f"{median(rates)[0] * nbytes / 1e9:.4g}")


def _record_views(recorder: Recorder, timed: Windows, batch_size: int) -> None:
    """Write how long the calling thread is blocked for the views of a batch."""
    blocked_ms, spread_ms = median([1e3 * s / timed.steps for s in timed.seconds])
    ceiling = no_ceiling("it reads no pixel: only Python and NumPy bound it")
    blocked = {"blocked_ms_per_batch": round(blocked_ms, 3), "blocked_ms_spread": [round(ms, 3) for ms in spread_ms]}
    recorder.write("views", timed.rates(batch_size), ceiling, blocked)
    print(f"  the calling thread is blocked {blocked_ms:.2f} ms for {batch_size} samples in SliceDataset.batch")


def _thread_ms(store: Store, data: DataConfig, backend: str, device: torch.device, windows: int) -> list[float] | str:
    """Return the CPU time of the thread that takes batches, for each batch; or why there is none.

    Waits for pixels that other threads or a GPU make are not in it.
    """
    device = "cpu" if backend == "opencv" else device
    try:
        stream = iter(
            build_train_loader(store, replace(data, backend=backend), AUGMENTED, 0, Ranks(), device=device)[0]
        )
        for _ in range(data.prefetch + 2):  # until the queue is full and its memory allocated
            next(stream)
    except MissingPackage as error:
        return str(error)
    found = []
    for _ in range(windows):
        begin = time.thread_time()
        next(stream)
        found.append(1e3 * (time.thread_time() - begin))
    return found


def _delay_ms(dataset: SliceDataset, batch_size: int, device: torch.device, window_s: float) -> float:
    """Return by how many ms a batch, made in another thread, delays a thread that calls small operators of PyTorch.

    Each call gives up Python's lock and may have to wait for it, as each start of a kernel does.
    """
    small = torch.zeros(1, device=device)

    def calls_until(done: Callable[[], bool]) -> tuple[int, float]:
        calls, begin = 0, time.perf_counter()
        while not done():
            for _ in range(100):
                small.add_(1)
            calls += 100
        return calls, time.perf_counter() - begin

    end = time.perf_counter() + window_s / 2
    calls, seconds = calls_until(lambda: time.perf_counter() > end)
    seconds_per_call = seconds / calls

    batches, stacker = 8, Stacker(pinned=device.type == "cuda")

    def make_batches():
        for step in range(batches):
            stacker.give_back(stacker.stack(dataset.batch(train_positions(step, batch_size, 0, 1))))

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(make_batches)
        calls, seconds = calls_until(work.done)
    return 1e3 * (seconds - calls * seconds_per_call) / batches


def _device_steps(dataset: SliceDataset, batch_size: int, device: torch.device) -> dict[str, CopyStep]:
    """Return the steps that end on the device.

    "to_device" starts at the store, "pinned" and "pageable" at a host batch in either kind of memory; "pinned_copy" is
    as fast as the link goes.
    """
    room, nbytes = room_for(dataset, batch_size)
    pageable = torch.from_numpy(room)
    buffers = itertools.cycle([_PinnedBuffer(len(room), device) for _ in range(2)])
    steps = itertools.count()
    there = torch.empty(nbytes, dtype=torch.uint8, device=device)
    pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    large = torch.empty(LARGE_COPY, dtype=torch.uint8, pin_memory=True)
    large_there = torch.empty_like(large, device=device)

    def to_device():
        buffer = next(buffers)
        buffer.wait()  # sync: the copy of two batches ago may still read this memory
        copy_into(buffer.host.numpy(), dataset.batch(train_positions(next(steps), batch_size, 0, 1)))
        buffer.send(nbytes)

    images = round(LARGE_COPY / nbytes * batch_size)
    return {
        "to_device": CopyStep(to_device, batch_size, nbytes),
        "pinned": CopyStep(lambda: there.copy_(pinned, non_blocking=True), batch_size, nbytes),
        "pageable": CopyStep(lambda: there.copy_(pageable[:nbytes]), batch_size, nbytes),
        "pinned_copy": CopyStep(lambda: large_there.copy_(large, non_blocking=True), images, LARGE_COPY),
    }


class _PinnedBuffer:
    """Host memory that a copy to the device may still read after `send` has returned."""

    def __init__(self, nbytes: int, device: torch.device):
        self.host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        self.there = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.read = torch.cuda.Event()

    def wait(self) -> None:
        self.read.synchronize()

    def send(self, nbytes: int) -> None:
        self.there[:nbytes].copy_(self.host[:nbytes], non_blocking=True)
        self.read.record()


def read_cold(store: Store, windows: int) -> tuple[list[float] | str, int, int]:
    """Read the store's files from the disk.

    Returns the seconds of each window, or why there are none; and the slices and bytes of a window.
    """
    paths, images, nbytes = [], 0, 0
    for case in store.cases:
        folder = store.path / "axial" / case.case_id
        paths += [folder / "image.npy", folder / "label.npy"]
        images += case.shape[0]
        nbytes += 2 * int(np.prod(case.shape))
        if nbytes > COLD_BYTES:
            break
    try:
        return [_read_all(paths) for _ in range(windows)], images, nbytes
    except (JobFailed, OSError, AttributeError) as error:  # os has these calls on Linux only
        return str(error), images, nbytes


def _read_all(paths: list[Path]) -> float:
    """Return the seconds to read all files from the disk. Raises JobFailed if the page cache does not forget them."""
    buffer = bytearray(2**22)
    with contextlib.ExitStack() as stack:
        opened: list[Any] = [stack.enter_context(open(path, "rb", buffering=0)) for path in paths]
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


if __name__ == "__main__":
    cli.run(main, Args)
