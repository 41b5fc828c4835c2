"""How many images per second does the data path deliver, with nobody training? `python -m benchmarks.loader`.

A real store (phantoms are made where none is named), read through the operating system's page cache. Variants,
interleaved: DALI on the CPU and OpenCV with one and with all threads, DALI on the GPU where there is one, its slices in
mapped files and in GPU memory, each without augmentation and with the poster's; and their ceiling, the same slices
copied into a batch by one thread and left as they are (benchmarks.feed).
What a U-Net on that GPU consumes, and whether it ever waits: `benchmarks.end_to_end`.
`peers=true` adds albumentations, MONAI and batchgeneratorsv2 with as many workers as there are cores, and how many
times faster ours are; `sheet=FILE.png` shows that all of them make the same pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks import peers
from benchmarks.feed import POSTER, dataset_of, host_steps, refuse_half_a_size
from benchmarks.lib.harness import (
    A_RATIO,
    Ceiling,
    Variant,
    checked,
    interleave,
    line,
    median,
    pick_device,
    plain,
    record,
    rounds,
    settle,
)
from benchmarks.lib.harness import store_or_phantoms as open_store
from benchmarks.peers.sheet import draw_sheet
from kits_dist import cli
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils.errors import InputError, MissingPackage
from kits_dist.utils.parallel import available_cores

STILL = AugmentConfig(rotate_p=0, flip=0, scale_p=0, crop=0, noise_p=0)
CPU_BATCH = 16  # for all ways on the CPU: a batch of 128 at 512x512 takes DALI's one thread over a second


@dataclass(frozen=True)
class Args:
    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms of 256x256, or 512x512 where size_px is larger."""
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the images; 0x0: 512x512 on a GPU, 256x256 without."""
    batch_size: int = 0
    """Images a batch; 0: 128 on a GPU. CPU ways take 16 at most, their pace is the same."""
    devices: tuple[str, ...] = ()
    """Cpu, cuda or both; empty: all that this machine has."""
    peers: tuple[str, ...] = ()
    """Other libraries, of albumentations, monai, batchgenerators; true: all."""
    sheet: str = ""
    """PNG to write: the same slices through every way."""
    windows: int = 5
    """Timed windows a variant, at least 5."""
    window_s: float = 1.5
    """Seconds a window, roughly."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """A few batches of tiny images: proves that it runs."""

    def __post_init__(self):
        refuse_half_a_size(self.size_px)
        here = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        if wrong := [name for name in self.devices if name not in here]:
            raise InputError(f"devices=[{wrong[0]}]: this machine has {' and '.join(here)}. Name those, or none.")


ON_CPU = (torch.device("cpu"), torch.float32)


class Way(NamedTuple):
    """One way from the store to a batch."""

    backend: str
    device: torch.device
    dtype: torch.dtype
    threads: int
    batch_size: int
    changes: AugmentConfig
    residency: str = "mmap"


def main(args: Args) -> None:
    device = pick_device()
    on_gpu = device.type == "cuda"
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (256, 256)
    batch_size = args.batch_size or (4 if args.quick else 128 if on_gpu else CPU_BATCH)
    side = 512 if max(size) > 256 else 256
    cases, shape = (6, (8, 64, 64)) if args.quick else (24, (32, 512, 512)) if on_gpu else (10, (24, side, side))
    warmup_steps, window_s = (1, 0.0) if args.quick else (8, args.window_s)
    names = peers.chosen(args.peers)
    with open_store(args.store, cases, shape) as store:
        data = DataConfig(store=str(store.path), size_px=size, batch_size=batch_size)
        paths = _paths(device, data.batch_size)
        if args.devices:
            paths = {name: path for name, path in paths.items() if path.device.type in args.devices}
        dataset = dataset_of(store, DataConfig(**vars(data) | {"backend": "opencv"}))
        read = host_steps(dataset, data.batch_size)["read"].run
        cpu_batch = min(batch_size, CPU_BATCH)
        # peers before DALI starts threads: their workers are forked
        others, missing = _built({name: partial(_peer, name, dataset, cpu_batch) for name in names})
        ours, absent = _built({name: partial(_batches, store, data, path) for name, path in paths.items()})
        timed = interleave(
            {name: Variant(step, after=settle) for name, step in ({"read": read} | others | ours).items()},
            device,
            windows=args.windows,
            window_s=window_s,
            warmup_steps=warmup_steps,
            lead_in=data.prefetch + 2,  # a pipeline that stood still has its queue full: that is not its pace
        )
        common = plain(data) | {"data": store.meta["data"], "slices": len(dataset.rows), "cache": "warm"}
        common["slice_px"] = list(store.cases[0].shape[1:])
        if args.sheet:
            draw_sheet(args.sheet, store, DataConfig(**vars(data) | {"batch_size": cpu_batch}), names)

    def record_line(name: str, values: list[float], unit: str, ceiling: Ceiling, config: dict[str, Any]) -> None:
        config = {"variant": name, **common, **config}
        answer = name in answers or unit == "times"
        record(line("loader", values, unit, ceiling, config, args, warmup_steps=warmup_steps, answer=answer), args.out)

    ceiling = Ceiling("feed (slices read, nothing done)", median(timed["read"].rates(batch_size))[0])
    our_rates = {name: timed[name].rates(paths[name].batch_size) for name in ours}
    answers = [
        one
        for one in our_rates
        if one.endswith(f"{available_cores()}_poster") or one in ("dali_gpu_poster", "dali_gpu_resident_poster")
    ]
    for name, path in paths.items():
        failed = {"failed": absent[name]} if name in absent else {}
        record_line(name, our_rates.get(name, []), "images/s", ceiling, _described(path) | failed)
    at_work = _described(Way("", *ON_CPU, available_cores(), cpu_batch, POSTER))
    for name, reason in missing.items():
        record_line(name, [], "images/s", ceiling, at_work | {"backend": name, "failed": reason})
    for name in others:
        rates = timed[name].rates(cpu_batch * available_cores())
        peer = at_work | {"backend": name, "version": peers.version_of(name), "choices": peers.PEERS[name].choices}
        record_line(name, rates, "images/s", ceiling, peer)
        for our in answers:
            record_line(f"{our} against {name}", rounds(our_rates[our], rates), "times", A_RATIO, peer)


def _described(path: Way) -> dict[str, Any]:
    """A way's part of a line's config."""
    return {
        "device": path.device.type,
        "backend": path.backend,
        "residency": path.residency,
        "threads": path.threads,
        "batch_size": path.batch_size,
        "dtype": str(path.dtype).removeprefix("torch."),
        "augment": plain(path.changes),
    }


def _paths(device: torch.device, batch_size: int) -> dict[str, Way]:
    every = available_cores()
    paths = {}
    for word, changes in (("still", STILL), ("poster", POSTER)):
        for threads in sorted({1, every}):
            small = min(batch_size, CPU_BATCH)
            paths[f"dali_cpu_{threads}_{word}"] = Way("dali", *ON_CPU, threads, small, changes)
            paths[f"opencv_{threads}_{word}"] = Way("opencv", *ON_CPU, threads, small, changes)
        if device.type == "cuda":
            paths[f"dali_gpu_{word}"] = Way("dali", device, torch.float16, every, batch_size, changes)
            paths[f"dali_gpu_resident_{word}"] = Way("dali", device, torch.float16, every, batch_size, changes, "gpu")
    return paths


def _built(makers: dict[str, Callable[[], Callable]]) -> tuple[dict[str, Callable], dict[str, str]]:
    """{name: step} of all that are installed here, and {name: why not} of the others."""
    steps, missing = {}, {}
    for name, make in makers.items():
        try:
            steps[name] = make()
        except MissingPackage as error:
            missing[name] = str(error)
    return steps, missing


def _batches(store: Store, data: DataConfig, path: Way):
    """Takes the next batch and does nothing with it; on a GPU the kernels that make it end before the window does."""
    settings = ("backend", "threads", "batch_size", "residency")
    changed = replace(data, **{name: getattr(path, name) for name in settings})
    loader, _ = build_train_loader(store, changed, path.changes, 0, Ranks(), device=path.device, dtype=path.dtype)
    stream = checked(iter(loader), f"data.backend={path.backend}")
    return lambda: next(stream)


def _peer(name: str, dataset: SliceDataset, batch_size: int):
    """A step is a batch of each worker: they start together and deliver together."""
    batches = checked(
        peers.stream(peers.build(name, dataset, POSTER), dataset, POSTER, batch_size, workers=available_cores()), name
    )
    return lambda: [next(batches) for _ in range(available_cores())]


if __name__ == "__main__":
    cli.run(main, Args)
