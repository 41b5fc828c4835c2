"""Ranks of one training that were started differently are refused before the first step."""

import pytest

from tests.helpers import fork_server
from tests.helpers.small_run import SMALL


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["log.every_steps=3"], {}, "log.every_steps is 3 for rank 1"),  # where all ranks gather the loss
        ([], {"ACCELERATE_MIXED_PRECISION": "bf16"}, "the precision is bf16 for rank 1"),  # gradients would differ
    ],
    ids=["configuration", "launcher"],
)
def test_ranks_that_differ_are_refused(store, tmp_path, words, environment, message):
    logs = [tmp_path / "log0", tmp_path / "log1"]
    common = [f"data.store={store.path}", f"run={tmp_path / 'run'}", *SMALL, "train.timeout_s=60"]
    first, second = fork_server.rank_environments(2)
    ranks = [
        fork_server.start(logs[0], "kits_dist.train", *common, **first),
        fork_server.start(logs[1], "kits_dist.train", *common, *words, **second | environment),
    ]
    assert [rank.wait(100) for rank in ranks] == [2, 2], [log.read_text() for log in logs]
    assert message in logs[0].read_text() and not (tmp_path / "run" / "config.yaml").exists()
