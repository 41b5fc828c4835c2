"""Programs in processes of their own, forked from one that has torch imported: 0.2 s to their first line, not 10.

They stand where a launcher's processes would, with the same words in their environment and the same exit codes. What a
launcher itself does (hands signals on, ends the others, starts again) is tested with real ones.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from tests.helpers.slurm_cluster import free_ports

ROOT = Path(__file__).resolve().parents[2]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "pytest",  # as this one's main module it is imported by each child, too
        *("torch._dynamo", "kits_dist.train", "kits_dist.data.backends.dali", "kits_dist.data.backends.cpu"),
    ]
)


def on_a_cpu() -> dict[str, str]:
    """The environment of a program of this checkout."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


class Forked:
    """What tests use of subprocess.Popen."""

    def __init__(self, process: multiprocessing.Process):
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(log: Path, module: str, *arguments: object, **environment: str) -> Forked:
    """`python -m module arguments`, on a CPU. What it says is appended to `log`."""
    environ = on_a_cpu() | environment
    words = [str(argument) for argument in arguments]
    process = _SERVER.Process(target=_become, args=(environ, str(log), module, words), name=module)
    process.start()
    return Forked(process)


def places(world: int, local_world: int = 0) -> list[dict[str, str]]:
    """The environment of each of `world` processes at a port that is free; local_world: they believe that so many are
    on this machine, and take as many threads."""
    (port,) = free_ports(1)
    sizes = {"WORLD_SIZE": f"{world}", "LOCAL_WORLD_SIZE": f"{local_world or world}"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    return [{"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} | sizes | meeting for rank in range(world)]


def ranks(world: int, log: Path, module: str, *arguments: object, local_world: int = 0) -> list[Forked]:
    """One process without a launcher, or `world` of them as a launcher would start; all append to `log`."""
    return [start(log, module, *arguments, **place) for place in (places(world, local_world) if world > 1 else [{}])]


def run(
    module: str, *arguments: object, world: int = 1, local_world: int = 0, code: int = 0, seconds: float = 300
) -> str:
    """To the end; returns what all of them said. Each must leave with `code`."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        processes = ranks(world, log, module, *arguments, local_world=local_world)
        try:
            codes = [process.wait(seconds) for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        said = log.read_text()
    assert codes == [code] * world, f"exit {codes}\n{said[-4000:]}"
    return said


def _become(environ: dict[str, str], log: str, module: str, arguments: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(ROOT)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(said, stream)
    warnings.filterwarnings("ignore", ".*found in sys.modules")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
