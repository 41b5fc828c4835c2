"""How ranks meet, and what is said of one that does not come or is gone; without launches (those: test_lost_ranks)."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from kits_dist.distributed import rendezvous
from kits_dist.utils.errors import InputError, JobFailed


@pytest.fixture
def meeting_place():
    return dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)


def client(meeting_place) -> dist.TCPStore:
    """A connection of its own, as each process has."""
    return dist.TCPStore("127.0.0.1", meeting_place.port, None, False, wait_for_workers=False)


def meet(meeting_place, rank: int, world: int, timeout_s: float = 20) -> int:
    return rendezvous._meet(client(meeting_place), rank, world, timeout_s, "here:1")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_ranks_leave_with_the_same_number_whichever_comes_first(meeting_place, order):
    with ThreadPoolExecutor(3) as pool:
        meetings = [pool.submit(meet, meeting_place, rank, 3) for rank in order]
        assert [meeting.result() for meeting in meetings] == [1, 1, 1]


def test_a_missing_rank_is_named(meeting_place):
    with ThreadPoolExecutor(2) as pool:
        came = [pool.submit(meet, meeting_place, rank, 5, 1) for rank in (0, 3)]
    here = socket.gethostname()
    assert (
        f"2 of 5 processes joined at here:1 within train.timeout_s=1 ({here}: rank 0, 3). Missing: rank 1, 2, 4"
        in str(came[0].exception())
    )
    assert all(isinstance(meeting.exception(), JobFailed) for meeting in came)
    with pytest.raises(JobFailed, match=r"1 of 2 .*rank 1\). Missing: rank 0"):
        meet(dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False), 1, 2, 0.3)


def test_restarted_ranks_do_not_meet_dead_ones(meeting_place):
    """A launcher that restarts its ranks keeps the store of their first meeting; rank 1 may be back before rank 0."""
    with ThreadPoolExecutor(2) as pool:
        first = [pool.submit(meet, meeting_place, rank, 2) for rank in (0, 1)]
        assert [meeting.result() for meeting in first] == [1, 1]
        early = pool.submit(meet, meeting_place, 1, 2)
        time.sleep(0.5)
        assert not early.done()
        assert meet(meeting_place, 0, 2) == 2 and early.result() == 2


def test_a_rank_that_died_during_the_rendezvous_is_replaced_at_the_next_one(meeting_place):
    with pytest.raises(JobFailed):
        meet(meeting_place, 1, 2, 0.3)  # gave up before anybody opened a meeting
    with ThreadPoolExecutor(2) as pool:
        assert [m.result() for m in [pool.submit(meet, meeting_place, rank, 2) for rank in (1, 0)]] == [1, 1]


def test_a_message_names_machines_and_runs_of_ranks():
    there = {rank: "a" for rank in range(8)} | {11: "b"}
    said = rendezvous.missing_ranks(there, 16, "a:29500", 60)
    assert "9 of 16 processes joined at a:29500 within train.timeout_s=60 (a: rank 0..7; b: rank 11)" in said
    assert "Missing: rank 8..10, 12..15" in said


GLOO = (
    "[/src/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [10.0.0.2]:20178: Connection reset by peer. "
    "This is typically caused by a remote worker hanging."
)


def test_errors_of_other_processes_are_distinguished_from_our_own(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")

    def gather(_):
        raise RuntimeError(GLOO)

    monkeypatch.setattr(rendezvous, "gather_object", gather)
    with pytest.raises(RuntimeError) as caught:
        rendezvous.refuse_differences({})
    said = rendezvous.explain(caught.value)
    assert said.startswith("rank 3 of 4 waited for the others in `everywhere = gather_object(")
    assert "(rendezvous.py:" in said
    assert "one of them is gone or silent: Read error [10.0.0.2]:20178: Connection reset by peer. If it said" in said
    ours = dist.DistBackendError(
        "NCCL error: unhandled cuda error\nncclUnhandledCudaError\nLast error:\nCuda failure 2"
    )
    said = rendezvous.explain(ours)  # of this GPU, perhaps: the others are not accused
    assert said.startswith(
        "rank 3 of 4 could not exchange with the others: NCCL error: unhandled cuda error (Cuda fail"
    )
    assert "Either one of them is gone or silent, or this process's own GPU or network failed" in said
    assert "Application timeout" in rendezvous.explain(RuntimeError("Application timeout caused pair closure"))
    mesh = "Gloo connectFullMesh failed with [/src/gloo/transport/tcp/pair.cc:152] timed out connecting: refused"
    said = rendezvous.explain(RuntimeError(mesh))
    assert "rank 3 of 4 met the others, but they cannot reach each other (timed out connecting: refused). Name" in said
    for ours in ("CUDA out of memory", "mat1 and mat2 shapes cannot be multiplied"):
        assert rendezvous.explain(RuntimeError(ours)) == ""
    assert rendezvous.explain(JobFailed("the loss is not finite")) == ""


def test_ranks_with_different_settings_are_refused(monkeypatch):
    seen = {"optim.lr": 0.1, "the checkpoint in run": 20}
    others = [("a", seen), ("a", seen), ("b", seen | {"the checkpoint in run": 0})]
    monkeypatch.setattr(rendezvous, "gather_object", lambda mine: others[:2])
    rendezvous.refuse_differences(seen)
    monkeypatch.setattr(rendezvous, "gather_object", lambda mine: others)
    with pytest.raises(InputError, match=r"the checkpoint in run is 0 for rank 2 \(b\) but 20 for rank 0 \(a\)"):
        rendezvous.refuse_differences(seen)


def test_an_incomplete_environment_is_refused(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="no RANK in the environment. A launcher sets"):
        rendezvous.join("gloo", 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(InputError, match="WORLD_SIZE=2 but no MASTER_ADDR"):
        rendezvous.join("gloo", 1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(JobFailed, match=r"rank 1 of 2 found no process at 127.0.0.1:1 within .*_s=1 \(.*refused"):
        rendezvous.join("gloo", 1)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(JobFailed, match="rank 0 of 2 could not meet the others at .*address already in use"):
            rendezvous.join("gloo", 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    rendezvous.join("gloo", 1)  # alone: nothing to do
    assert not dist.is_initialized()


@pytest.mark.skipif(not os.path.exists("/proc/net/route"), reason="needs Linux")
def test_the_network_towards_another_machine_is_never_loopback():
    names = [name for _, name in socket.if_nameindex()]
    assert rendezvous._interface_towards("127.0.0.1", 1) is None
    assert rendezvous._interface_towards("no.such.machine.invalid", 1) is None
    assert rendezvous._interface_towards("192.0.2.1", 1) in [None, *names]
