import torch

from kits_dist import tracking
from kits_dist.tracking import Pace


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
