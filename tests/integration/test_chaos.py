"""Twenty kill -9 of everything, at random steps and inside saves; the weights come out as if nothing had happened."""

import os
import random
import time

import pytest

from tests.helpers import fork_server
from tests.helpers.launching import LONG, log_length, same_weights, still_running, train

pytestmark = pytest.mark.slow  # twenty-two trainings of two processes
KILLS = 20
EVERY = 3  # steps between checkpoints
TRAINING = [f"train.save_every_steps={EVERY}", "optim.epochs=36"]  # 4 steps an epoch: 144 steps


def kill_all(processes: list[fork_server.Process]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait(10)
    while still_running(process.pid for process in processes):
        time.sleep(0.01)


def half_written(run) -> list:
    folder = run / "checkpoint"
    return [name for name in os.listdir(folder) if name.endswith(".part")] if folder.is_dir() else []


def test_twenty_kills_leave_the_weights_of_an_undisturbed_run(store, tmp_path):
    run = tmp_path / "run"
    words = [f"data.store={store.path}", f"run={run}", *LONG, *TRAINING, "resume=auto"]
    dice = random.Random(0)
    inside_saves = reached = 0
    for kill in range(KILLS):
        log = tmp_path / f"log{kill}"
        both = fork_server.start_ranks(2, log, "kits_dist.train", *words)
        in_save = kill % 3 == 0
        target = reached + dice.randint(1, 2 * EVERY)
        deadline = time.monotonic() + 120
        while not (
            half_written(run) if in_save and log_length(run) > reached else log_length(run) >= target and not in_save
        ):
            assert both[0].poll() is both[1].poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.002)
        kill_all(both)
        inside_saves += bool(half_written(run))
        reached = log_length(run)
    assert inside_saves >= 3, "no kill met a save: the test shows less than it says"
    assert "continuing from step_" in train(store, run, *TRAINING, "resume=auto", world=2)
    assert not half_written(run)  # leftovers are swept
    train(store, tmp_path / "whole", *TRAINING, world=2)
    assert same_weights(run, tmp_path / "whole")
