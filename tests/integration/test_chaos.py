"""Kill -9 of all ranks, at random steps and inside saves: the weights are those of a run that nothing interrupted."""

import random
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.fork_server import Process
from tests.helpers.launching import log_length, same_weights, start_ranks, still_running, train, wait_until

pytestmark = pytest.mark.slow(minutes=2)
KILLS = 12
EVERY = 3  # steps between checkpoints
TRAINING = [f"train.save_every_steps={EVERY}", "optim.epochs=18"]  # 60 steps


def kill_all(processes: list[Process]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait(10)
    while still_running(process.pid for process in processes):
        time.sleep(0.01)


def half_written(run: Path) -> list[Path]:
    return list(run.glob("checkpoint/*.part"))


def is_the_moment(run: Path, former: int, steps: int, inside_a_save: bool) -> bool:
    """Whether `steps` steps came after the `former` ones; with `inside_a_save`: one did, and a save has begun."""
    if inside_a_save:
        return log_length(run) > former and bool(half_written(run))
    return log_length(run) >= former + steps


def test_kills_at_any_moment_leave_the_weights_of_an_uninterrupted_run(store, tmp_path):
    run = tmp_path / "run"
    chance = random.Random(0)
    found = []
    for kill in range(KILLS):
        log = tmp_path / f"log{kill}"
        both = start_ranks(store, run, log, *TRAINING, "resume=auto")
        moment = partial(is_the_moment, run, log_length(run), chance.randint(1, 2 * EVERY), kill % 2 == 0)
        wait_until(moment, both[0], log, every_s=0.002)
        kill_all(both)
        found.append("inside a save" if half_written(run) else "between steps")
    counts = Counter(found)
    assert min(counts["inside a save"], counts["between steps"]) >= 3, f"{counts}: the kills missed their aim"

    assert "continuing from step_" in train(store, run, *TRAINING, "resume=auto", world=2)
    assert not half_written(run)  # leftovers are removed
    train(store, tmp_path / "uninterrupted", *TRAINING, world=2)
    assert same_weights(run, tmp_path / "uninterrupted")
