"""Run programs in processes forked from a server that has imported torch already: 0.2 s to their first line, not 10 s.

The processes get the environment, the arguments and the exit codes that a launcher's processes would. What a launcher
itself does (forwarding signals, terminating the other ranks, restarting) is tested with real launchers, in
`tests.helpers.launching`.
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

from tests.helpers import ROOT
from tests.helpers.slurm_cluster import free_ports

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "pytest",  # the main module of this process, which each child imports as well
        "torch._dynamo",
        "kits_dist.train",
        "kits_dist.data.backends.dali",
        "kits_dist.data.backends.cpu",
    ]
)


def cpu_environment() -> dict[str, str]:
    """Return the environment in which a program of this checkout runs without a GPU."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


class Process:
    """A forked process with the part of the `subprocess.Popen` interface that tests use."""

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


def start(log: Path, module: str, *arguments: object, **environment: str) -> Process:
    """Start `python -m module arguments` on the CPU and append its stdout and stderr to `log`."""
    environ = cpu_environment() | environment
    words = [str(argument) for argument in arguments]
    process = _SERVER.Process(target=_run_module, args=(environ, str(log), module, words), name=module)
    process.start()
    return Process(process)


def rank_environments(world: int, local_world: int = 0) -> list[dict[str, str]]:
    """Return the environment variables of each of `world` ranks, which meet at a free port.

    local_world    LOCAL_WORLD_SIZE, which sets the number of threads per process; 0: `world`
    """
    (port,) = free_ports(1)
    shared = {
        "WORLD_SIZE": f"{world}",
        "LOCAL_WORLD_SIZE": f"{local_world or world}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    return [shared | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank % (local_world or world)}"} for rank in range(world)]


def start_ranks(world: int, log: Path, module: str, *arguments: object, local_world: int = 0) -> list[Process]:
    """Start `world` ranks as a launcher would, or one process without a launcher's variables; all append to `log`."""
    environments = rank_environments(world, local_world) if world > 1 else [{}]
    return [start(log, module, *arguments, **environment) for environment in environments]


def run(
    module: str, *arguments: object, world: int = 1, local_world: int = 0, code: int = 0, timeout: float = 300
) -> str:
    """Run a module to its end on `world` ranks and return their output; each must exit with `code`."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        processes = start_ranks(world, log, module, *arguments, local_world=local_world)
        try:
            codes = [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
        output = log.read_text()
    assert codes == [code] * world, f"exit codes {codes}\n{output[-4000:]}"
    return output


def _run_module(environ: dict[str, str], log: str, module: str, arguments: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(ROOT)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    warnings.filterwarnings("ignore", ".*found in sys.modules")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
