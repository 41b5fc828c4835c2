"""The first non-finite loss is reported with its step, its rank and the slices of its batch."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kits_dist import cli
from kits_dist.config import Config
from kits_dist.data.loaders import build_train_loader
from kits_dist.distributed.ranks import Ranks
from kits_dist.training.nan_guard import NonFiniteGuard
from kits_dist.utils.errors import JobFailed


def test_the_slices_named_are_those_that_the_rank_was_given(store, tmp_path):
    arguments = ["data.batch_size=2", "data.size_px=64x64", "data.backend=opencv", "optim.accumulate=3"]
    config = cli.load(Config, [f"data.store={store.path}", f"run={tmp_path}", *arguments])
    position, begun = 7, 20  # a run that was resumed
    ranks = [Ranks(rank=rank, world=2) for rank in (0, 1)]
    loader, dataset = build_train_loader(store, config.data, config.augment, 0, ranks[1], start=position)
    guard = NonFiniteGuard(tmp_path, dataset, ranks[0], config.data.batch_size, position, begun)
    losses = np.ones((2, 5, 3), np.float32)  # (ranks, steps, micro-batches)
    for step in range(5):
        guard.record(torch.from_numpy(losses[0, step]))
    recorded = guard.gathered(SimpleNamespace(gather=lambda mine: mine))
    assert recorded.shape == (1, 5, 3) and guard.mean_loss(losses) == 1.0
    for step in range(4):
        guard.record(torch.from_numpy(losses[0, step]))
    losses = losses[:, :4].copy()
    losses[1, 2, 1] = losses[0, 3, 0] = np.nan  # first on rank 1, at the third step since the last call
    with pytest.raises(JobFailed, match=r"the loss is nan at step 28, first on rank 1; .*not_finite.json lists"):
        guard.mean_loss(losses)
    report = json.loads((tmp_path / "not_finite.json").read_text())
    bad_batch = next(itertools.islice(iter(loader), (5 + 2) * 3 + 1, None))
    expected = [
        {"case": store.cases[case].case_id, "plane": "axial", "slice": index}
        for case, index in zip(bad_batch.case.tolist(), bad_batch.index.tolist(), strict=True)
    ]
    assert report == {"step": 28, "rank": 1, "loss": "nan", "slices": expected}
