"""A loader that is slow shows in the ratio of end_to_end and in its waits, exactly as much as it is slow."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from benchmarks.lib import harness, lines, timed_training, training
from benchmarks.lib.timed_training import TimedTraining, profile_trainings, time_trainings
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


def test_the_profile_covers_a_few_steps_after_the_lead_in(monkeypatch):
    kernels = [FunctionEvent(0, "conv", 1, start, start + 30, device_type=DeviceType.CUDA) for start in (0, 70)]
    steps = []

    def profile(**_):
        steps.append(one._count)
        return contextlib.nullcontext(SimpleNamespace(events=lambda: kernels))

    monkeypatch.setattr(timed_training, "profile", profile)
    one = TimedTraining(trained(Clock(monkeypatch), 0.0), "fixed", 2, CPU)
    assert one.gpu_idle(lead_in=2) == 0.4  # 40 of 100 microseconds
    assert [*steps, one._count] == [2, 2 + timed_training.PROFILED_STEPS]


def test_trainings_are_profiled_on_a_gpu_only_and_not_when_time_is_up(monkeypatch):
    monkeypatch.setattr(timed_training.TimedTraining, "gpu_idle", lambda self, lead_in: 0.25)
    runs = {"fixed": TimedTraining(trained(Clock(monkeypatch), 0.0), "fixed", 2, CPU)}
    whole, short = ({"fixed": harness.Windows([1.0] * n, 1)} for n in (5, 4))
    gpu = torch.device("cuda", 0)
    assert profile_trainings(runs, whole, gpu, TIMING, 4) == {"fixed": 0.25}
    assert profile_trainings(runs, whole, CPU, TIMING, 4) == profile_trainings(runs, short, gpu, TIMING, 4) == {}

    def fail(self, lead_in):
        raise RuntimeError("CUPTI is in use")

    monkeypatch.setattr(timed_training.TimedTraining, "gpu_idle", fail)
    assert profile_trainings(runs, whole, gpu, TIMING, 4) == {}  # and the windows are kept
    assert "GPU without a kernel 25.0 %" in TimedTraining.describe(
        {"step_ms": dict.fromkeys(("p50", "p90", "p99"), 1.0), "data_wait": 0.0, "gpu_idle": 0.25}
    )
