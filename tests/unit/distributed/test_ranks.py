import pytest

from kits_dist.distributed import launcher, ranks
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.limits import available_cores
from tests.helpers.slurm_cluster import free_ports


def test_every_item_goes_to_one_process():
    items = list(range(7))
    shares = [Ranks(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items and [len(share) for share in shares] == [3, 2, 2]
    assert [Ranks(rank, 3).share(items[:1]) for rank in range(3)] == [[0], [], []]


def test_a_process_without_a_launcher_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with ranks.joined() as group:
        assert group == Ranks(0, 1, 0, 1) and group.cores == available_cores()
        assert group.gather([3, 4]) == [3, 4]


def test_processes_of_one_machine_share_its_cores():
    assert Ranks(0, 8, 0, 4096).cores == 1


def test_what_the_launcher_says_is_checked(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE=two in the environment is not a number"), ranks.joined():
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    monkeypatch.setattr(launcher, "_parent_command", lambda: ["python", "accelerate", "launch", "--num_processes=2"])
    with pytest.raises(InputError, match="asked for 2 processes but started 1"), ranks.joined():
        pass


def test_a_rank_outside_the_world_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(InputError, match="RANK=3 and WORLD_SIZE=1 in the environment contradict"):
        ranks.launched_ranks()


def test_a_program_without_the_key_names_missing_ranks_and_no_key(monkeypatch):
    (port,) = free_ports(1)
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "JOIN_TIMEOUT_S", 1)
    with pytest.raises(JobFailed, match=r"within timeout_s=1 .*Missing: rank 1\."), ranks.joined():
        pass
