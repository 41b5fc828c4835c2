import pytest
import torch

from kits_dist import tracking
from kits_dist.config import DataConfig
from kits_dist.tracking import Pace, verdict


def test_the_share_of_waiting_with_several_batches_a_step(monkeypatch):
    """Clock by hand: each step is 2 x (1 s waiting, 4 s computing), then 2 s of saving that count for nothing."""
    clock = [0.0]
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: clock[0])
    pace = Pace(torch.device("cpu"))
    for _ in range(3):
        for _ in range(2):
            pace.batch_requested()
            clock[0] += 1
            pace.batch_ready()
            clock[0] += 4
        pace.step_ended()
        clock[0] += 2
        pace.resume()
    report = pace.report(images_per_step=20)
    assert report["perf/data_wait"] == 0.2 and report["perf/images_per_s"] == 2.0
    assert report["perf/step_ms_p50"] == report["perf/step_ms_p99"] == 10_000
    assert pace.report(20) == {}
    assert pace.epoch_wait() == 0.2 and pace.epoch_wait() == 0


def test_an_epoch_counts_steps_that_were_not_reported(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: clock[0])
    pace = Pace(torch.device("cpu"))
    for step in range(3):
        pace.batch_requested()
        clock[0] += 1
        pace.batch_ready()
        clock[0] += 3 if step < 2 else 1
        pace.step_ended()
        if step == 0:
            assert pace.report(8)["perf/images_per_s"] == 2.0
    assert pace.epoch_wait() == 3 / 10
    assert pace.report(8)["perf/images_per_s"] == 16 / 6  # the verdict took nothing from the report


@pytest.mark.parametrize(
    ("wait", "backend", "residency", "on_gpu", "words"),
    [
        (0.004, "dali", "mmap", True, "compute-bound: data wait 0.4 %"),
        (0.38, "dali", "mmap", True, "input-bound 38 %: try data.residency=gpu"),
        (0.38, "dali", "gpu", True, "input-bound 38 %: try more CPU cores per process"),
        (0.38, "opencv", "mmap", True, "input-bound 38 %: try data.backend=dali"),
        (0.2, "dali", "mmap", False, "input-bound 20 %: try data.backend=opencv"),
        (0.2, "opencv", "mmap", False, "input-bound 20 %: try a smaller data.size_px, or more CPU cores"),
    ],
)
def test_the_verdict_names_the_slow_side_and_a_key(wait, backend, residency, on_gpu, words):
    assert verdict(wait, DataConfig(store="s", backend=backend, residency=residency), on_gpu) == words
