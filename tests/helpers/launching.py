"""Start programs as users do, with real launchers, and observe them from outside."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.helpers import ROOT, fork_server
from tests.helpers.fork_server import cpu_environment
from tests.helpers.small_run import LONG

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SINGLE = [*ACCELERATE, "--config_file", str(ROOT / "launch" / "single.yaml")]
# port 0: any free one, since tests may run at the same time
LAUNCH = [*ACCELERATE, "--config_file", str(ROOT / "launch" / "cpu.yaml"), "--main_process_port", "0"]


def run_program(command: Sequence[str], code: int = 0) -> subprocess.CompletedProcess:
    """Run a command to its end; it must exit with 0 if and only if `code` is 0."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=cpu_environment(), timeout=300)
    assert (done.returncode == 0) == (code == 0), (
        f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done


def start_training(
    store, run: Path, log: Path, launcher: Sequence[str], *more: str, **environment: str
) -> subprocess.Popen:
    """Start a LONG training with a launcher, output to `log`, and return without waiting for it."""
    command = [*launcher, "-m", "kits_dist.train", f"data.store={store.path}", f"run={run}", *LONG, *more]
    with open(log, "w") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=cpu_environment() | environment)


def start_ranks(store, run: Path, log: Path, *more: str, world: int = 2) -> list[fork_server.Process]:
    """Start a LONG training without a launcher: nothing but the ranks themselves ends them."""
    words = [f"data.store={store.path}", f"run={run}", *LONG, *more]
    return fork_server.start_ranks(world, log, "kits_dist.train", *words)


def train(store, run: Path, *more: str, world: int = 1, local_world: int = 0, code: int = 0) -> str:
    """Run a LONG training without a launcher to its end and return the output of all ranks.

    Two runs are bit-equal only with the same number of threads per process, which `local_world` sets.
    """
    words = [f"data.store={store.path}", f"run={run}", *LONG, *more]
    return fork_server.run("kits_dist.train", *words, world=world, local_world=local_world, code=code)


def wait_until(
    condition: Callable[[], object], process, log: Path, timeout: float = 200, every_s: float = 0.02
) -> None:
    """Poll until `condition()` is true; fail with the log when `process` ends or the time is up before that."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process is None or process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(every_s)


def log_length(run: Path) -> int:
    """Count the lines of a run's log: one per step and one per validation."""
    path = run / "log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def rank_pids(launcher: subprocess.Popen) -> list[int]:
    """Return the processes that a launcher started."""
    with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children") as file:
        return [int(child) for child in file.read().split()]


def still_running(pids: Iterable[int]) -> list[int]:
    """Return those of `pids` that exist and are not zombies."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            if Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
                found.append(pid)
    return found


def same_weights(one: Path, other: Path) -> bool:
    """Return whether the last checkpoints of two runs are equal bit by bit."""
    a, b = (load_file(run / "checkpoint" / "last" / "model.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
