"""Are the defaults of the data path and the step the right ones here? `python -m benchmarks.settings`.

The training step of kits_dist.train on its real loader, once with the defaults and once with each other value of a
setting, interleaved window by window; the answer is each value's pace over that of the defaults. Below 1: the default
is better. Data path and network share the cores, so a setting that makes batches faster may still slow the training.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.end_to_end import Run, measure
from benchmarks.lib.harness import Ceiling, line, median, pick_device, plain, record, rounds
from benchmarks.lib.harness import store_or_phantoms as open_store
from benchmarks.lib.training import OurStep, Setup, build_ours
from kits_dist import cli
from kits_dist.config import AugmentConfig, Config, ModelConfig, OptimConfig
from kits_dist.distributed.runtime import start
from kits_dist.utils.errors import InputError

GROUPS = ("data", "train")


@dataclass(frozen=True)
class Args:
    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 24 of 32x512x512 on a GPU, else 10 of 24x128x128."""
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the images; 0x0: 512x512 on a GPU, 128x128 without."""
    batch_size: int = 0
    """Images a step; 0: 128 on a GPU, 8 without."""
    backend: str = ""
    """As data.backend; empty: dali on a GPU, else opencv."""
    arch: str = ""
    """As model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 12 without."""
    values: tuple[str, ...] = ()
    """Settings to try, as [data.prefetch=4,train.channels_last=false]; empty: the usual."""
    windows: int = 7
    """Timed windows a setting, at least 5."""
    window_s: float = 2.5
    """Seconds a window, roughly."""
    out: str = ""
    """Folder for the lines; empty: benchmarks/results."""
    quick: bool = False
    """A few steps on tiny images: proves that it runs."""


def main(args: Args) -> None:
    on_gpu = pick_device().type == "cuda"
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (128, 128)
    batch_size = args.batch_size or (4 if args.quick else 128 if on_gpu else 8)
    arch = args.arch or ("unet" if on_gpu and not args.quick else "simple_unet")
    backend = args.backend or ("dali" if on_gpu else "opencv")
    cases, shape = (6, (8, 64, 64)) if args.quick else (24, (32, 512, 512)) if on_gpu else (10, (24, 128, 128))
    network = ModelConfig(arch=arch, encoder_weights="none", width=12 if arch == "simple_unet" else 64)
    fixed = [f"data.backend={backend}", f"data.size_px={size[0]}x{size[1]}", f"data.batch_size={batch_size}"]
    tried = args.values or usual(backend)
    with open_store(args.store, cases, shape) as store, tempfile.TemporaryDirectory() as folder:
        fixed += [f"data.store={store.path}", f"run={folder}"]
        configs = {"default": cli.load(Config, fixed)} | {words: changed(words, fixed) for words in tried}
        runs, steps = {}, {}
        for name, config in configs.items():
            runtime = start(config.train, 1, Path(folder), 0)
            setup = Setup(runtime, store, config.data, AugmentConfig(), network, OptimConfig(), config.train)
            if config.train not in steps:  # one network for those that train alike
                steps[config.train] = OurStep(setup)
            runs[name] = Run(build_ours(setup, steps[config.train]), name, batch_size, setup.device)
        warmup, window_s, deepest = (1, 0.0, 0) if args.quick else (10, args.window_s, 6)
        timed = measure(runs, setup.device, args.windows, window_s, warmup, deepest)
    rates = {name: timed[name].rates(batch_size) for name in runs}
    ceiling = Ceiling("the defaults", median(rates["default"])[0])
    common = {"device": setup.device.type, "precision": runtime.precision.mode, "model": plain(network)}
    common |= {"data": store.meta["data"], "cores": os.cpu_count()}
    for name, config in configs.items():
        more = common | {"variant": name, **plain(config.data), "train": plain(config.train)}
        more |= runs[name].findings(timed[name], args.windows)
        if name == "default":
            none = Ceiling("none", None, "what the others are compared with")
            one = line("settings", rates[name], "images/s", none, more, args, warmup_steps=warmup)
        else:
            ratios = rounds(rates[name], rates["default"])
            more["ratio_spread"] = [round(min(ratios), 4), round(max(ratios), 4)]
            best = {"ratio": median(ratios)[0], "answer": True}
            one = line("settings", rates[name], "images/s", ceiling, more, args, warmup_steps=warmup, **best)
        record(one, args.out)


def usual(backend: str) -> tuple[str, ...]:
    """One key changed at a time."""
    cores = os.cpu_count() or 1
    threads = sorted({1, max(1, cores // 2), 2 * cores})  # the default is one a core
    words = [f"data.threads={n}" for n in threads] + [f"data.prefetch={n}" for n in (1, 4)]
    other = {"dali": "opencv", "opencv": "dali"}[backend]
    return (*words, f"data.backend={other}", "train.channels_last=false")


def changed(words: str, fixed: list[str]) -> Config:
    """Raises InputError for a key of another group: the network and the batch stay the same."""
    if words.partition(".")[0] not in GROUPS or words.startswith(("data.size_px", "data.batch_size", "data.store")):
        raise InputError(f"values={words}: settings of data. and train. that leave the batch as it is can be compared.")
    return cli.load(Config, [*fixed, words])


if __name__ == "__main__":
    cli.run(main, Args)
