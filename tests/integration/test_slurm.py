"""launch/slurm.sh on a real SLURM: jobs finish, are requeued when preempted, and stay cancelled when cancelled."""

import os
import re
import signal
import subprocess
import time

import pytest

from tests.helpers.launching import ROOT, log_length, same_weights, train
from tests.helpers.slurm_cluster import Cluster, NoCluster, cluster
from tests.helpers.small_run import EXACT

SCRIPT = str(ROOT / "launch" / "slurm.sh")
ARGUMENTS = [*EXACT, "optim.epochs=12", "train.timeout_s=120"]


@pytest.mark.parametrize(
    ("job", "arguments", "folder", "words"),
    [
        ("", ["data.store=s", "run=r"], ROOT, "must be started by sbatch. Example: sbatch --nodes=2"),
        ("7", ["data.store=s"], ROOT, "run= is missing: name the folder of this run. Example: sbatch"),
        ("7", ["data.store=s", "run="], ROOT, "run= is missing"),
        ("7", ["data.store=s", "run=r"], ROOT / "tests", "tests is not the checkout: cd there first. Example"),
    ],
)
def test_wrong_arguments_are_refused(job, arguments, folder, words):
    environment = os.environ | {"SLURM_JOB_ID": job}
    done = subprocess.run(
        ["bash", SCRIPT, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.startswith("slurm.sh: ") and words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("asked", "code", "file", "state", "again"),
    [
        (True, 138, False, "RUNNING", True),  # before the program listens to signals: it ends, nothing is lost
        (True, 75, True, "RUNNING", True),
        (False, 75, True, "RUNNING", True),  # SLURM's own TERM went to the step alone
        (True, 0, False, "RUNNING", False),
        (True, 2, False, "RUNNING", False),
        (False, 1, False, "RUNNING", False),
        (False, 75, True, "CANCELLED", False),
        (True, 75, True, "", True),  # a controller that does not answer keeps nobody from saving
    ],
)
def test_when_a_job_is_requeued(tmp_path, asked, code, file, state, again):
    """Scripts stand in for the commands of SLURM; the step ends with `code`, after USR1 or by itself."""
    run, programs = tmp_path / "run", tmp_path / "bin"
    step = [f"{'touch' if file else 'true'} {run}/requeue", f"exit {code}"]
    step = [f"trap '{'; '.join(step)}' USR1", "while :; do sleep 0.1; done"] if asked else step
    content = {
        "srun": "\n".join([step[0], f"touch {tmp_path}/begun", step[1]]),
        "squeue": f"echo {state}" if state else "exit 1",
        "scontrol": f"echo $* >{tmp_path}/asked_for",
    }
    run.mkdir()
    programs.mkdir()
    for name, lines_of_it in content.items():
        (programs / name).write_text(f"#!/bin/sh\n{lines_of_it}\n")
        (programs / name).chmod(0o755)
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "1"}
    environment |= {"SLURM_JOB_NODELIST": "n1", "PATH": f"{programs}:{os.environ['PATH']}"}
    command = ["bash", SCRIPT, "data.store=s", f"run={run}"]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if asked:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == code
    assert (tmp_path / "asked_for").exists() == again == ("back into the queue" in process.stdout.read())
    assert not again or (tmp_path / "asked_for").read_text() == "requeue 7\n"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    try:
        with cluster(tmp_path_factory.mktemp("slurm")) as here:
            yield here
    except NoCluster as reason:
        pytest.skip(str(reason))


def submit(slurm: Cluster, store, run, nodes: int) -> str:
    command = ["sbatch", "--parsable", f"--nodes={nodes}", f"--output={run}.log", f"--chdir={ROOT}", SCRIPT]
    return slurm.ask(*command, *ARGUMENTS, f"data.store={store.path}", f"run={run}", PYTHONPATH=str(ROOT))


def wait(slurm: Cluster, job: str, run, condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        log = run.with_suffix(".log")
        said = log.read_text(errors="replace")[-4000:] if log.exists() else "no log"
        assert time.monotonic() < deadline, f"{slurm.state(job)}: {said}"
        assert slurm.state(job) in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), said
        time.sleep(0.3)


def end(slurm: Cluster, job: str, run, seconds: float = 600) -> str:
    """Wait for the end of a job and return its log."""
    deadline = time.monotonic() + seconds
    while slurm.state(job) in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
        assert time.monotonic() < deadline, run.with_suffix(".log").read_text(errors="replace")[-4000:]
        time.sleep(0.5)
    return run.with_suffix(".log").read_text(errors="replace")


def time_is_up(slurm: Cluster, job: str) -> None:
    """Send what SLURM sends 120 s before the time limit, to the batch script alone."""
    slurm.ask("scancel", "--batch", "--signal=USR1", job)


def preempt(slurm: Cluster, job: str) -> None:
    """Submit a job of higher priority that needs every node, so that SLURM preempts `job`."""
    urgent = slurm.ask(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1"
    )
    deadline = time.monotonic() + 60
    while "PreemptTime=None" in slurm.ask("scontrol", "show", "job", job):
        assert time.monotonic() < deadline, slurm.state(urgent)
        time.sleep(0.3)


@pytest.mark.slow(minutes=3)
@pytest.mark.parametrize(("nodes", "disturb"), [(1, time_is_up), (2, preempt)], ids=["time_is_up", "preempted"])
def test_a_stopped_job_saves_is_requeued_and_ends_with_the_weights_of_an_uninterrupted_run(
    slurm, store, tmp_path, nodes, disturb
):
    """One node runs one process without a launcher; of two nodes, each runs a launcher."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    job = submit(slurm, store, run, nodes)
    wait(slurm, job, run, lambda: log_length(run) > 0)  # early: SLURM needs some seconds to preempt
    disturb(slurm, job)
    wait(slurm, job, run, lambda: "slurm.sh: back into the queue" in run.with_suffix(".log").read_text())
    said = end(slurm, job, run)
    assert slurm.state(job) == "COMPLETED", said[-4000:]
    saved = int(re.search(r"stopped as asked, saved at step (\d+)", said).group(1))
    assert f"start 1, {nodes} nodes x 1 processes" in said and f"continuing from step_{saved:08d}" in said
    # a launcher that USR1 kills leaves orphans, which save here, but are ended at once where SLURM uses control groups
    assert "User defined signal" not in said
    assert said.count("stopped as asked") == 1 and "finished: 12 epochs done" in said
    assert "ExitCode=0:0" in slurm.ask("scontrol", "show", "job", job)
    assert not (run / "requeue").exists()
    train(store, whole, *ARGUMENTS, world=nodes, local_world=1)
    assert same_weights(run, whole)


@pytest.mark.slow(minutes=3)
def test_a_cancelled_job_saves_and_is_not_requeued(slurm, store, tmp_path):
    run = tmp_path / "run"
    job = submit(slurm, store, run, 2)
    wait(slurm, job, run, lambda: log_length(run) > 3)
    slurm.ask("scancel", job)
    said = end(slurm, job, run)
    assert slurm.state(job) == "CANCELLED" and "stopped as asked, saved at step" in said
    assert (run / "requeue").exists() and "back into the queue" not in said
    time.sleep(8)  # a job that goes back waits for SLURM's cred_expire, 5 s here
    assert slurm.state(job) == "CANCELLED"


@pytest.mark.slow(minutes=3)
def test_a_failed_job_is_not_requeued(slurm, store, tmp_path):
    """A `requeue` file from an earlier start does not send it into a loop."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "requeue").write_text("")
    command = ["sbatch", "--parsable", f"--output={run}.log", f"--chdir={ROOT}", SCRIPT, f"run={run}"]
    job = slurm.ask(*command, f"data.store={tmp_path / 'nowhere'}", PYTHONPATH=str(ROOT))
    said = end(slurm, job, run)
    assert slurm.state(job) == "FAILED" and "ExitCode=2:0" in slurm.ask("scontrol", "show", "job", job)
    assert said.count("no store.json there") == 1 and "start 1" not in said
