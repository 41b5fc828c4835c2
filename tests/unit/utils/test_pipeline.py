import threading
import time
import weakref

import pytest

from kits_dist.utils.pipeline import run_pipeline


def test_results_come_in_order_and_each_item_once():
    found = list(run_pipeline(range(20), lambda n: n * 10, lambda n: n + 1, lambda n: -n))
    assert found == [(n, -(n * 10 + 1)) for n in range(20)]
    assert list(run_pipeline([], int, int, int)) == []


def test_reading_and_writing_continue_during_work():
    """Work on item 1 ends only after item 2 was read and item 0 was being written."""
    read, written = [threading.Event() for _ in range(4)], [threading.Event() for _ in range(4)]

    def work(n):
        if n == 1:
            assert read[2].wait(10) and written[0].wait(10)
        return n

    def mark(events):
        def stage(n):
            events[n].set()
            return n

        return stage

    assert [n for n, _ in run_pipeline(range(4), mark(read), work, mark(written))] == [0, 1, 2, 3]


@pytest.mark.parametrize("slow", ["read", "work", "write"])
@pytest.mark.parametrize("ahead", [1, 3])
def test_few_items_are_alive_whichever_stage_is_slow(slow, ahead):
    class Thing:
        pass

    alive, most = weakref.WeakSet(), []

    def stage(name):
        def passed(thing):
            if name == "read":
                thing = Thing()
                alive.add(thing)
            if name == slow:
                time.sleep(0.01)
            most.append(len(alive))
            return None if name == "write" else thing

        return passed

    list(run_pipeline(range(30), stage("read"), stage("work"), stage("write"), ahead))
    assert max(most) <= 2 * ahead + 2  # read or waiting, at work, being written or waiting


@pytest.mark.parametrize("bad", ["read", "work", "write"])
def test_an_error_of_any_stage_surfaces_and_nothing_is_left_running(bad):
    def stage(name):
        def passed(n):
            if name == bad and n == 3:
                raise OSError(28, "No space left on device", f"/out/{n}.nii.gz")
            return n

        return passed

    before = threading.active_count()
    results = run_pipeline(range(10), stage("read"), stage("work"), stage("write"))
    done = []
    with pytest.raises(OSError, match="No space left on device: '/out/3.nii.gz'"):
        done.extend(n for n, _ in results)
    assert set(done) <= {0, 1, 2} and threading.active_count() == before
