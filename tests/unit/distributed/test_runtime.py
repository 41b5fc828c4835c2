"""What a process learns of its place, without others: a stand-in says what a launcher and a process group would."""

from types import SimpleNamespace

import torch

from kits_dist.config import TrainConfig
from kits_dist.distributed import rendezvous, runtime


def test_a_process_takes_the_samples_of_its_global_rank(tmp_path, monkeypatch):
    """The second of two machines of four processes: two with the same local rank would otherwise see the same data."""
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    found = SimpleNamespace(
        process_index=5, local_process_index=1, num_processes=8, device=torch.device("cpu"), is_main_process=False
    )
    monkeypatch.setattr(runtime, "Accelerator", lambda **_: found)
    monkeypatch.setattr(rendezvous, "join", lambda *_: None)
    ranks = runtime.start(TrainConfig(), 1, tmp_path, seed=0).ranks
    assert (ranks.rank, ranks.world, ranks.local_world) == (5, 8, 4)
