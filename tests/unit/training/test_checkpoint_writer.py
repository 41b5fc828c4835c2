"""Checkpoints that are written while training goes on: what they hold, and what becomes of one that fails."""

import contextlib
import errno
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kits_dist import cli, train
from kits_dist.config import Config
from kits_dist.models import weights
from kits_dist.training import checkpoint, epoch_end, loop, run_folder
from kits_dist.training.checkpoint_writer import CheckpointWriter
from kits_dist.training.ema import AveragedModel
from kits_dist.training.nan_guard import NonFiniteGuard
from kits_dist.utils import files
from kits_dist.utils.errors import JobFailed, Preempted
from tests.helpers.small_run import SMALL


def trained():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    average = AveragedModel(model, 0.9)
    advance(model, optimizer, average)
    return model, optimizer, average


def advance(model, optimizer, average):
    model(torch.randn(2, 3, 5, 5)).square().mean().backward()
    optimizer.step()
    average.update(model, 0)


def contents(step, model, optimizer, average):
    return checkpoint.contents_of(step, model, optimizer, {"position": step}, best=True, average=average.model)


def test_what_is_written_is_the_state_of_the_step_that_was_saved(tmp_path):
    model, optimizer, average = trained()
    checkpoint.save(tmp_path / "waited", contents(1, model, optimizer, average), keep=1)
    trained_on, writer = threading.Event(), CheckpointWriter(torch.device("cpu"))

    def write(copy):
        assert trained_on.wait(60)
        checkpoint.save(tmp_path / "beside", copy, keep=1)

    writer.start(contents(1, model, optimizer, average), write)
    before = {name: value.clone() for name, value in average.model.state_dict().items()}
    advance(model, optimizer, average)
    optimizer.param_groups[0]["lr"] = 0.5
    assert not torch.equal(average.model[0].weight, before["0.weight"])  # the average moves on in place, too
    trained_on.set()
    writer.join()
    for name in ("SHA256SUMS", *(line.split()[1] for line in (tmp_path / "beside/last/SHA256SUMS").open())):
        assert (tmp_path / "beside/last" / name).read_bytes() == (tmp_path / "waited/last" / name).read_bytes(), name


def test_the_sums_are_those_of_the_files(tmp_path):
    checkpoint.save(tmp_path, contents(1, *trained()), keep=1)
    lines = (tmp_path / "last" / "SHA256SUMS").read_text().splitlines()
    assert [line.split()[1] for line in lines] == sorted(
        ["average.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]
    )
    for digest, name in map(str.split, lines):
        assert files.sha256(tmp_path / "last" / name) == digest


def test_the_host_copy_is_made_once_and_used_again_when_it_is_on_disk():
    parts, found = trained(), []
    writer = CheckpointWriter(torch.device("cpu"))

    def write(copy):
        time.sleep(0.3 if copy.step == 1 else 0)
        tensors = [tensor for part in copy.tensors.values() for tensor in part.values()]
        found.append((copy.step, [tensor.data_ptr() for tensor in tensors], [tensor.clone() for tensor in tensors]))

    for step in (1, 2):
        writer.start(contents(step, *parts), write)
        advance(*parts)
    writer.join()
    (one, places, first), (two, again, second) = found
    assert (one, two) == (1, 2) and places == again
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_ended_a_save_is_raised_once_by_the_next_one_or_by_join():
    def full(copy):
        raise OSError(errno.ENOSPC, "No space left on device", f"step {copy.step}")

    parts, written = trained(), []
    writer = CheckpointWriter(torch.device("cpu"))
    writer.start(contents(1, *parts), full)
    with pytest.raises(OSError, match="No space left on device: 'step 1'"):
        writer.start(contents(2, *parts), written.append)
    writer.join()
    assert not written  # the second was not begun
    writer.start(contents(3, *parts), full)
    with pytest.raises(OSError, match="step 3"):
        writer.join()
    writer.join()


def test_a_failure_of_rank_0_ends_the_other_ranks(monkeypatch):
    end = object.__new__(epoch_end.EpochEnd)
    end.accelerator = SimpleNamespace(is_main_process=False, device=torch.device("cpu"))
    for failed in (0, 1):
        monkeypatch.setattr(epoch_end, "reduce_sum", lambda accelerator, own, failed=failed: own + failed)
        with pytest.raises(JobFailed, match="rank 0 could not write") if failed else contextlib.nullcontext():
            end.request_requeue()  # writes on rank 0 only


# ---- in a training


def config(store, run, *more) -> Config:
    quick = ["data.backend=opencv", "log.images=0"]
    return cli.load(Config, [f"data.store={store.path}", f"run={run}", *SMALL, *quick, *more])


@pytest.fixture
def slow_disk(monkeypatch):
    """Each link is set late, long after the next steps: what does not wait for it is seen not to."""
    link = checkpoint.link

    def late(*args):
        time.sleep(0.3)
        link(*args)

    monkeypatch.setattr(checkpoint, "link", late)


def full_at(monkeypatch, number: int) -> list[int]:
    """Let the disk be full at the save of that number, from 1. Returns the steps that are saved, as they come."""
    saved, save = [], checkpoint.save

    def full(root, contents, *, keep):
        saved.append(contents.step)
        if len(saved) == number:
            raise OSError(errno.ENOSPC, "No space left on device", str(root))
        save(root, contents, keep=keep)

    monkeypatch.setattr(checkpoint, "save", full)
    return saved


def test_a_full_disk_ends_the_training_at_the_next_save(store, tmp_path, monkeypatch):
    saved = full_at(monkeypatch, 2)
    with pytest.raises(OSError, match="No space left on device"):
        train.main(config(store, tmp_path, "optim.epochs=9", "train.save_every_steps=2"))
    assert saved == [2, 4]
    assert checkpoint.find(tmp_path / "checkpoint")[0].folder.name == "step_00000002"


def test_a_full_disk_at_the_last_save_is_an_error_and_nothing_is_finished(store, tmp_path, monkeypatch, capfd):
    saved = full_at(monkeypatch, 2)
    with pytest.raises(OSError, match="No space left on device"):
        train.main(config(store, tmp_path, "optim.epochs=2"))
    assert len(saved) == 2 and "finished" not in capfd.readouterr().out


def test_a_training_is_finished_when_its_last_checkpoint_and_export_are_on_disk(store, tmp_path, slow_disk):
    train.main(config(store, tmp_path, "optim.epochs=2", "optim.ema=0.9"))
    last, best = ((tmp_path / "checkpoint" / name).resolve() for name in ("last", "best"))
    assert last.name == "step_00000014"
    exported, about = weights.read_export(tmp_path / "model.safetensors")
    average = load_file(best / "average.safetensors")
    assert best.name == f"step_{about['step']:08d}" and all(torch.equal(average[key], exported[key]) for key in average)


class StopAfter:
    """A request to stop that comes after so many steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def listen(self, world, timeout_s):
        pass

    def agreed(self) -> bool:
        self.steps -= 1
        return self.steps == 0


def test_a_run_that_was_asked_to_stop_is_requeued_once_it_is_saved(store, tmp_path, monkeypatch, slow_disk):
    found, write_bytes = [], files.write_bytes

    def observed(path, content):
        if path.name == run_folder.REQUEUE:
            found.extend(path.name for path in (tmp_path / "checkpoint").iterdir() if path.is_symlink())
        write_bytes(path, content)

    monkeypatch.setattr(files, "write_bytes", observed)
    with pytest.raises(Preempted, match="saved at step 3"):
        loop.train(config(store, tmp_path), store, StopAfter(3))
    assert found == ["last"] and (tmp_path / "requeue").exists()


def test_a_run_whose_last_checkpoint_cannot_be_written_is_not_requeued(store, tmp_path, monkeypatch):
    full_at(monkeypatch, 1)
    with pytest.raises(OSError, match="No space left on device"):
        loop.train(config(store, tmp_path), store, StopAfter(3))
    assert not (tmp_path / "requeue").exists()


@pytest.mark.parametrize("full", [False, True])
def test_a_training_that_fails_finishes_what_it_began_to_save_or_says_that_it_is_lost(
    store, tmp_path, monkeypatch, capfd, slow_disk, full
):
    if full:
        full_at(monkeypatch, 1)
    mean_loss = NonFiniteGuard.mean_loss

    def fails(guard, accelerator):
        if fails.calls == 3:  # looked at after steps 1, 2 (saved), 3, 4
            raise JobFailed("the loss is nan")
        fails.calls += 1
        return mean_loss(guard, accelerator)

    fails.calls = 0
    monkeypatch.setattr(NonFiniteGuard, "mean_loss", fails)
    with pytest.raises(JobFailed, match="the loss is nan"):
        train.main(config(store, tmp_path, "log.every_steps=1", "train.save_every_steps=2"))
    said = capfd.readouterr().err
    assert ("the checkpoint of step 2 was not written: [Errno 28] No space left on device" in said) == full
    assert (tmp_path / "checkpoint" / "last").exists() != full
