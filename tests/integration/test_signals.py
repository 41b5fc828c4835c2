"""Asked to stop, every rank stops at the same step, saved; with resume=auto the run goes on as if nothing had been."""

import os
import signal
import subprocess
import sys

import pytest

from kits_dist.distributed.preemption import StopRequest
from tests.helpers.launching import (
    LAUNCH,
    ROOT,
    SINGLE,
    log_length,
    rank_pids,
    same_weights,
    start_training,
    still_running,
    train,
    wait_until,
)


def test_a_request_that_comes_between_the_meeting_and_the_first_step_is_kept():
    former = signal.getsignal(signal.SIGUSR1)
    with StopRequest() as request:
        assert signal.getsignal(signal.SIGUSR1) is former  # who still waits for the others ends
        request.listen(1, 5)
        assert not request.agreed()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.agreed()
    assert signal.getsignal(signal.SIGUSR1) is former


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_only_a_launched_process_follows_what_started_it():
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


@pytest.mark.slow
def test_one_process_saves_within_an_epoch_and_leaves_with_75(store, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_training(store, run, log, [sys.executable])
    wait_until(lambda: log_length(run) > 12, process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert (run / "requeue").is_file() and "stopped as asked, saved at step" in log.read_text()
    assert "continuing from step_" in train(store, run, "resume=auto", "optim.epochs=9")
    assert not (run / "requeue").exists()
    train(store, tmp_path / "whole", "optim.epochs=9")
    assert same_weights(run, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_to_the_launcher_of_one(store, tmp_path, number):
    """It has no handler, so it ends at once, and hands nothing on."""
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_training(store, run, log, SINGLE)
    wait_until((run / "config.yaml").exists, process, log)  # before the first step
    (child,) = rank_pids(process)
    process.send_signal(number)
    assert process.wait(60) == -number
    wait_until(lambda: not still_running([child]), None, log, 60)
    assert (run / "requeue").is_file() and (run / "checkpoint" / "last").exists(), log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "world"),
    [(signal.SIGTERM, 2), (signal.SIGTERM, 3), (signal.SIGINT, 2), (signal.SIGUSR1, 2), (signal.SIGKILL, 2)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_signal_to_the_launcher_of_several(store, tmp_path, number, world):
    """USR1 and KILL end the launcher at once; its ranks notice, save and go."""
    run, log = tmp_path / "run", tmp_path / "log"
    launch = [*LAUNCH, "--num_processes", str(world)]
    process = start_training(store, run, log, launch)
    wait_until(lambda: log_length(run) > 12, process, log)
    both = rank_pids(process)
    assert len(both) == world
    process.send_signal(number)
    assert process.wait(60) != 0
    wait_until(lambda: not still_running(both), None, log, 60)
    assert (run / "requeue").is_file(), log.read_text()
    if number in (signal.SIGINT, signal.SIGUSR1):  # the same way on as the others
        return
    assert "continuing from step_" in train(store, run, "resume=auto", "optim.epochs=9", world=world)
    train(store, tmp_path / "whole", "optim.epochs=9", world=world)
    assert same_weights(run, tmp_path / "whole")


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others_and_relaunching_goes_on(store, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_training(store, run, log, LAUNCH, "train.save_every_steps=5")
    wait_until(lambda: log_length(run) > 12, process, log)
    both = rank_pids(process)
    os.kill(both[1], signal.SIGKILL)
    assert process.wait(60) != 0
    assert not still_running(both)
    said = train(store, run, "resume=auto", "optim.epochs=9", "train.save_every_steps=5", world=2)
    assert "continuing from step_" in said
