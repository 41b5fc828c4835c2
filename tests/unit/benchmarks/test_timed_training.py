"""A loader that is slow shows in the ratio of end_to_end and in its waits, exactly as much as it is slow."""

import pytest
import torch

from benchmarks.lib import lines, timed_training, training
from benchmarks.lib.timed_training import TimedTraining, time_trainings
from tests.helpers.benchmark_lines import Clock

CPU = torch.device("cpu")
TIMING = {"windows": 5, "window_s": 1.0, "warmup_steps": 3}


def trained(clock: Clock, source_s: float, step_s: float = 0.1) -> training.Training:
    """A training whose source sleeps before each batch and whose step sleeps."""

    def batches():
        while True:
            clock.sleep(source_s)
            yield training.PeerBatch(torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 4))

    return training.Training(batches(), lambda batch, logging: clock.sleep(step_s), torch.nn.Identity(), "")


@pytest.mark.parametrize("source_s", [0.0, 0.02, 0.05, 0.4])
def test_a_source_that_sleeps_lowers_the_ratio_by_as_much_and_raises_the_wait(source_s, monkeypatch):
    """All of end_to_end but the network and the loader: fixed against a source that blocks `source_s` in `next`."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(timed_training, "settle", lambda: None)
    runs = {
        "fixed": TimedTraining(trained(clock, 0.0), "fixed", 2, CPU),
        "dali": TimedTraining(trained(clock, source_s), "dali", 2, CPU),
    }
    timed = time_trainings(runs, CPU, TIMING, lead_in=4)
    ratio = lines.median(lines.rounds(timed["dali"].rates(2), timed["fixed"].rates(2)))[0]
    assert ratio == pytest.approx(0.1 / (0.1 + source_s), rel=1e-6)  # a step of 100 ms
    found = runs["dali"].summary(timed["dali"])
    assert found["data_wait"] == pytest.approx(source_s / (0.1 + source_s), abs=1e-5)
    assert found["step_ms"]["p50"] == found["step_ms"]["p99"] == pytest.approx(1e3 * (0.1 + source_s))
    assert found["step_ms"]["steps"] == 5 * timed["dali"].steps  # neither warm-up nor lead-in nor calibration
    assert runs["fixed"].summary(timed["fixed"])["data_wait"] == 0


def test_one_repeated_batch_in_place_of_the_loader_gives_a_ratio_of_one(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(timed_training, "settle", lambda: None)
    runs = {name: TimedTraining(trained(clock, 0.0), "fixed", 2, CPU) for name in ("fixed", "again")}
    timed = time_trainings(runs, CPU, TIMING, lead_in=4)
    assert lines.rounds(timed["again"].rates(2), timed["fixed"].rates(2)) == pytest.approx([1.0] * 5)
