"""One training in this process: what it saves, refuses and remembers."""

import itertools
import math
import os
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kits_dist import cli, train
from kits_dist.config import Config, OptimConfig
from kits_dist.distributed.runtime import seed_step
from kits_dist.models import weights as model_weights
from kits_dist.training import checkpoint, setup
from kits_dist.training.epoch_end import EpochEnd
from kits_dist.training.progress import Progress, after_validation, finished
from kits_dist.training.tracker import log_lines
from kits_dist.training.train_step import TrainStep
from kits_dist.training.validation import Validation
from kits_dist.utils.errors import InputError, JobFailed
from tests.helpers.small_run import SMALL


def config(store, run, *more) -> Config:
    quick = ["data.backend=opencv", "log.images=0"]
    return cli.load(Config, [f"data.store={store.path}", f"run={run}", *SMALL, *quick, *more])


def test_the_best_weights_survive_a_kill_between_checkpoint_and_link(store, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def killed(link, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_point", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main(config(store, run, "optim.epochs=1"))
    assert not (run / "checkpoint" / "best").exists() and not (run / "model.safetensors").exists()
    train.main(config(store, run, "optim.epochs=1", "resume=auto"))
    (folder,) = (run / "checkpoint").glob("step_*")
    assert (run / "checkpoint" / "best").resolve() == folder.resolve()
    exported, about = model_weights.read_export(run / "model.safetensors")
    saved = load_file(folder / "model.safetensors")
    assert about["step"] == int(folder.name[5:]) and all(torch.equal(saved[key], exported[key]) for key in saved)


def test_a_resumed_run_says_how_to_keep_its_batch(store, tmp_path, capfd):
    run = tmp_path / "run"
    train.main(config(store, run, "optim.epochs=1", "data.batch_size=4"))
    train.main(config(store, run, "optim.epochs=2", "resume=auto", "data.batch_size=4"))
    assert "global batch" not in capfd.readouterr().out
    train.main(config(store, run, "optim.epochs=3", "resume=auto", "data.batch_size=2"))
    assert "global batch 2, was 4: optim.accumulate=2 keeps it" in capfd.readouterr().out
    train.main(config(store, run, "optim.epochs=4", "resume=auto", "data.batch_size=3"))
    assert "global batch 3, was 2: data.batch_size=2 optim.accumulate=1 keeps it" in capfd.readouterr().out


def test_a_newer_checkpoint_of_another_run_is_skipped(store, tmp_path, capfd):
    """Whole, and of another network: as a folder that was copied to the wrong place."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    train.main(config(store, ours, "optim.epochs=1"))
    train.main(config(store, theirs, "optim.epochs=2", "model.width=4"))
    mine, newer = ((run / "checkpoint" / "last").resolve() for run in (ours, theirs))
    foreign = shutil.copytree(newer, mine.parent / newer.name)
    capfd.readouterr()
    train.main(config(store, ours, "optim.epochs=2", "resume=auto"))
    said = capfd.readouterr().out
    assert f"not used: {foreign} is another run's." in said and f"continuing from {mine.name}" in said
    a, b = (load_file(folder / "model.safetensors") for folder in (mine, ours / "checkpoint" / "last"))
    assert foreign.name > mine.name and all(a[key].shape == b[key].shape for key in a)
    assert (mine.parent / f"refused_{foreign.name}" / "model.safetensors").exists()


def test_a_run_without_a_usable_checkpoint_does_not_start_over(store, tmp_path):
    train.main(config(store, tmp_path, "optim.epochs=1"))
    weights = (tmp_path / "checkpoint" / "last").resolve() / "model.safetensors"
    weights.write_bytes(b"cut")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    words = (
        "none of its 1 checkpoints can be used .*model.safetensors is damaged.*without it the same command starts from"
    )
    with pytest.raises(InputError, match=words):
        train.main(config(store, tmp_path, "optim.epochs=2", "resume=auto"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before and weights.read_bytes() == b"cut"


def test_a_network_with_dropout_is_bit_equal_after_a_resume(store, tmp_path, monkeypatch):
    build = setup.build_model
    monkeypatch.setattr(setup, "build_model", lambda *args, **more: nn.Sequential(nn.Dropout(), build(*args, **more)))
    for run, more in (("whole", ["optim.epochs=2"]), ("parts", ["optim.epochs=1"]), ("parts", ["resume=auto"])):
        train.main(config(store, tmp_path / run, "optim.epochs=2", *more))
    a, b = (load_file(tmp_path / run / "checkpoint" / "last" / "model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_dropout_differs_between_steps_and_ranks_and_is_reproducible():
    def drawn(*of):
        seed_step(*of)
        return torch.rand(()).item()

    found = {of: drawn(*of) for of in itertools.product(range(2), repeat=3)}  # (seed, step, rank)
    assert len(set(found.values())) == 8 and drawn(0, 1, 1) == found[0, 1, 1]


def test_the_rate_counts_steps_taken_and_samples_seen_but_none_that_fp16_skipped(store, tmp_path, monkeypatch):
    """20 samples an epoch: 7 steps of 3, then the second epoch's in steps of 6."""
    asked = []
    monkeypatch.setattr(setup, "lr_at", lambda *args: asked.append(args[:3]) or 0.0)
    train.main(config(store, tmp_path / "run", "optim.epochs=1"))
    assert asked == [(n, n, 7) for n in range(7)]
    asked.clear()

    one_more = TrainStep.__call__

    def skip_the_first(self, *args, **kwargs):
        self.skipped_on_device.fill_(1)
        return one_more(self, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "__call__", skip_the_first)  # logged after step 8, read after step 9
    train.main(config(store, tmp_path / "run", "optim.epochs=2", "data.batch_size=6", "resume=auto"))
    assert asked == [(7, 3, 7), (8, 4, 7), (9, 5, 7), (9, 5, 7)]


def test_patience_ends_a_run_after_so_many_validations_without_a_better_one():
    optim = OptimConfig(epochs=9, patience=2)
    progress, found = Progress(), []
    for epoch, loss in enumerate((0.5, 0.6, 0.4, 0.4, math.nextafter(0.4, 1))):
        progress, is_best = after_validation(progress, Validation(loss, None, {}), epoch, optim)
        found.append((is_best, progress.stale, finished(progress, 10, optim)))
    last = "no improvement in 2 epochs"
    assert found == [(True, 0, ""), (False, 1, ""), (True, 0, ""), (False, 1, ""), (False, 2, last)]
    assert (progress.best, progress.best_epoch) == (0.4, 2)
    assert finished(progress, 10, replace(optim, patience=0)) == ""
    assert finished(progress._replace(position=90), 10, replace(optim, patience=0)) == "9 epochs done"
    by_dice = replace(optim, best_by="dice")
    scores = [{"kidney_and_mass": 0.8, "tumor": 0.2}, {"kidney_and_mass": 0.7, "tumor": 0.4}]
    first, _ = after_validation(Progress(), Validation(0.1, None, scores[0]), 0, by_dice)
    second, is_best = after_validation(first, Validation(0.2, None, scores[1]), 1, by_dice)
    assert is_best and second.best == pytest.approx(-0.55)


class Unrepeatable(nn.Module):
    def forward(self, image):
        return image.clone().put_(torch.tensor([0]), image.new_zeros(1))  # has no deterministic form, on a CPU neither


def test_the_log_names_each_kernel_that_is_not_deterministic_once(store, tmp_path, monkeypatch, recwarn):
    warnings.simplefilter("always")  # undone by recwarn; else Python itself passes on what one line warns of once
    build = setup.build_model
    monkeypatch.setattr(setup, "build_model", lambda *args, **more: nn.Sequential(Unrepeatable(), build(*args, **more)))
    try:
        train.main(config(store, tmp_path / "run", "optim.epochs=1", "train.deterministic=true"))
    finally:
        torch.use_deterministic_algorithms(False)
    said = [line.get("train/unrepeatable") for line in log_lines(tmp_path / "run" / "log.jsonl")]
    assert [words for words in said if words] == ["put_ does not have a deterministic implementation"]


@pytest.mark.parametrize("what", ["plain_model", "average"])
def test_non_finite_weights_are_never_saved(store, tmp_path, monkeypatch, what):
    """The loss of that step, taken before, is finite: only a look at the weights tells."""
    step = TrainStep.__call__

    def make_non_finite(self, *args, **more):
        result = step(self, *args, **more)
        model = self.average.model if what == "average" else self.plain_model
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] = float("inf")
        return result

    monkeypatch.setattr(TrainStep, "__call__", make_non_finite)
    with pytest.raises(JobFailed, match="the weights are not finite after step 1, which is not saved"):
        train.main(config(store, tmp_path / "run", "optim.ema=0.9", "train.save_every_steps=1"))
    assert not list((tmp_path / "run").glob("checkpoint/step_*"))


def test_a_gpu_scores_a_validation_batch_before_the_first_step(store, tmp_path, monkeypatch):
    """So memory that validation lacks is missed at the start. The pass after the epoch still sees every slice."""
    calls = []
    rehearse, step = EpochEnd.rehearse, TrainStep.__call__
    monkeypatch.setattr(EpochEnd, "rehearse", lambda self: calls.append("rehearse") or rehearse(self))
    monkeypatch.setattr(TrainStep, "__call__", lambda self, *args: calls.append("step") or step(self, *args))
    with monkeypatch.context() as patch:
        patch.setattr(setup.Run, "on_gpu", True)
        train.main(config(store, tmp_path / "run", "optim.epochs=1"))
    assert calls == ["rehearse", *["step"] * 7]
    train.main(config(store, tmp_path / "other", "optim.epochs=1"))
    assert calls.count("rehearse") == 1
    a, b = (log_lines(tmp_path / run / "log.jsonl") for run in ("run", "other"))
    assert [line.get("val/loss") for line in a] == [line.get("val/loss") for line in b]


@pytest.mark.parametrize("followed", [True, False])
def test_a_copied_run_goes_on(store, tmp_path, followed):
    train.main(config(store, tmp_path / "a", "optim.epochs=1"))
    copy = shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=not followed)
    train.main(config(store, copy, "optim.epochs=2", "resume=auto"))
    assert (copy / "checkpoint" / "last").is_symlink() and log_lines(copy / "log.jsonl")[-1]["step"] == 14


def test_a_run_whose_path_is_not_utf8_is_refused_before_any_work(store, tmp_path):
    run = os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller")
    with pytest.raises(InputError, match="this path is not UTF-8, and TensorBoard cannot write there"):
        train.main(config(store, run))
    assert not os.path.exists(run)
