"""Programs as users start them, with real launchers, and what tests look at from outside."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.helpers import forked
from tests.helpers.forked import ROOT, on_a_cpu

ACCELERATE, TORCHRUN = (
    [sys.executable, "-m", "accelerate.commands.launch"],
    [sys.executable, "-m", "torch.distributed.run"],
)
SINGLE = [*ACCELERATE, "--config_file", str(ROOT / "launch" / "single.yaml")]
LAUNCH = [*ACCELERATE, "--config_file", str(ROOT / "launch" / "cpu.yaml")]
LAUNCH += ["--main_process_port", "0"]  # any free port: tests may run beside each other
SMALL = [
    "data.batch_size=3",
    "data.size_px=64x64",
    "model.arch=simple_unet",
    "model.width=6",
    "optim.lr=1e-2",
    "model.prior=0.5",  # in so few steps a start at 1 % only costs
    "log.every_steps=2",
]
SMALL += ["data.fold=1", "model.regions=[kidney_and_mass,tumor]", "optim.loss=bce_dice", "log.images=2"]
# Bit-equal from run to run, with a line in the log for every step.
EXACT = [*SMALL, "optim.patience=0", "train.deterministic=true", "log.images=0", "log.every_steps=1"]
ARGUMENTS = [*EXACT, "optim.epochs=40"]


def run(command: Sequence[str], code: int = 0) -> subprocess.CompletedProcess:
    """To the end; whether it leaves with 0 must be as `code` says."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=on_a_cpu(), timeout=300)
    assert (done.returncode == 0) == (code == 0), (
        f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done


def begin(store, run: Path, log: Path, launcher: Sequence[str], *more: str) -> subprocess.Popen:
    """A training of 160 steps of one process, or fewer of several, that a launcher started and that goes on."""
    command = [*launcher, "-m", "kits_dist.train", f"data.store={store.path}", f"run={run}", *ARGUMENTS, *more]
    with open(log, "w") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=on_a_cpu())


def train(store, run: Path, *more: str, world: int = 1, local_world: int = 0, code: int = 0) -> str:
    """The same training to its end, without a launcher; what all ranks said. It is bit-equal to another one only with
    as many threads a process: local_world (tests/helpers/forked.py)."""
    words = [f"data.store={store.path}", f"run={run}", *ARGUMENTS, *more]
    return forked.run("kits_dist.train", *words, world=world, local_world=local_world, code=code)


def until(condition: Callable[[], object], process, log: Path, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def lines(run: Path) -> int:
    """Of the log: one a step, and one a validation."""
    path = run / "log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def ranks(process: subprocess.Popen) -> list[int]:
    """The processes that a launcher started."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(child) for child in file.read().split()]


def alive(pids: Iterable[int]) -> list[int]:
    return [
        pid for pid in pids if os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read().split()[2]
    ]


def same_weights(one: Path, other: Path) -> bool:
    """Whether the last checkpoints of two runs are equal bit by bit."""
    a, b = (load_file(run / "checkpoint" / "last" / "model.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
