import math

import pytest

from kits_dist.config import OptimConfig
from kits_dist.training.lr_schedule import lr_at


def test_schedules_warm_up_and_scaling_by_the_number_of_processes():
    def rate(step, world=1, **more):
        return lr_at(step, step, 100, OptimConfig(lr=1.0, **more), world)

    assert rate(0) == rate(99) == 1
    assert rate(0, schedule="cosine") == 1 and rate(50, schedule="cosine") == pytest.approx(0.5)
    assert rate(100, schedule="cosine") == pytest.approx(0)
    assert rate(50, schedule="poly") == pytest.approx(0.5**0.9)
    assert [rate(s, warmup_steps=4) for s in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert rate(4, warmup_steps=4, schedule="cosine") == 1
    assert (rate(0, 4, scale_lr="linear"), rate(0, 4, scale_lr="sqrt"), rate(0, 4)) == (4, 2, 1)


@pytest.mark.parametrize("seen", [3, 6, 24])
def test_another_global_batch_neither_restarts_nor_ends_the_warm_up(seen):
    """After 6 of 8 steps, or 12; `seen` says them in batches twice as large, as large, or a quarter of that."""
    config = OptimConfig(lr=1.0, warmup_steps=8, schedule="cosine")
    assert lr_at(6, seen, 100, config) == 7 / 8
    assert lr_at(12, seen, 108, config) == pytest.approx((1 + math.cos(math.pi * max(0, seen - 8) / 100)) / 2)
