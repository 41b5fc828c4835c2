"""Does a training image cost more than its parts? `python -m benchmarks.core_seconds`.

CPU time an image of one process of the demo (configs/demo.yaml, one thread, as launch/cpu.yaml gives it on two cores):
of the step on one batch repeated, of the loader with nobody training, and of both together, the real thing. Threads and
workers are counted too, and each window begins and ends at rest, so that batches prepared ahead are paid for by who
takes them. The ratio is together / (step + loader): 1 when nothing is lost between them.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.harness import Ceiling, Variant, cpu_seconds, interleave, line, median, plain, record, settle
from benchmarks.lib.harness import store_or_phantoms as open_store
from benchmarks.lib.training import OurStep, Setup, build_ours, with_backend
from kits_dist import cli
from kits_dist.config import Config
from kits_dist.distributed.runtime import start
from kits_dist.utils.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Args:
    store: str = ""
    """A store of kits_dist.prepare; empty: phantoms, 24 of 32x128x128 as the demo's."""
    config: str = ""
    """Yaml of a training; empty: configs/demo.yaml."""
    keys: tuple[str, ...] = ()
    """Further keys, as [data.backend=opencv]."""
    windows: int = 7
    """Timed windows a variant, at least 5."""
    window_s: float = 2.5
    """Seconds a window, roughly."""
    out: str = ""
    """Folder for the lines; empty: benchmarks/results."""
    quick: bool = False
    """A few steps on tiny images: proves that it runs."""


def main(args: Args) -> None:
    if torch.cuda.is_available():
        raise InputError("core_seconds counts CPU time: hide the GPUs, CUDA_VISIBLE_DEVICES= python -m ...")
    cases, shape = (8, (8, 64, 64)) if args.quick else (24, (32, 128, 128))
    warmup, window_s = (1, 0.0) if args.quick else (10, args.window_s)
    tiny = ["data.size_px=64x64", "model.width=2"] if args.quick else []
    with open_store(args.store, cases, shape) as store, tempfile.TemporaryDirectory() as run:
        words = [f"config={args.config or ROOT / 'configs' / 'demo.yaml'}", f"data.store={store.path}", f"run={run}"]
        config = cli.load(Config, [*words, "data.threads=1", *tiny, *args.keys])
        runtime, threads = start(config.train, 1, Path(run), config.seed), torch.get_num_threads()
        torch.set_num_threads(1)
        setup = Setup(runtime, store, config.data, config.augment, config.model, config.optim, config.train)
        step = OurStep(setup, 1 + 2 * config.data.context)
        fixed, whole, alone = (build_ours(one, step) for one in (with_backend(setup, "fixed"), setup, setup))
        uses = {
            "step": Use(lambda: step(next(fixed.batches), False)),
            "loader": Use(lambda: next(alone.batches)),
            "together": Use(lambda: step(next(whole.batches), False)),
        }
        variants = {name: Variant(use.step, use.before, use.after) for name, use in uses.items()}
        timed = interleave(variants, CPU, windows=args.windows, window_s=window_s, warmup_steps=warmup)
        torch.set_num_threads(threads)
        runtime.accelerator.end_training()
    images = {name: timed[name].steps * config.data.batch_size for name in uses}
    cost = {name: [1e3 * s / images[name] for s in use.seconds[-args.windows :]] for name, use in uses.items()}
    common = plain(config.data) | {"precision": runtime.precision.mode, "model": plain(config.model)}
    common |= {"data": store.meta["data"], "augment": plain(config.augment)}
    parts = [a + b for a, b in zip(cost["step"], cost["loader"], strict=True)]
    for name, values in cost.items():
        more: dict[str, Any] = {"variant": name, **common}
        ceiling, options = Ceiling("none", None, "a part of `together`"), {}
        if name == "together":
            ratios = [a / b for a, b in zip(values, parts, strict=True)]
            more["ratio_spread"] = [round(min(ratios), 4), round(max(ratios), 4)]
            ceiling, options = Ceiling("step + loader", median(parts)[0]), {"ratio": median(ratios)[0], "answer": True}
        done = line("core_seconds", values, "core-ms an image", ceiling, more, args, warmup_steps=warmup, **options)
        record(done, args.out)


class Use:
    """Work, and the CPU time of each of its windows, from rest to rest."""

    def __init__(self, step: Callable[[], Any]):
        self.step, self.seconds, self._began = step, [], 0.0

    def before(self) -> None:
        settle()
        self._began = cpu_seconds()

    def after(self) -> None:
        settle()
        self.seconds.append(cpu_seconds() - self._began)


if __name__ == "__main__":
    cli.run(main, Args)
