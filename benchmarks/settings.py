"""Are the defaults of the data path and the step the right ones here? `python -m benchmarks.settings`.

The training step of kits_dist.train with its real loader, once with the defaults and once with each other value of a
setting, window by window in turns; the answer is the rate of each value relative to that of the defaults. Below 1: the
default is better. Data path and network share the cores, so a setting that makes batches faster may slow the training.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.arguments import StepArgs
from benchmarks.lib.lines import Baseline, Recorder, no_ceiling
from benchmarks.lib.stores import open_store, plain
from benchmarks.lib.timed_training import TimedTraining, time_trainings
from benchmarks.lib.training import OurStep, Setup, build_ours
from kits_dist import cli
from kits_dist.config import AugmentConfig, Config, OptimConfig
from kits_dist.distributed.runtime import start
from kits_dist.utils.errors import InputError

GROUPS = ("data", "train")
DEEPEST_PREFETCH = 4


@dataclass(frozen=True)
class Args(StepArgs):
    """Arguments of the program."""

    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 24 of 32x512x512 on a GPU, else 10 of 24x128x128."""
    backend: str = ""
    """As data.backend; empty: dali on a GPU, else opencv."""
    values: tuple[str, ...] = ()
    """Settings to try, as [data.prefetch=4,train.channels_last=false]; empty: the usual ones."""
    windows: int = 7
    """Timed windows per setting, at least 5."""
    window_s: float = 2.5
    """Seconds per window, approximately."""


def main(args: Args) -> None:
    """Time all settings in turns, and write their lines."""
    size, network = args.image_size(), args.network()
    batch_size = args.batch_size or args.default(gpu=128, cpu=8, quick=4)
    backend = args.backend or args.default(gpu="dali", cpu="opencv", quick="opencv")
    cases, shape = args.default(gpu=(24, (32, 512, 512)), cpu=(10, (24, 128, 128)), quick=(6, (8, 64, 64)))
    fixed = [f"data.backend={backend}", f"data.size_px={size[0]}x{size[1]}", f"data.batch_size={batch_size}"]
    timing = args.timing(warmup_steps=10)

    with open_store(args.store, cases, shape) as store, tempfile.TemporaryDirectory() as folder:
        fixed += [f"data.store={store.path}", f"run={folder}"]
        configs = {"default": cli.load(Config, fixed)}
        configs |= {setting: changed(setting, fixed) for setting in args.values or usual(backend)}
        runs, steps = {}, {}
        for name, config in configs.items():
            runtime = start(config.train, 1, Path(folder), 0)
            setup = Setup(runtime, store, config.data, AugmentConfig(), network, OptimConfig(), config.train)
            if config.train not in steps:  # one network for those that train alike
                steps[config.train] = OurStep(setup)
            runs[name] = TimedTraining(build_ours(setup, steps[config.train]), name, batch_size, setup.device)
        timed = time_trainings(runs, setup.device, timing, 0 if args.quick else DEEPEST_PREFETCH + 2)

    common = {"device": setup.device.type, "precision": runtime.precision.mode, "model": plain(network)}
    common |= {"data": store.meta["data"], "cores": os.cpu_count()}
    recorder = Recorder("settings", args, common, warmup_steps=timing["warmup_steps"])
    rates = {name: timed[name].rates(batch_size) for name in runs}
    for name, config in configs.items():
        ceiling = Baseline("the defaults", rates["default"])
        if name == "default":
            ceiling = no_ceiling("the others are compared with it")
        more = plain(config.data) | {"train": plain(config.train)} | runs[name].summary(timed[name])
        recorder.write(name, rates[name], ceiling, more, answer=name != "default")


def usual(backend: str) -> tuple[str, ...]:
    """Return the settings to try, one changed key in each."""
    cores = os.cpu_count() or 1
    threads = sorted({1, max(1, cores // 2), 2 * cores})  # the default is one a core
    other = {"dali": "opencv", "opencv": "dali"}[backend]
    return (
        *(f"data.threads={n}" for n in threads),
        *(f"data.prefetch={n}" for n in (1, DEEPEST_PREFETCH)),
        f"data.backend={other}",
        "train.channels_last=false",
    )


def changed(setting: str, fixed: list[str]) -> Config:
    """Return the configuration with a setting. Raises InputError for one that changes the network or the batch."""
    if setting.partition(".")[0] not in GROUPS or setting.startswith(("data.size_px", "data.batch_size", "data.store")):
        raise InputError(f"values={setting}: compare settings of data. and train. that leave the batch as it is.")
    return cli.load(Config, [*fixed, setting])


if __name__ == "__main__":
    cli.run(main, Args)
