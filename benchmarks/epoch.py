"""What share of an epoch is not training steps? `python -m benchmarks.epoch`.

`kits_dist.train` with everything that an epoch has (log lines, TensorBoard, validation, panels, a checkpoint that is
written while training continues) against as many bare steps of the same network on the same data path. A ratio of 0.9
means that a tenth of the time goes into something else. That share falls as epochs get longer: name a store of the real
size.

The two take turns inside one training: the trainer asks after each step whether it is to stop, and after the last step
of an epoch that request takes the bare steps before it answers. So an epoch's window begins with the validation and the
checkpoint of the epoch before. Of a checkpoint that takes longer to write than an epoch, the rest is not counted.
"""

import contextlib
import io
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.arguments import NetworkArgs
from benchmarks.lib.harness import MIN_WINDOWS, drain, settle
from benchmarks.lib.lines import Baseline, Recorder, median, no_ceiling, rounds
from benchmarks.lib.stores import dataset_of, described, open_store, plain
from benchmarks.lib.training import Setup, Training, build_ours
from kits_dist import cli
from kits_dist.config import Config, DataConfig, OptimConfig, PrecisionName, TrainConfig
from kits_dist.distributed.preemption import StopRequest
from kits_dist.distributed.runtime import start
from kits_dist.training import loop
from kits_dist.utils.errors import InputError, Preempted

SKIPPED = 1  # epochs at the start: memory, kernels, caches


@dataclass(frozen=True)
class Args(NetworkArgs):
    """Arguments of the program."""

    store: str = ""
    """Folder written by kits_dist.prepare; empty: phantoms, 24 of 32x512x512 on a GPU, else 24x128x128."""
    batch_size: int = 0
    """Images per step; 0: 32 on a GPU, 8 without."""
    precision: PrecisionName = "auto"
    """As train.precision."""
    windows: int = 5
    """Timed epochs, at least 5."""


def main(args: Args) -> None:
    """Train with turns of bare steps, and write the lines of both."""
    if args.windows < MIN_WINDOWS:
        raise InputError(f"windows={args.windows}: a median and a spread need at least {MIN_WINDOWS}.")
    batch_size = args.batch_size or args.default(gpu=32, cpu=8, quick=4)
    cases, shape = args.default(gpu=(24, (32, 512, 512)), cpu=(24, (24, 128, 128)), quick=(8, (12, 64, 64)))
    with open_store(args.store, cases, shape) as store, tempfile.TemporaryDirectory() as folder:
        config = Config(
            run=str(Path(folder) / "run"),
            data=DataConfig(store=str(store.path), size_px=args.image_size(), batch_size=batch_size),
            model=args.network(quick_width=2),
            optim=OptimConfig(epochs=10**6, patience=0),  # `Turns` ends it
            train=TrainConfig(precision=args.precision),
        )
        runtime = start(config.train, 1, Path(folder), 0)
        setup = Setup(runtime, store, config.data, config.augment, config.model, config.optim, config.train)
        dataset = dataset_of(store, config.data)
        turns = Turns(build_ours(setup), len(dataset.rows), setup, args.windows)
        Path(config.run).mkdir()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Preempted):
            loop.train(config, store, turns)
        common = {"device": setup.device.type, "precision": runtime.precision.mode, "model": plain(config.model)}
        common |= {**plain(config.data), "train": plain(config.train), "log": plain(config.log)}
        common |= described(store, dataset)

    recorder = Recorder("epoch", args, common, warmup_steps=turns.warmup_steps)
    recorder.write("bare steps", turns.bare, no_ceiling("it is the ceiling of the epoch"))
    share = 1 - median(rounds(turns.epochs, turns.bare))[0]
    more = {"steps_per_epoch": round(len(dataset.rows) / batch_size, 1), "share_of_other_work": round(share, 4)}
    recorder.write("epoch", turns.epochs, Baseline("bare steps", turns.bare), more, answer=True)


class Turns(StopRequest):
    """Takes as many bare steps after each epoch as the epoch had; keeps both rates, in images/s."""

    def __init__(self, bare: Training, samples: int, setup: Setup, windows: int):
        """Take turns with `bare` in a training of so many `samples` an epoch."""
        super().__init__()
        self.epochs: list[float] = []
        self.bare: list[float] = []
        self.warmup_steps = 0
        self._training, self._samples, self._windows = bare, samples, windows
        self._batch_size, self._device = setup.data.batch_size, setup.device
        self._step = self._first_step = 0
        self._seen = 0  # epochs
        self._began = time.perf_counter()

    def listen(self, world: int, timeout_s: float) -> None:
        """Leave the signals alone: they end a benchmark."""

    def agreed(self) -> bool:
        """Take a turn if an epoch has ended. Returns True when there are enough of them."""
        self._step += 1
        ended = self._step * self._batch_size // self._samples
        if ended == self._seen:
            return False
        steps = self._step - self._first_step
        drain(self._device)
        epoch_s = time.perf_counter() - self._began
        settle()

        began = time.perf_counter()
        for _ in range(steps):
            self._training.step(next(self._training.batches), False)
        drain(self._device)
        bare_s = time.perf_counter() - began
        settle()

        if self._seen >= SKIPPED:
            self.epochs.append(steps * self._batch_size / epoch_s)
            self.bare.append(steps * self._batch_size / bare_s)
        else:
            self.warmup_steps = self._step
        self._seen, self._first_step = ended, self._step
        self._began = time.perf_counter()
        return len(self.epochs) == self._windows


if __name__ == "__main__":
    cli.run(main, Args)
