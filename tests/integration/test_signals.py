"""Signals: all ranks stop at the same step and save; resumed, the run ends with the weights of an uninterrupted one."""

import os
import signal
import subprocess
import sys

import pytest

from kits_dist.distributed.preemption import SIGNALS, StopRequest
from tests.helpers import ROOT
from tests.helpers.launching import (
    LAUNCH,
    SINGLE,
    log_length,
    rank_pids,
    same_weights,
    start_ranks,
    start_training,
    still_running,
    train,
    wait_until,
)
from tests.helpers.small_run import SHORT


def test_a_request_between_the_rendezvous_and_the_first_step_is_kept():
    former = signal.getsignal(signal.SIGUSR1)
    with StopRequest() as request:
        assert signal.getsignal(signal.SIGUSR1) is former  # a rank that still waits for the others ends
        request.listen(1, 5)
        assert not request.agreed()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.agreed()
    assert signal.getsignal(signal.SIGUSR1) is former


@pytest.mark.parametrize("number", SIGNALS)
def test_every_way_to_be_told_to_stop_is_a_request(number):
    with StopRequest() as request:
        request.listen(1, 5)
        os.kill(os.getpid(), number)
        assert request.agreed()


def test_no_signal_that_asks_to_end_is_forgotten():
    """Of all signals these are left: faults, those that stop or continue a job, and those that end nothing."""
    names = "ILL TRAP ABRT BUS FPE KILL SEGV PIPE CHLD CONT STOP TSTP TTIN TTOU URG XFSZ WINCH SYS"
    others = {getattr(signal, f"SIG{name}") for name in names.split()}
    assert set(SIGNALS) | others == signal.valid_signals() and not set(SIGNALS) & others


@pytest.mark.parametrize(
    ("number", "handler"),
    [(signal.SIGPROF, lambda number, frame: None), (signal.SIGHUP, signal.SIG_IGN)],
    ids=["profiler", "nohup"],
)
def test_a_signal_that_is_taken_is_left_alone(number, handler):
    former = signal.signal(number, handler)
    try:
        with StopRequest() as request:
            request.listen(1, 5)
            os.kill(os.getpid(), number)
            assert not request.agreed()
    finally:
        signal.signal(number, former)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_only_a_launched_process_ends_with_its_parent():
    script = """if True:
        import ctypes, os
        from kits_dist.distributed.preemption import follow_launcher
        for launched in ({}, {"ACCELERATE_DYNAMO_MODE": "default"}):
            os.environ |= launched
            follow_launcher()
            number = ctypes.c_int()
            ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
            print(number.value, flush=True)
    """
    for orphan, code, printed in ((False, 0, "0\n15\n"), (True, -signal.SIGTERM, "0\n")):
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=ROOT, start_new_session=orphan, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (code, printed), done.stderr


@pytest.mark.slow(minutes=4)
def test_one_process_saves_within_an_epoch_and_leaves_with_75(store, uninterrupted, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    (process,) = start_ranks(store, run, log, world=1)
    wait_until(lambda: log_length(run) > 12, process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert (run / "requeue").is_file() and "stopped as asked, saved at step" in log.read_text()
    assert "continuing from step_" in train(store, run, "resume=auto", SHORT)
    assert not (run / "requeue").exists()
    assert same_weights(run, uninterrupted(1))


@pytest.mark.slow(minutes=4)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_to_the_launcher_of_one_process(store, tmp_path, number):
    """It has no handler, so it ends at once and forwards nothing; its process notices and saves."""
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_training(store, run, log, SINGLE)
    wait_until((run / "config.yaml").exists, process, log)  # before the first step
    (child,) = rank_pids(process)
    process.send_signal(number)
    assert process.wait(60) == -number
    wait_until(lambda: not still_running([child]), None, log, 60)
    assert (run / "requeue").is_file() and (run / "checkpoint" / "last").exists(), log.read_text()


@pytest.mark.slow(minutes=4)
@pytest.mark.parametrize(
    ("number", "world"),
    [
        *[(signal.SIGTERM, 2), (signal.SIGTERM, 3), (signal.SIGINT, 2), (signal.SIGHUP, 2)],
        *[(signal.SIGUSR1, 2), (signal.SIGKILL, 2)],
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_signal_to_the_launcher_of_several(store, uninterrupted, tmp_path, number, world):
    """USR1 and KILL end the launcher at once; its ranks notice, save and exit."""
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_training(store, run, log, [*LAUNCH, "--num_processes", str(world)])
    wait_until(lambda: log_length(run) > 12, process, log)
    ranks = rank_pids(process)
    assert len(ranks) == world
    process.send_signal(number)
    assert process.wait(60) != 0
    wait_until(lambda: not still_running(ranks), None, log, 60)
    assert (run / "requeue").is_file(), log.read_text()
    if number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):  # ranks resume as after the other signals
        return
    assert "continuing from step_" in train(store, run, "resume=auto", SHORT, world=world)
    assert same_weights(run, uninterrupted(world))


@pytest.mark.slow(minutes=4)
def test_a_rank_that_is_killed_ends_the_others_and_the_run_resumes(store, uninterrupted, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_training(store, run, log, LAUNCH, "train.save_every_steps=5")
    wait_until(lambda: log_length(run) > 12, process, log)
    ranks = rank_pids(process)
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait(60) != 0
    assert not still_running(ranks)
    assert "continuing from step_" in train(store, run, "resume=auto", SHORT, "train.save_every_steps=5", world=2)
    assert same_weights(run, uninterrupted(2))
