"""A rank that never starts, falls silent or is killed: the others report it once and in time, and the run resumes."""

import os
import re
import signal
import time

import pytest

from tests.helpers import fork_server
from tests.helpers.launching import (
    LAUNCH,
    log_length,
    rank_pids,
    same_weights,
    start_training,
    still_running,
    wait_until,
)
from tests.helpers.small_run import LONG, SHORT

pytestmark = pytest.mark.slow(minutes=4)
RESTARTING = [*LAUNCH, "--max_restarts", "3"]


def start_rank(store, run, environment: dict[str, str], *more) -> fork_server.Process:
    """Start one rank without a launcher, so that nothing but itself ends it; its output goes to RUN.RANK."""
    words = [f"data.store={store.path}", f"run={run}", *LONG, *more]
    return fork_server.start(run.with_suffix(f".{environment['RANK']}"), "kits_dist.train", *words, **environment)


def test_a_rank_that_never_starts_is_reported_by_the_one_that_waits_for_it(store, tmp_path):
    runs = {rank: tmp_path / f"waiting{rank}" for rank in (0, 1)}
    environments = {rank: fork_server.rank_environments(2)[rank] for rank in runs}
    alone = {rank: start_rank(store, runs[rank], environments[rank], "train.timeout_s=5") for rank in runs}
    assert [alone[rank].wait(120) for rank in runs] == [1, 1]
    said = {rank: run.with_suffix(f".{rank}").read_text() for rank, run in runs.items()}
    address = {rank: f"127.0.0.1:{environments[rank]['MASTER_PORT']}" for rank in runs}
    assert f"1 of 2 processes joined at {address[0]} within train.timeout_s=5" in said[0]
    assert "Missing: rank 1." in said[0]
    assert f"[rank 1] kits_dist.train: rank 1 of 2 found no process at {address[1]} within" in said[1]
    assert "Traceback" not in said[0] + said[1] and not runs[0].exists() and not runs[1].exists()


def test_a_killed_rank_is_named_by_the_other_in_one_message_and_code_1(store, tmp_path):
    run, more = tmp_path / "run", ["train.save_every_steps=3", "train.timeout_s=60"]
    ranks = [start_rank(store, run, environment, *more) for environment in fork_server.rank_environments(2)]
    wait_until(lambda: log_length(run) > 6, ranks[0], tmp_path / "run.0")
    ranks[1].kill()
    assert ranks[0].wait(60) == 1
    said = (tmp_path / "run.0").read_text()
    assert said.count("kits_dist.train: rank 0 of 2 waited for the others in `") == 1 and "Traceback" not in said
    last = (run / "checkpoint" / "last").resolve()
    assert f"The last checkpoint is {last}; the same command with resume=auto continues from there." in said


def test_a_silent_rank_ends_the_launch_within_the_timeout(store, tmp_path):
    """A stopped process keeps its connections open, as a machine that hangs does."""
    run, log = tmp_path / "run", tmp_path / "log"
    # the launcher kills a rank that does not end when asked after that long; 30 s by default
    process = start_training(store, run, log, LAUNCH, "train.timeout_s=10", PET_SHUTDOWN_TIMEOUT="5")
    wait_until(lambda: log_length(run) > 6, process, log)
    ranks = rank_pids(process)
    os.kill(ranks[1], signal.SIGSTOP)
    assert process.wait(10 + 60) != 0
    said = log.read_text()
    assert said.count("rank 0 of 2 waited for the others in `") == 1
    assert re.search("one of them is gone or silent: (Timed out waiting|Application timeout)", said)
    assert not still_running(ranks)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_with_max_restarts_resumes_by_itself(store, uninterrupted, tmp_path, rank):
    """The lock of the run folder, held by the killed process, is free again as well."""
    run, log = tmp_path / "run", tmp_path / "log"
    more = [SHORT, "train.save_every_steps=3", "train.timeout_s=60", "resume=auto"]
    process = start_training(store, run, log, RESTARTING, *more)
    wait_until(lambda: log_length(run) > 6, process, log)
    os.kill(rank_pids(process)[rank], signal.SIGKILL)
    assert process.wait(300) == 0, log.read_text()
    said = log.read_text()
    assert said.count("continuing from step_") == 1 and "finished: 9 epochs done" in said
    assert same_weights(run, uninterrupted(2))


def test_ranks_that_are_asked_to_stop_are_not_restarted_by_such_a_launcher(store, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_training(store, run, log, RESTARTING, "resume=auto")
    wait_until(lambda: log_length(run) > 6, process, log)
    for rank in rank_pids(process):
        os.kill(rank, signal.SIGUSR1)
    assert process.wait(120) == 0
    time.sleep(1)
    assert (run / "requeue").is_file() and log.read_text().count("stopped as asked, saved at step") == 1
