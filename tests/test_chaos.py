"""Twenty kill -9 of everything, at random steps and inside saves; the weights come out as if nothing had happened."""

import os
import random
import signal
import time

import numpy as np
import pytest

from tests.test_end_to_end import LAUNCH
from tests.test_signals import alive, begin, lines, ranks, weights

pytestmark = pytest.mark.slow  # twenty-two launches of two processes
KILLS = 20
EVERY = 3  # steps between checkpoints
TRAINING = [f"train.save_every_steps={EVERY}", "optim.epochs=36"]  # 4 steps an epoch: 144 steps


def kill_all(process) -> None:
    everyone = [process.pid, *ranks(process)]
    for pid in everyone:
        os.kill(pid, signal.SIGKILL)
    process.wait(10)
    while alive(everyone):
        time.sleep(0.01)


def half_written(run) -> list:
    folder = run / "checkpoint"
    return [name for name in os.listdir(folder) if name.endswith(".part")] if folder.is_dir() else []


def test_twenty_kills_leave_the_weights_of_an_undisturbed_run(store, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    dice = random.Random(0)
    inside_saves = reached = 0
    for kill in range(KILLS):
        process = begin(store, run, log, LAUNCH, *TRAINING, "resume=auto")
        in_save = kill % 3 == 0
        target = reached + dice.randint(1, 2 * EVERY)
        deadline = time.monotonic() + 120
        while not (half_written(run) if in_save and lines(run) > reached else lines(run) >= target and not in_save):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.002)
        kill_all(process)
        inside_saves += bool(half_written(run))
        reached = lines(run)
    assert inside_saves >= 3, "no kill met a save: the test shows less than it says"
    last = begin(store, run, log, LAUNCH, *TRAINING, "resume=auto")
    assert last.wait(300) == 0 and "continuing from step_" in log.read_text()
    assert not half_written(run)  # leftovers are swept
    whole = begin(store, tmp_path / "whole", log, LAUNCH, *TRAINING)
    assert whole.wait(300) == 0
    a, b = weights(run), weights(tmp_path / "whole")
    assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
