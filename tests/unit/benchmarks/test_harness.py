"""Windows are timed as promised: candidates in turns, warm-up outside, idle at both ends."""

import contextlib
import itertools
import signal
import threading
import time

import pytest
import torch

from benchmarks.lib import harness, training
from kits_dist.utils.errors import InputError, JobFailed
from tests.helpers.benchmark_lines import Clock

CPU = torch.device("cpu")


def test_a_window_has_its_steps_its_lead_in_and_one_before_and_after():
    calls = []
    candidate = harness.Candidate(lambda: calls.append("s"), lambda: calls.append("<"), lambda: calls.append(">"))
    seconds = harness.time_window(candidate, 3, CPU, lead_in=2)
    assert "".join(calls) == "ss<sss>"  # the lead-in lies outside
    assert seconds >= 0


def test_settle_waits_until_no_cpu_time_is_used(monkeypatch):
    clock, used = Clock(monkeypatch), iter([0.0, 0.05, 0.1, 0.14, 0.141])
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(harness, "cpu_seconds", lambda: next(used))
    harness.settle()
    assert next(used, "all were asked for") == "all were asked for"  # the last 50 ms used 1 ms: rest
    monkeypatch.setattr(harness, "cpu_seconds", lambda: clock.now)  # one core, always
    with pytest.raises(RuntimeError, match="after 0.2 s this process or one of its workers still computes"):
        harness.settle(limit_s=0.2)


def test_candidates_take_turns_with_the_same_number_of_steps_in_each_window():
    calls = []
    candidates = {name: harness.Candidate(lambda name=name: calls.append(name)) for name in "ab"}
    timed = harness.interleave(candidates, CPU, windows=5, window_s=0, warmup_steps=4)
    # warm-up 4 of each; then 5 rounds of one step each (window_s=0)
    assert "".join(calls) == "a" * 4 + "b" * 4 + "ab" * 5
    assert [(len(one.seconds), one.steps) for one in timed.values()] == [(5, 1), (5, 1)]


def test_rates_are_items_per_second():
    assert harness.Windows([2.0, 4.0], steps=10).rates(8) == [40.0, 20.0]  # 10 steps x 8 items in 2 s and in 4 s


def test_fewer_than_five_windows_are_refused():
    with pytest.raises(InputError, match="windows=3: a median and a spread need at least 5"):
        harness.interleave({}, CPU, windows=3, window_s=0, warmup_steps=0)


def test_a_window_has_as_many_steps_as_fill_its_time(monkeypatch):
    clock = Clock(monkeypatch)
    steps = {"slow": lambda: clock.sleep(0.5), "fast": lambda: clock.sleep(0.1)}
    candidates = {name: harness.Candidate(step) for name, step in steps.items()}
    timed = harness.interleave(candidates, CPU, windows=5, window_s=0.95, warmup_steps=1)
    assert (timed["slow"].steps, timed["fast"].steps) == (2, 10)  # 0.95 / 0.5 and 0.95 / 0.1, rounded up
    assert timed["fast"].rates(3) == pytest.approx([30.0] * 5)


def test_the_warm_up_is_in_no_figure(monkeypatch):
    clock, calls = Clock(monkeypatch), itertools.count()
    step = harness.Candidate(lambda: clock.sleep(60 if next(calls) < 8 else 0.5))
    timed = harness.interleave({"one": step}, CPU, windows=5, window_s=1, warmup_steps=8)
    assert timed["one"].rates(1) == pytest.approx([2.0] * 5)
    calls = itertools.count()
    timed = harness.interleave({"one": step}, CPU, windows=5, window_s=1, warmup_steps=7)  # one too few: it shows
    assert timed["one"].steps == 1


def test_processes_that_step_together_agree_on_the_number_of_steps():
    asked = []
    timed = harness.interleave(
        {"one": harness.Candidate(lambda: None)},
        CPU,
        windows=5,
        window_s=0.01,
        warmup_steps=0,
        agree=lambda number: asked.append(number) or min(number, 7),
    )
    assert timed["one"].steps == 7 and asked[0] > 7  # nothing is done in no time, so many fit
    assert asked[1:] == [0] * 5  # before each round: does any process have to stop?


@pytest.mark.parametrize("rounds", [2, 3])
def test_after_sigterm_the_rounds_that_are_complete_are_kept(rounds):
    def stop_after(calls: list[str]) -> None:
        calls.append("b")
        if len(calls) == rounds:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    calls: list[str] = []
    candidates = {"a": harness.Candidate(lambda: None), "b": harness.Candidate(lambda: stop_after(calls))}
    too_few = pytest.raises(JobFailed, match="stopped after 2 of 5 rounds of windows: too few for a line")
    with too_few if rounds < harness.MIN_STOPPED else contextlib.nullcontext():
        timed = harness.interleave(candidates, CPU, windows=5, window_s=0, warmup_steps=0)
        assert [len(one.seconds) for one in timed.values()] == [rounds, rounds]
    assert len(calls) == rounds and signal.getsignal(signal.SIGTERM) == before


def test_a_loader_that_gives_nothing_real_is_refused():
    zeros, noise = torch.zeros(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    with pytest.raises(JobFailed, match="dali: every pixel of a batch is 0. Nothing real was measured"):
        harness.checked(iter([training.PeerBatch(zeros, None), training.PeerBatch(noise, None)]), "dali")
    with pytest.raises(JobFailed, match="opencv: two batches in a row are the same"):
        harness.checked(itertools.repeat((noise, None)), "opencv")  # also as (image, label)
    left = harness.checked(iter([(noise, None), (noise + 1, None), "third"]), "monai")
    assert next(left) == "third"


def test_a_loader_that_reuses_its_memory_is_not_taken_for_one_that_repeats():
    buffer = torch.rand(2, 1, 4, 4)

    def batches():
        for number in range(3):
            buffer[0, 0, 0, 0] = number
            yield training.PeerBatch(buffer, None)

    harness.checked(batches(), "dali")


def test_the_work_of_threads_is_cpu_time():
    before = harness.cpu_seconds()
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            pass

    worker = threading.Thread(target=busy)
    worker.start()
    try:
        deadline = time.monotonic() + 60
        while harness.cpu_seconds() < before + 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert harness.cpu_seconds() >= before + 0.3
    finally:
        stop.set()
        worker.join()
