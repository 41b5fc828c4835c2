"""Does a training image cost more CPU time than its parts? `python -m benchmarks.core_seconds`.

CPU time per image in one process of the demo (configs/demo.yaml, one thread, as launch/cpu.yaml gives it on two cores):
of the step on one batch repeated, of the loader without training, and of both together. Threads and workers count too,
and each window begins and ends idle, so that prefetched batches are paid for by the window that takes them. The ratio
is together / (step + loader): 1 when nothing is lost between them.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.arguments import TimedArgs
from benchmarks.lib.harness import Candidate, cpu_seconds, interleave, settle
from benchmarks.lib.lines import Baseline, Recorder, no_ceiling
from benchmarks.lib.programs import ROOT
from benchmarks.lib.stores import open_store, plain
from benchmarks.lib.training import OurStep, Setup, build_ours, with_backend
from kits_dist import cli
from kits_dist.config import Config
from kits_dist.distributed.runtime import start
from kits_dist.utils.errors import InputError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Args(TimedArgs):
    """Arguments of the program."""

    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 24 of 32x128x128 as in the demo."""
    config: str = ""
    """Yaml file of a training; empty: configs/demo.yaml."""
    keys: tuple[str, ...] = ()
    """Further keys, as [data.backend=opencv]."""
    windows: int = 7
    """Timed windows per candidate, at least 5."""
    window_s: float = 2.5
    """Seconds per window, approximately."""


def main(args: Args) -> None:
    """Time the step, the loader and both together in turns, and write their lines."""
    if torch.cuda.is_available():
        raise InputError("core_seconds counts CPU time: hide the GPUs, CUDA_VISIBLE_DEVICES= python -m ...")
    cases, shape = (8, (8, 64, 64)) if args.quick else (24, (32, 128, 128))
    tiny = ["data.size_px=64x64", "model.width=2"] if args.quick else []
    timing = args.timing(warmup_steps=10)

    with open_store(args.store, cases, shape) as store, tempfile.TemporaryDirectory() as run:
        words = [f"config={args.config or ROOT / 'configs' / 'demo.yaml'}", f"data.store={store.path}", f"run={run}"]
        config = cli.load(Config, [*words, "data.threads=1", *tiny, *args.keys])
        runtime, threads = start(config.train, 1, Path(run), config.seed), torch.get_num_threads()
        torch.set_num_threads(1)
        setup = Setup(runtime, store, config.data, config.augment, config.model, config.optim, config.train)
        step = OurStep(setup, 1 + 2 * config.data.context)
        fixed, whole, alone = (build_ours(one, step) for one in (with_backend(setup, "fixed"), setup, setup))
        meters = {
            "step": CpuMeter(lambda: step(next(fixed.batches), False)),
            "loader": CpuMeter(lambda: next(alone.batches)),
            "together": CpuMeter(lambda: step(next(whole.batches), False)),
        }
        candidates = {name: Candidate(meter.step, meter.before, meter.after) for name, meter in meters.items()}
        timed = interleave(candidates, CPU, **timing)
        torch.set_num_threads(threads)
        runtime.accelerator.end_training()

    cost = {}  # core-ms an image, one value for each window
    for name, meter in meters.items():
        images = timed[name].steps * config.data.batch_size
        cost[name] = [1e3 * s / images for s in meter.seconds[-args.windows :]]
    common = plain(config.data) | {"precision": runtime.precision.mode, "model": plain(config.model)}
    common |= {"data": store.meta["data"], "augment": plain(config.augment)}
    recorder = Recorder("core_seconds", args, common, "core-ms an image", timing["warmup_steps"])
    part = no_ceiling("a part of `together`")
    recorder.write("step", cost["step"], part)
    recorder.write("loader", cost["loader"], part)
    parts = [a + b for a, b in zip(cost["step"], cost["loader"], strict=True)]
    recorder.write("together", cost["together"], Baseline("step + loader", parts), answer=True)


class CpuMeter:
    """Work, and the CPU time of each of its windows from idle to idle."""

    def __init__(self, step: Callable[[], Any]):
        self.step = step
        self.seconds: list[float] = []
        self._began = 0.0

    def before(self) -> None:
        """Start a window."""
        settle()
        self._began = cpu_seconds()

    def after(self) -> None:
        """End it, once threads and workers are idle."""
        settle()
        self.seconds.append(cpu_seconds() - self._began)


if __name__ == "__main__":
    cli.run(main, Args)
