"""Two machines: network namespaces of this one, a cable between them, a launcher on each, one shared file system."""

import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.test_end_to_end import LAUNCH, ROOT
from tests.test_signals import begin, lines, ranks, until, weights

pytestmark = pytest.mark.slow
MAIN = "10.77.0.1"
CORES = [str(core) for core in sorted(os.sched_getaffinity(0))] if hasattr(os, "sched_getaffinity") else ["0"]


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Machine:
    def __init__(self, name: str, rank: int, address: str):
        self.name, self.rank, self.cable = name, rank, f"k{rank}{os.getpid()}"
        ip("netns", "add", name)
        self.address = address

    def plug_in(self) -> None:
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", self.cable)
        for device in ("lo", self.cable):
            ip("-n", self.name, "link", "set", device, "up")

    def launch(self, store, run, log, *more, flags=()) -> subprocess.Popen:
        """launch/multinode.yaml with one process on each machine, each on its own core; `flags` for the launcher."""
        core = CORES[self.rank % len(CORES)]
        command = ["ip", "netns", "exec", self.name, "taskset", "-c", core, sys.executable, "-m"]
        command += ["accelerate.commands.launch", "--config_file", str(ROOT / "launch" / "multinode.yaml")]
        command += ["--num_processes", "2", "--machine_rank", f"{self.rank}", "--main_process_ip", MAIN, *flags]
        return begin(store, run, log, command, *more)

    def processes(self) -> list[int]:
        said = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, timeout=60)
        return [int(pid) for pid in said.stdout.split()]

    def remove(self) -> None:
        for pid in self.processes():
            os.kill(pid, 9)
        ip("netns", "del", self.name)


@pytest.fixture
def machines():
    if not shutil.which("ip") or not shutil.which("taskset"):
        pytest.skip("needs `ip` (iproute2) and `taskset` (util-linux)")
    made = []
    try:
        try:
            for rank, address in enumerate((MAIN, "10.77.0.2")):
                made.append(Machine(f"kits{rank}_{os.getpid()}", rank, address))
            a, b = made
            ip("link", "add", a.cable, "netns", a.name, "type", "veth", "peer", "name", b.cable, "netns", b.name)
            for machine in made:
                machine.plug_in()
        except OSError as error:
            pytest.skip(f"network namespaces are not allowed here ({error})")
        yield made
    finally:
        for machine in made:
            machine.remove()


def test_two_machines_train_as_one_and_survive_a_cut_cable(machines, store, tmp_path):
    run, logs = tmp_path / "run", [tmp_path / "log0", tmp_path / "log1"]
    more = ["train.save_every_steps=3", "train.timeout_s=30"]
    both = [machine.launch(store, run, log, *more) for machine, log in zip(machines, logs, strict=True)]
    until(lambda: lines(run) > 8, both[0], logs[0], 300)
    ip("-n", machines[0].name, "link", "set", machines[0].cable, "down")
    assert [process.wait(150) for process in both] == [1, 1]
    last = (run / "checkpoint" / "last").resolve()
    for rank, log in enumerate(logs):
        said = log.read_text()
        assert said.count(f"rank {rank} of 2 waited for the others in `") == 1
        assert re.search("one of them is gone or silent: (Timed out waiting|Application timeout)", said)
        assert f"The last checkpoint is {last};" in said
    assert not machines[0].processes() and not machines[1].processes()
    assert not (run / "requeue").exists()

    ip("-n", machines[0].name, "link", "set", machines[0].cable, "up")
    more += ["resume=auto", "optim.epochs=9"]
    both = [machine.launch(store, run, log, *more) for machine, log in zip(machines, logs, strict=True)]
    assert [process.wait(300) for process in both] == [0, 0], logs[0].read_text() + logs[1].read_text()
    assert f"continuing from {last.name}" in logs[0].read_text() and "2 processes x batch 3" in logs[0].read_text()

    one = ["taskset", "-c", ",".join(CORES[:2]), *LAUNCH]  # as many threads per process
    whole = tmp_path / "whole"
    assert begin(store, whole, tmp_path / "log", one, *more).wait(300) == 0
    a, b = weights(run), weights(whole)
    assert all(np.array_equal(a[key], b[key]) for key in a)


def test_machines_that_do_not_share_the_run_folder_are_refused(machines, store, tmp_path):
    """The first has a run to go on with, the second finds nothing."""
    log, more = tmp_path / "log", ["optim.epochs=1", "resume=auto", "train.timeout_s=60"]
    assert begin(store, tmp_path / "run", log, [sys.executable], *more).wait(200) == 0
    more = [*more, "optim.epochs=2"]
    logs = [tmp_path / "log0", tmp_path / "log1"]
    runs = [tmp_path / "run", tmp_path / "another"]
    both = [m.launch(store, run, log, *more) for m, run, log in zip(machines, runs, logs, strict=True)]
    assert 0 not in [process.wait(200) for process in both]
    assert logs[0].read_text().count("the checkpoint in run is 0 for rank 1") == 1
    assert not runs[1].exists()


def test_launchers_with_max_restarts_start_all_ranks_again(machines, store, tmp_path):
    """The second machine's launcher sees its rank die; the first one's rank 0 leaves for that, and both meet again."""
    run, logs = tmp_path / "run", [tmp_path / "log0", tmp_path / "log1"]
    more = ["optim.epochs=12", "train.save_every_steps=3", "train.timeout_s=60", "resume=auto"]
    flags = ["--max_restarts", "3"]
    both = [m.launch(store, run, log, *more, flags=flags) for m, log in zip(machines, logs, strict=True)]
    until(lambda: lines(run) > 4, both[0], logs[0], 300)
    (victim,) = ranks(both[1])
    os.kill(victim, signal.SIGKILL)
    assert [process.wait(300) for process in both] == [0, 0], logs[0].read_text() + logs[1].read_text()
    said = logs[0].read_text()
    assert said.count("continuing from step_") == 1 and "finished: 12 epochs done" in said


def test_a_machine_that_is_not_started_ends_the_wait_of_the_first(machines, store, tmp_path):
    log = tmp_path / "log"
    first = machines[0].launch(store, tmp_path / "run", log, flags=["--rdzv_conf", "timeout=5"])
    assert first.wait(100) == 1 and "1/2 clients joined" in log.read_text()
