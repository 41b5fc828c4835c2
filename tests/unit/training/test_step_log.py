"""What a step reports is read when the next step has been queued; before anything is saved, at once."""

import pytest
import torch

from kits_dist import cli, train
from kits_dist.config import Config
from kits_dist.training import step_log
from kits_dist.training.epoch_end import EpochEnd
from kits_dist.training.host_copy import HostCopy
from kits_dist.training.tracker import log_lines
from kits_dist.training.train_step import TrainStep
from kits_dist.utils.errors import JobFailed
from tests.helpers.small_run import SMALL


@pytest.fixture
def calls(monkeypatch):
    """In order: "next" batch requested, "step" queued, "copy" queued, "read", "save"."""
    made = []

    class Copy(HostCopy):
        def __init__(self, *tensors):
            made.append("copy")
            super().__init__(*tensors)

        def wait(self):
            made.append("read")
            return super().wait()

    def noted(owner, name, word):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda self, *args, **kwargs: (made.append(word), real(self, *args, **kwargs))[1]
        )

    monkeypatch.setattr(step_log, "HostCopy", Copy)
    noted(TrainStep, "__call__", "step")
    noted(EpochEnd, "save", "save")
    return made


def run(store, folder, *more):
    keys = ["log.every_steps=3", "log.images=0", "optim.epochs=1", *more]
    train.main(cli.load(Config, [f"data.store={store.path}", f"run={folder}", *SMALL, *keys]))


def test_a_log_step_is_read_after_the_next_step_was_queued(store, tmp_path, calls):
    run(store, tmp_path)
    assert calls == [*["step", "copy", "step", "read", "step"] * 2, "step", "copy", "read", "save"]
    assert [line["step"] for line in log_lines(tmp_path / "log.jsonl") if "train/loss" in line] == [1, 4, 7]


def test_the_last_loss_is_read_before_a_checkpoint_is_written(store, tmp_path, calls, monkeypatch):
    """The sixth loss is not finite, and no log step: the network that it led to is not saved."""
    real = TrainStep.__call__

    def failing(self, batches, rate, step, *rest):
        result = real(self, batches, rate, step, *rest)
        return result._replace(losses=result.losses * torch.nan) if step == 5 else result

    monkeypatch.setattr(TrainStep, "__call__", failing)
    with pytest.raises(JobFailed, match="the loss is nan at step 6, first on rank 0"):
        run(store, tmp_path, "train.save_every_steps=6")
    assert calls[-2:] == ["copy", "read"] and "save" not in calls
