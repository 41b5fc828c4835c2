import pytest
import torch

from kits_dist.config import DataConfig
from kits_dist.training import step_timer
from kits_dist.training.step_timer import StepTimer, bottleneck_hint


def test_the_share_of_waiting_with_several_batches_a_step(monkeypatch):
    """Clock by hand: each step is 2 x (1 s waiting, 4 s computing), then 2 s of saving that count for nothing."""
    clock = [0.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: clock[0])
    timer = StepTimer(torch.device("cpu"))
    for _ in range(3):
        for _ in range(2):
            timer.batch_requested()
            clock[0] += 1
            timer.batch_ready()
            clock[0] += 4
        timer.step_ended()
        clock[0] += 2
        timer.resume()
    report = timer.report(timer.cut(), images_per_step=20)
    assert report["perf/data_wait"] == 0.2 and report["perf/images_per_s"] == 2.0
    assert report["perf/step_ms_p50"] == report["perf/step_ms_p99"] == 10_000
    assert timer.report(timer.cut(), 20) == {}
    assert timer.epoch_wait() == 0.2 and timer.epoch_wait() == 0


def test_an_epoch_counts_steps_that_were_not_reported(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: clock[0])
    timer = StepTimer(torch.device("cpu"))
    for step in range(3):
        timer.batch_requested()
        clock[0] += 1
        timer.batch_ready()
        clock[0] += 3 if step < 2 else 1
        timer.step_ended()
        if step == 0:
            assert timer.report(timer.cut(), 8)["perf/images_per_s"] == 2.0
    assert timer.epoch_wait() == 3 / 10
    assert timer.report(timer.cut(), 8)["perf/images_per_s"] == 16 / 6  # the hint took nothing from the report


def test_a_report_leaves_the_steps_after_its_marks_to_the_next(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: clock[0])
    timer = StepTimer(torch.device("cpu"))
    marks = []
    for seconds in (1, 4):
        clock[0] += seconds
        timer.step_ended()
        marks.append(timer.cut())
    assert [timer.report(one, 8)["perf/images_per_s"] for one in marks] == [8, 2]


@pytest.mark.parametrize(
    ("wait", "backend", "residency", "on_gpu", "resident", "words"),
    [
        (0.004, "dali", "mmap", True, False, "compute-bound: data wait 0.4 %"),
        (0.38, "dali", "mmap", True, False, "input-bound 38 %: try data.residency=gpu"),
        (0.38, "dali", "gpu", True, True, "input-bound 38 %: try more CPU cores per process"),
        (0.38, "dali", "auto", True, True, "input-bound 38 %: try more CPU cores per process"),
        (0.38, "dali", "auto", True, False, "input-bound 38 %: try a smaller data.batch_size, so that the slices"),
        (0.38, "opencv", "auto", True, False, "input-bound 38 %: try data.backend=dali"),
        (0.2, "dali", "auto", False, False, "input-bound 20 %: try data.backend=opencv"),
        (0.2, "opencv", "mmap", False, False, "input-bound 20 %: try a smaller data.size_px, or more CPU cores"),
    ],
)
def test_the_hint_names_the_slow_side_and_a_key(wait, backend, residency, on_gpu, resident, words):
    said = bottleneck_hint(wait, DataConfig(store="s", backend=backend, residency=residency), on_gpu, resident)
    assert said.startswith(words)


@pytest.mark.parametrize(
    ("wait", "idle", "words"),
    [
        (
            0.004,
            0.31,
            "launch-bound: GPU idle 31 %, data wait 0.4 %: try train.compile=true, or a larger data.batch_size",
        ),
        (0.004, 0.06, "compute-bound: data wait 0.4 %"),  # the gaps between kernels
        (0.38, 0.45, "input-bound 38 %: try data.residency=gpu"),  # most of it waits for data
    ],
)
def test_the_hint_sees_a_gpu_that_waits_for_launches(wait, idle, words):
    data = DataConfig(store="s", backend="dali", residency="mmap")
    assert bottleneck_hint(wait, data, True, False, idle) == words
