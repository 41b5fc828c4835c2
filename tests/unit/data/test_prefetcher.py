"""Batches come in order, ahead of time, in a thread that ends."""

import threading

import pytest
import torch
from torch.cuda._utils import _get_device_index

from kits_dist.data.prefetcher import Prefetcher


def test_results_come_in_order_and_end():
    results = Prefetcher(lambda step: step * step, depth=2, num_steps=7)
    assert list(results) == [0, 1, 4, 9, 16, 25, 36]
    with pytest.raises(StopIteration):
        next(results)
    assert list(Prefetcher(str, depth=2, num_steps=0)) == []


def test_no_more_than_depth_results_are_made_ahead_of_what_was_taken():
    made = []
    results = Prefetcher(made.append, depth=2)
    for taken in range(1, 5):
        next(results)
        results._pool.submit(int).result()  # the thread has done all that it was asked for
        assert len(made) == taken + 2


def test_an_error_is_raised_where_its_result_is_taken():
    def make(step):
        if step == 2:
            raise KeyboardInterrupt("in step 2")
        return step

    results = Prefetcher(make, depth=5)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyboardInterrupt, match="in step 2"):
        next(results)


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", [1]), ("cuda", [2]), ("cpu", [])])
def test_the_thread_works_on_the_gpu_of_its_rank(monkeypatch, device, expected):
    used = []
    # as set_device does it, which refuses a device without an index
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: used.append(_get_device_index(device)))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert list(Prefetcher(str, depth=1, num_steps=2, device=torch.device(device))) == ["0", "1"]
    assert used == expected


@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_the_thread_ends_and_makes_nothing_more(end):
    begun, may_go_on, made = threading.Event(), threading.Event(), []

    def make(step):
        if step == 1:
            begun.set()
            assert may_go_on.wait(10)
        made.append(step)

    results = Prefetcher(make, depth=3)
    next(results)  # the thread now waits in step 1
    assert begun.wait(10)
    (thread,) = results._pool._threads
    if end == "closed":
        threading.Timer(0.05, may_go_on.set).start()
        results.close()
    else:
        del results
        may_go_on.set()
    thread.join(10)
    assert not thread.is_alive() and made == [0, 1]
