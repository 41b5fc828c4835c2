"""A rank that never starts, falls silent or is killed: the others say so, in time and once, and relaunching goes on."""

import os
import re
import signal
import time

import pytest

from tests.helpers import fork_server
from tests.helpers.launching import (
    LAUNCH,
    LONG,
    log_length,
    rank_pids,
    same_weights,
    start_training,
    still_running,
    train,
    wait_until,
)

pytestmark = pytest.mark.slow  # several launches each


def by_hand(store, run, place: dict[str, str], *more) -> fork_server.Process:
    """A rank without a launcher, so that nobody ends it but itself. Says it in RUN.RANK."""
    words = [f"data.store={store.path}", f"run={run}", *LONG, *more]
    return fork_server.start(run.with_suffix(f".{place['RANK']}"), "kits_dist.train", *words, **place)


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_for_a_rank_that_never_starts(store, tmp_path, rank):
    run, place = tmp_path / "run", fork_server.rank_environments(2)[rank]
    port = place["MASTER_PORT"]
    assert by_hand(store, run, place, "train.timeout_s=5").wait(120) == 1
    said = (tmp_path / f"run.{rank}").read_text()
    if rank == 0:
        assert f"1 of 2 processes joined at 127.0.0.1:{port} within train.timeout_s=5" in said
        assert "Missing: rank 1." in said
    else:
        assert f"[rank 1] kits_dist.train: rank 1 of 2 found nobody at 127.0.0.1:{port} within" in said
    assert "Traceback" not in said and not run.exists()


def test_a_killed_rank_is_named_by_the_other_in_one_message_and_code_1(store, tmp_path):
    run, more = tmp_path / "run", ["train.save_every_steps=3", "train.timeout_s=60"]
    both = [by_hand(store, run, place, *more) for place in fork_server.rank_environments(2)]
    wait_until(lambda: log_length(run) > 6, both[0], tmp_path / "run.0", 200)
    both[1].kill()
    assert both[0].wait(60) == 1
    said = (tmp_path / "run.0").read_text()
    assert said.count("kits_dist.train: rank 0 of 2 waited for the others in `") == 1 and "Traceback" not in said
    last = (run / "checkpoint" / "last").resolve()
    assert f"The last checkpoint is {last}; the same command with resume=auto goes on from there." in said


def test_a_silent_rank_ends_the_launch_within_the_timeout(store, tmp_path):
    """Stopped, not dead: its connections stay open, as those of a machine that hangs."""
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_training(store, run, log, LAUNCH, "train.timeout_s=10")
    wait_until(lambda: log_length(run) > 6, process, log, 200)
    both = rank_pids(process)
    os.kill(both[1], signal.SIGSTOP)
    assert process.wait(10 + 60) != 0  # the launcher kills who is stopped after 30 s
    said = log.read_text()
    assert said.count("rank 0 of 2 waited for the others in `") == 1
    assert re.search("one of them is gone or silent: (Timed out waiting|Application timeout)", said)
    assert not still_running(both)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_with_max_restarts_goes_on_by_itself(store, tmp_path, rank):
    """Also the lock of the run folder, held by the process that was killed, is free again."""
    run, whole, log = tmp_path / "run", tmp_path / "whole", tmp_path / "log"
    more = ["optim.epochs=12", "train.save_every_steps=3", "train.timeout_s=60", "resume=auto"]
    process = start_training(store, run, log, [*LAUNCH, "--max_restarts", "3"], *more)
    wait_until(lambda: log_length(run) > 6, process, log, 200)
    os.kill(rank_pids(process)[rank], signal.SIGKILL)
    assert process.wait(300) == 0, log.read_text()
    said = log.read_text()
    assert said.count("continuing from step_") == 1 and "finished: 12 epochs done" in said
    train(store, whole, *more, world=2)
    assert same_weights(run, whole)


def test_who_is_asked_to_stop_is_not_started_again_by_such_a_launcher(store, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_training(store, run, log, [*LAUNCH, "--max_restarts", "3"], "resume=auto")
    wait_until(lambda: log_length(run) > 6, process, log, 200)
    for rank in rank_pids(process):
        os.kill(rank, signal.SIGUSR1)
    assert process.wait(120) == 0
    time.sleep(1)
    assert (run / "requeue").is_file() and log.read_text().count("stopped as asked, saved at step") == 1
