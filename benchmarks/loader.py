"""How many images per second does the data path deliver without training? `python -m benchmarks.loader`.

A real store (phantoms where none is named), read through the operating system's page cache. Timed in turns: DALI on the
CPU and OpenCV with one and with all threads, DALI on the GPU where there is one, its slices in mapped files and in GPU
memory, each without augmentation and with our default; and their ceiling, the same slices copied into a batch by one
thread and left as they are (benchmarks.feed). `benchmarks.end_to_end` says whether a U-Net ever waits for them.

`peers=true` adds albumentations, its successor, MONAI, batchgeneratorsv2 and the poster's own data path with as many
workers as there are cores, and how many times faster ours are at the same operations.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks import peers
from benchmarks.lib.arguments import TimedArgs, check_size
from benchmarks.lib.harness import Candidate, checked, interleave, pick_device, settle
from benchmarks.lib.host_copy import host_steps
from benchmarks.lib.lines import A_RATIO, Ceiling, Recorder, median, rounds
from benchmarks.lib.stores import AUGMENTED, STILL, dataset_of, described, open_store, plain
from kits_dist import cli
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils.errors import InputError, MissingPackage
from kits_dist.utils.limits import available_cores

CPU_BATCH = 16  # of every loader on the CPU: a batch of 128 at 512x512 takes DALI's one thread over a second


@dataclass(frozen=True)
class Args(TimedArgs):
    """Arguments of the program."""

    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms of 256x256, or 512x512 where size_px is larger."""
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the images; 0x0: 512x512 on a GPU, 256x256 without."""
    batch_size: int = 0
    """Images per batch; 0: 128 on a GPU. Loaders on the CPU take 16 at most, their rate is the same."""
    devices: tuple[str, ...] = ()
    """Cpu, cuda or both; empty: all that this machine has."""
    peers: tuple[str, ...] = ()
    """Other libraries, of albumentations, monai, batchgenerators, albumentationsx, and poster; true: all."""
    window_s: float = 1.5
    """Seconds per window, approximately."""

    def __post_init__(self):
        check_size(self.size_px)
        here = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        if wrong := [name for name in self.devices if name not in here]:
            raise InputError(f"devices=[{wrong[0]}]: this machine has {' and '.join(here)}. Name those, or none.")


class LoaderSetting(NamedTuple):
    """How one loader makes its batches."""

    backend: str
    threads: int
    batch_size: int
    changes: AugmentConfig
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    residency: str = "mmap"

    def config(self) -> dict[str, Any]:
        """Return its part of a line's config."""
        return {
            "device": self.device.type,
            "backend": self.backend,
            "residency": self.residency,
            "threads": self.threads,
            "batch_size": self.batch_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "augment": plain(self.changes),
        }


def main(args: Args) -> None:
    """Time our loaders, the peers and the ceiling in turns, and write their lines."""
    device = pick_device()
    size = args.size_px if all(args.size_px) else args.default(gpu=(512, 512), cpu=(256, 256), quick=(64, 64))
    batch_size = args.batch_size or args.default(gpu=128, cpu=CPU_BATCH, quick=4)
    side = 512 if max(size) > 256 else 256
    cases, shape = args.default(gpu=(24, (32, 512, 512)), cpu=(10, (24, side, side)), quick=(6, (8, 64, 64)))
    cpu_batch = min(batch_size, CPU_BATCH)
    names = peers.chosen(args.peers)
    settings = settings_of(device, batch_size, names)
    if args.devices:
        settings = {name: one for name, one in settings.items() if one.device.type in args.devices}
    timing = args.timing(warmup_steps=8)

    with open_store(args.store, cases, shape) as store:
        data = DataConfig(store=str(store.path), size_px=size, batch_size=batch_size)
        dataset = dataset_of(store, data)
        # peers before DALI starts threads: their workers are forked
        others, missing = _built({name: partial(_peer_step, name, dataset, cpu_batch) for name in names})
        ours, absent = _built({name: partial(_our_step, store, data, one) for name, one in settings.items()})
        steps = {"read": host_steps(dataset, batch_size)["read"].run} | others | ours
        timed = interleave(
            {name: Candidate(step, after=settle) for name, step in steps.items()},
            device,
            lead_in=data.prefetch + 2,  # a pipeline that was idle has a full queue, which is not its rate
            **timing,
        )
        common = plain(data) | described(store, dataset)

    recorder = Recorder("loader", args, common, warmup_steps=timing["warmup_steps"])
    ceiling = Ceiling("feed (slices read, nothing done)", median(timed["read"].rates(batch_size))[0])
    rates = {name: timed[name].rates(settings[name].batch_size) for name in ours}
    fastest = (f"{available_cores()}_augmented", "gpu_augmented", "gpu_resident_augmented")
    fastest += tuple(ending.replace("augmented", peer) for ending in fastest for peer in peers.CHANGES)
    answers = [name for name in rates if name.endswith(fastest)]
    for name, one in settings.items():
        failed = {"failed": absent[name]} if name in absent else {}
        recorder.write(name, rates.get(name, []), ceiling, one.config() | failed, answer=name in answers)

    for name in names:
        changes = peers.CHANGES.get(name, AUGMENTED)
        config = LoaderSetting(name, available_cores(), cpu_batch, changes).config()
        if name in missing:
            recorder.write(name, [], ceiling, config | {"failed": missing[name]})
            continue
        theirs = timed[name].rates(cpu_batch * available_cores())
        config |= {"version": peers.version_of(name), "choices": peers.PEERS[name].choices}
        recorder.write(name, theirs, ceiling, config)
        for our in (our for our in answers if settings[our].changes == changes):
            times = rounds(rates[our], theirs)
            recorder.write(f"{our} against {name}", times, A_RATIO, config, unit="times", answer=True)


def settings_of(device: torch.device, batch_size: int, names: Iterable[str] = ()) -> dict[str, LoaderSetting]:
    """Return the settings of our loaders that a device allows, by name; those of a peer's changes if it is in names."""
    found, small = {}, min(batch_size, CPU_BATCH)
    others = {name: changes for name, changes in peers.CHANGES.items() if name in names}
    for word, changes in ({"still": STILL, "augmented": AUGMENTED} | others).items():
        for threads in sorted({1, available_cores()}):
            found[f"dali_cpu_{threads}_{word}"] = LoaderSetting("dali", threads, small, changes)
            found[f"opencv_{threads}_{word}"] = LoaderSetting("opencv", threads, small, changes)
        if device.type == "cuda":
            mapped = LoaderSetting("dali", available_cores(), batch_size, changes, device, torch.float16)
            found[f"dali_gpu_{word}"] = mapped
            found[f"dali_gpu_resident_{word}"] = mapped._replace(residency="gpu")
    return found


def _built(makers: dict[str, Callable[[], Callable]]) -> tuple[dict[str, Callable], dict[str, str]]:
    """Return {name: step} of those that are installed, and {name: why it is missing} of the others."""
    steps, missing = {}, {}
    for name, make in makers.items():
        try:
            steps[name] = make()
        except MissingPackage as error:
            missing[name] = str(error)
    return steps, missing


def _our_step(store: Store, data: DataConfig, one: LoaderSetting) -> Callable[[], Any]:
    """Return what takes the next batch and discards it; on a GPU its kernels end before the window does."""
    keys = ("backend", "threads", "batch_size", "residency")
    data = replace(data, **{key: getattr(one, key) for key in keys})
    loader, _ = build_train_loader(store, data, one.changes, 0, Ranks(), device=one.device, dtype=one.dtype)
    stream = checked(iter(loader), f"data.backend={one.backend}")
    return lambda: next(stream)


def _peer_step(name: str, dataset: SliceDataset, batch_size: int) -> Callable[[], Any]:
    """Return what takes one batch from each worker, since they start and deliver together."""
    changes = peers.CHANGES.get(name, AUGMENTED)
    peer = peers.build(name, dataset, changes)
    with peers.usable(name):  # some import the rest of their package with the first batch, in a worker
        batches = checked(peers.stream(peer, dataset, changes, batch_size, workers=available_cores()), name)
    return lambda: [next(batches) for _ in range(available_cores())]


if __name__ == "__main__":
    cli.run(main, Args)
