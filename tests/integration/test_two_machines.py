"""Two machines with a launcher each and one file system: network namespaces of this machine, joined by a virtual cable.

Where namespaces are not allowed, both launchers use loopback, and cutting the cable stops all processes of one side,
whose connections then stay open and silent.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launching import ROOT, log_length, rank_pids, same_weights, start_training, train, wait_until
from tests.helpers.slurm_cluster import free_ports
from tests.helpers.small_run import SHORT

pytestmark = pytest.mark.slow(minutes=4)
CORES = [str(core) for core in sorted(os.sched_getaffinity(0))] if hasattr(os, "sched_getaffinity") else ["0"]
TIMEOUT_S = 20  # train.timeout_s
GIVES_UP_S = TIMEOUT_S + 60  # launchers wait up to 30 s before they kill, and the machine may be loaded


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Machine:
    """Processes with the name of the machine in their environment, which outlives their parents."""

    def __init__(self, rank: int, main: str, port: int):
        self.name, self.rank, self.main, self.port = f"kits{rank}_{os.getpid()}", rank, main, port
        self.inside = ["env", f"MACHINE={self.name}"]

    def launch(self, store, run, log, *more, flags=()) -> subprocess.Popen:
        """launch/multinode.yaml with one process on each machine, each on its own core; `flags` for the launcher."""
        core = CORES[self.rank % len(CORES)]
        command = [*self.inside, "taskset", "-c", core, sys.executable, "-m"]
        command += ["accelerate.commands.launch", "--config_file", str(ROOT / "launch" / "multinode.yaml")]
        command += ["--num_processes", "2", "--machine_rank", f"{self.rank}"]
        command += ["--main_process_ip", self.main, "--main_process_port", f"{self.port}", *flags]
        return start_training(store, run, log, command, *more)

    def processes(self) -> list[int]:
        mine, found = f"MACHINE={self.name}\0".encode(), []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended, or is not ours
                found += [int(environ.parent.name)] if mine in environ.read_bytes() else []
        return found

    def signal(self, number: int) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def unplug(self) -> None:
        self.signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let stopped processes continue, after the other machine has given up."""
        self.signal(signal.SIGCONT)

    def plug_in(self) -> None:
        pass

    def remove(self) -> None:
        self.signal(signal.SIGKILL)


class Namespace(Machine):
    def __init__(self, rank: int):
        super().__init__(rank, "10.77.0.1", 29500)
        self.cable = f"k{rank}{os.getpid()}"
        self.inside = [*self.inside, "ip", "netns", "exec", self.name]
        ip("netns", "add", self.name)

    def address(self) -> None:
        ip("-n", self.name, "addr", "add", f"10.77.0.{self.rank + 1}/24", "dev", self.cable)
        ip("-n", self.name, "link", "set", "lo", "up")
        self.plug_in()

    def unplug(self) -> None:
        ip("-n", self.name, "link", "set", self.cable, "down")

    def wake(self) -> None:
        pass

    def plug_in(self) -> None:
        ip("-n", self.name, "link", "set", self.cable, "up")

    def remove(self) -> None:
        super().remove()
        ip("netns", "del", self.name)


@pytest.fixture
def machines():
    if not shutil.which("taskset"):
        pytest.skip("needs `taskset` (util-linux)")
    made: list[Machine] = []
    try:
        try:
            for rank in (0, 1):
                made.append(Namespace(rank))
            a, b = made
            ip("link", "add", a.cable, "netns", a.name, "type", "veth", "peer", "name", b.cable, "netns", b.name)
            a.address()
            b.address()
        except OSError:  # no `ip` here, or not allowed
            (port,) = free_ports(1)
            while made:
                made.pop().remove()
            made += [Machine(rank, "127.0.0.1", port) for rank in (0, 1)]
        yield made
    finally:
        for machine in made:
            machine.remove()


def test_two_machines_train_as_one_and_survive_a_cut_cable(machines, store, uninterrupted, tmp_path):
    run, logs = tmp_path / "run", [tmp_path / "log0", tmp_path / "log1"]
    more = ["train.save_every_steps=3", f"train.timeout_s={TIMEOUT_S}"]
    both = [machine.launch(store, run, log, *more) for machine, log in zip(machines, logs, strict=True)]
    wait_until(lambda: log_length(run) > 8, both[0], logs[0], 300)
    machines[1].unplug()
    assert both[0].wait(GIVES_UP_S) == 1
    machines[1].wake()
    assert both[1].wait(GIVES_UP_S) == 1
    last = (run / "checkpoint" / "last").resolve()
    for rank, log in enumerate(logs):
        said = log.read_text()
        assert said.count(f"rank {rank} of 2 waited for the others in `") == 1
        assert rank or re.search("one of them is gone or silent: (Timed out waiting|Application timeout)", said)
        assert f"The last checkpoint is {last};" in said
    assert not machines[0].processes() and not machines[1].processes()
    assert not (run / "requeue").exists()

    machines[1].plug_in()
    more += ["resume=auto", SHORT]
    both = [machine.launch(store, run, log, *more) for machine, log in zip(machines, logs, strict=True)]
    assert [process.wait(300) for process in both] == [0, 0], logs[0].read_text() + logs[1].read_text()
    assert f"continuing from {last.name}" in logs[0].read_text() and "2 processes x batch 3" in logs[0].read_text()

    assert same_weights(run, uninterrupted(2, max(2, len(CORES))))  # one thread each, as here


def test_machines_without_a_shared_run_folder_are_refused(machines, store, tmp_path):
    """The first machine finds a run to resume, the second finds none."""
    train(store, tmp_path / "run", "optim.epochs=1")
    more = ["optim.epochs=2", "resume=auto", "train.timeout_s=60"]
    logs = [tmp_path / "log0", tmp_path / "log1"]
    runs = [tmp_path / "run", tmp_path / "another"]
    both = [m.launch(store, run, log, *more) for m, run, log in zip(machines, runs, logs, strict=True)]
    assert 0 not in [process.wait(200) for process in both]
    assert logs[0].read_text().count("the checkpoint in run is 0 for rank 1") == 1
    assert not runs[1].exists()


def test_launchers_with_max_restarts_restart_all_ranks(machines, store, tmp_path):
    """The second machine restarts its killed rank; rank 0 exits because it lost that rank, and is restarted, too."""
    run, logs = tmp_path / "run", [tmp_path / "log0", tmp_path / "log1"]
    more = [SHORT, "train.save_every_steps=3", "train.timeout_s=60", "resume=auto"]
    flags = ["--max_restarts", "3"]
    both = [m.launch(store, run, log, *more, flags=flags) for m, log in zip(machines, logs, strict=True)]
    wait_until(lambda: log_length(run) > 4, both[0], logs[0], 300)
    (victim,) = rank_pids(both[1])
    os.kill(victim, signal.SIGKILL)
    assert [process.wait(300) for process in both] == [0, 0], logs[0].read_text() + logs[1].read_text()
    said = logs[0].read_text()
    assert said.count("continuing from step_") == 1 and "finished: 9 epochs done" in said


def test_a_launcher_gives_up_on_a_machine_that_is_not_started(machines, store, tmp_path):
    log = tmp_path / "log"
    first = machines[0].launch(store, tmp_path / "run", log, flags=["--rdzv_conf", "timeout=5"])
    assert first.wait(100) == 1 and "1/2 clients joined" in log.read_text()
