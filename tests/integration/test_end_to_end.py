"""Programs as users start them: real launchers, real processes, real files."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kits_dist import cli, evaluate, predict
from kits_dist import train as training
from kits_dist.config import Config
from kits_dist.imaging.nifti import read_labels, same_grid
from kits_dist.training import instruments, out_of_memory, setup
from kits_dist.utils.errors import InputError, JobFailed
from tests.helpers import fork_server
from tests.helpers.launching import ACCELERATE, LAUNCH, SINGLE, TORCHRUN, run_program, same_weights
from tests.helpers.small_run import SMALL


def train(store, run_folder, *more, launcher=()) -> str:
    """Train to the end, with pictures, and return the output."""
    words = [f"data.store={store.path}", f"run={run_folder}", *SMALL, *more]
    if not launcher:
        return fork_server.run("kits_dist.train", *words)
    done = run_program([*launcher, "-m", "kits_dist.train", *words])
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "world"),
    [
        ([*TORCHRUN, "--standalone", "--nproc_per_node", "2"], 2),
        ([*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"], 2),  # no GPU: on the CPU
        (SINGLE, 1),
    ],
    ids=["torchrun", "accelerate", "single.yaml"],
)
def test_other_launchers_train_to_the_end(store, tmp_path, launcher, world):
    said = train(store, tmp_path / "run", "optim.epochs=1", "data.batch_size=10", launcher=launcher)
    assert f"{world} processes x batch 10" in said and "finished: 1 epochs done" in said


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A run that one process started and two launched ones continued, and the output of these."""
    folder = tmp_path_factory.mktemp("run") / "run"
    training.main(cli.load(Config, [f"data.store={store.path}", f"run={folder}", *SMALL, "optim.epochs=1"]))
    return folder, train(store, folder, "optim.epochs=12", "resume=auto", launcher=LAUNCH)


def test_two_launched_processes_train_and_write_the_run_folder(trained):
    folder, said = trained
    assert "2 processes x batch 3 x accumulate 1 = 6 a step" in said and "continuing from step_00000007" in said
    steps = 7 + -(-(12 * 20 - 7 * 3) // 6)  # of 3 for one epoch of 20 samples, then of 6 for the rest of twelve
    progress = json.loads((folder / "checkpoint" / "last" / "state.json").read_text())["state"]["progress"]
    assert (progress["step"], progress["position"]) == (steps, 7 * 3 + (steps - 7) * 6)
    for name in (
        "config.yaml",
        "environment.json",
        "log.jsonl",
        "model.safetensors",
        "checkpoint/last/state.json",
        "checkpoint/best/state.json",
    ):
        assert (folder / name).is_file(), name
    assert list((folder / "tensorboard").glob("events*"))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    assert sum("val/loss" in line for line in lines) == 12
    assert {"train/lr", "train/grad_norm", "perf/images_per_s", "perf/data_wait"} <= set(lines[0])
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["torch"] and len(environment["store_sha256"]) == 64 and environment["data"] == "kits"
    assert said.count("epoch 3:") == 1  # one process prints
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/lr", "val/loss", "val/dice_grid/tumor", "perf/images_per_s"} <= set(tags["scalars"])
    assert tags["images"] == ["val/panel"]


def test_evaluate_and_predict_agree_on_the_native_grid(trained, raw, tmp_path):
    folder, _ = trained
    evaluate.main(evaluate.Args(run=str(folder)))
    output = folder / "evaluation" / "test"
    summary = json.loads((output / "summary.json").read_text())
    assert list(summary["regions"]) == ["kidney_and_mass", "tumor"]  # regions that it does not predict are absent
    assert (
        summary["step"] > 0
        and summary["store_sha256"] == json.loads((folder / "environment.json").read_text())["store_sha256"]
    )
    assert summary["regions"]["kidney_and_mass"]["dice"] > 0.8
    assert (output / "panel.png").stat().st_size > 1000
    with open(output / "cases.csv") as file:
        case_id = next(csv.DictReader(file))["case"]
    predict.main(
        predict.Args(run=str(folder), input=str(raw / case_id / "imaging.nii.gz"), output=str(tmp_path / "labels"))
    )
    ours, theirs = (
        read_labels(tmp_path / "labels" / f"{case_id}.nii.gz"),
        read_labels(output / "predictions" / f"{case_id}.nii.gz"),
    )
    truth = read_labels(raw / case_id / "aggregated_MAJ_seg.nii.gz")
    assert np.array_equal(ours.array, theirs.array) and ours.array.any()
    assert same_grid(ours.geometry, truth.geometry) and same_grid(theirs.geometry, truth.geometry)
    # scoring the files alone gives the same numbers
    evaluate.main(
        evaluate.Args(
            predictions=str(output / "predictions"),
            truth=str(_only(raw, summary, output, tmp_path)),
            output=str(tmp_path / "scored"),
        )
    )
    again = json.loads((tmp_path / "scored" / "summary.json").read_text())
    for name in summary["regions"]:
        assert again["regions"][name]["dice"] == summary["regions"][name]["dice"]


def test_a_score_on_cases_that_were_trained_on_is_refused(trained, store, tmp_path):
    folder, _ = trained
    other = shutil.copytree(store.path, tmp_path / "other")
    splits = json.loads((other / "splits.json").read_text())
    splits["test"], splits["folds"][0] = splits["folds"][0], splits["test"]
    (other / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match="was trained on case_.* says nothing about new patients"):
        evaluate.main(evaluate.Args(run=str(folder), store=str(other)))


def test_inputs_of_predict(trained, raw, tmp_path):
    folder, _ = trained
    one_case = raw / "case_00003"
    predict.main(predict.Args(run=str(folder), input=str(one_case), output=str(tmp_path / "a")))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["case_00003.json", "case_00003.nii.gz"]
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(one_case / "imaging.nii.gz", scans / "good.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"")
    with pytest.raises(JobFailed, match="1 of 2 scans could not be read: bad"):
        predict.main(predict.Args(run=str(folder), input=str(scans), output=str(tmp_path / "b")))
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["good.json", "good.nii.gz"]
    for wrong, words in ((tmp_path / "nowhere", "no such file or folder"), (scans / "bad.nii.gz", "the file is empty")):
        with pytest.raises(InputError, match=words):
            predict.main(predict.Args(run=str(folder), input=str(wrong), output=str(tmp_path / "c")))
    with pytest.raises(InputError, match="would overwrite the CT"):
        predict.main(predict.Args(run=str(folder), input=str(scans), output=str(scans)))
    with pytest.raises(InputError, match="written at a run's first validation"):
        predict.main(predict.Args(run=str(tmp_path), input=str(one_case), output=str(tmp_path / "c")))


def _only(raw: Path, summary: dict, output: Path, tmp_path: Path) -> Path:
    """Make a truth folder with the predicted cases alone."""
    (tmp_path / "truth").mkdir()
    for path in (output / "predictions").iterdir():
        case_id = path.name.removesuffix(".nii.gz")
        (tmp_path / "truth" / case_id).symlink_to(raw / case_id)
    return tmp_path / "truth"


@pytest.fixture(scope="module")
def consumed(store, tmp_path_factory):
    """{world: folder} of tests.helpers.launched.consume on 1, 2 and 3 processes."""
    folders = {}
    for world in (1, 2, 3):
        folders[world] = tmp_path_factory.mktemp(f"world_{world}")
        fork_server.run("tests.helpers.launched.consume", store.path, folders[world], world=world)
    return folders


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_consume_disjoint_slices_that_make_up_the_epoch_and_score_as_one_process(consumed, world):
    one = json.loads((consumed[1] / "rank_0.json").read_text())
    ranks = [json.loads((consumed[world] / f"rank_{r}.json").read_text()) for r in range(world)]
    assert [one["world"], *(r["world"] for r in ranks)] == [1, *[world] * world]
    # global order: the ranks take turns; the stream's first n samples are the epoch
    together = [tuple(pair) for turn in zip(*(r["seen"] for r in ranks), strict=True) for pair in turn]
    epoch = together[: one["samples"]]
    assert len(set(epoch)) == one["samples"]
    assert epoch == [tuple(p) for p in one["seen"][: one["samples"]]]
    assert all(r["scored"] == 29 for r in ranks)  # a prime: no number of ranks divides it
    assert all(r["counts"] == one["counts"] for r in ranks)  # integers, equal
    assert all(r["loss"] == pytest.approx(one["loss"], rel=1e-6) for r in ranks)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("loss", ["bce", "bce_dice"])
def test_ranks_learn_what_one_process_learns_from_the_global_batch(consumed, world, loss):
    """Batch norm frozen; the Dice term, clipping, schedule and averaged weights are those of the global batch."""
    one = load_file(consumed[1] / f"rank_0_{loss}.safetensors")
    ranks = [load_file(consumed[world] / f"rank_{r}_{loss}.safetensors") for r in range(world)]
    for key, value in one.items():
        assert all(np.array_equal(ranks[0][key], rank[key]) for rank in ranks), key
        torch.testing.assert_close(ranks[0][key], value, rtol=1e-4, atol=1e-6)  # order of float32 sums


def test_resumed_training_is_bit_equal_to_uninterrupted(store, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(store, whole, "optim.epochs=4", "train.deterministic=true", "log.images=0")
    train(store, parts, "optim.epochs=2", "train.deterministic=true", "log.images=0")
    last = (parts / "checkpoint" / "last").resolve()
    said = train(store, parts, "optim.epochs=4", "train.deterministic=true", "log.images=0", "resume=auto")
    assert f"continuing from {last.name}" in said
    assert same_weights(whole, parts)
    exported = parts / "model.safetensors"
    kept = exported.read_bytes()
    exported.write_bytes(kept[:-9])  # as after a kill between checkpoint and export
    again = train(store, parts, "optim.epochs=4", "train.deterministic=true", "log.images=0", "resume=auto")
    assert "already finished (4 epochs done)" in again
    assert exported.read_bytes() == kept


def test_a_run_saved_within_an_epoch_resumes_there(store, tmp_path):
    """It is saved before the first validation; when the newest checkpoint is damaged, the one before is used."""
    common = ["optim.epochs=3", "train.deterministic=true", "log.images=0", "train.save_every_steps=2", "train.keep=3"]
    train(store, tmp_path / "whole", *common)
    train(store, tmp_path / "parts", *common)
    checkpoints = tmp_path / "parts" / "checkpoint"
    steps = sorted(checkpoints.glob("step_*"))
    (steps[-1] / "model.safetensors").write_bytes(b"cut short")
    said = train(store, tmp_path / "parts", *common, "resume=auto")
    assert f"not used: {steps[-1] / 'model.safetensors'} is damaged" in said
    assert f"continuing from {steps[-2].name}" in said
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(store, tmp_path):
    arguments = ["optim.epochs=3", "optim.lr=1e30", "log.every_steps=100", "log.images=0", "train.precision=fp32"]
    words = [f"data.store={store.path}", f"run={tmp_path / 'nan'}", *SMALL, *arguments]
    printed = fork_server.run("kits_dist.train", *words, code=1)
    said = re.search(r"the loss is (?:nan|inf) at step (\d+), first on rank 0; \S+not_finite.json lists", printed)
    report = json.loads((tmp_path / "nan" / "not_finite.json").read_text())
    assert report["step"] == int(said[1]) > 1 and len(report["slices"]) == 3  # step 1 was finite
    assert not list((tmp_path / "nan").glob("checkpoint/step_*"))


def test_out_of_memory_suggests_smaller_settings(store, tmp_path, monkeypatch):
    class Greedy(torch.nn.Conv2d):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")

    monkeypatch.setattr(setup, "build_model", lambda *_, **__: Greedy(1, 2, 1))
    words = (
        r"out of GPU memory with data.batch_size=3, data.size_px=64x64, precision fp32, data.residency=mmap "
        r"\(CUDA out of memory. Tried to allocate 2.00 GiB.\). Resume with resume=auto and data.batch_size=1 "
        r"optim.accumulate=3 \(as many samples per step\), or train.precision=bf16, or smaller data.size_px"
    )
    arguments = [f"data.store={store.path}", f"run={tmp_path / 'run'}", *SMALL, "train.precision=fp32"]
    with pytest.raises(JobFailed, match=words):
        training.main(cli.load(Config, arguments))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    said = out_of_memory.advice(cli.load(Config, arguments[:-1]), torch.OutOfMemoryError("CUDA out of memory."))
    # the launcher set the precision, and a smaller one does not exist
    assert "precision bf16, " in said and "train.precision" not in said


def test_the_composition_of_an_epoch_is_printed_and_saved(store, tmp_path, monkeypatch, capfd):
    def far_enough(*_):
        raise InputError("far enough")

    monkeypatch.setattr(instruments, "Tracker", far_enough)
    arguments = [f"data.store={store.path}", f"run={tmp_path}", *SMALL, "data.fold=all", "data.sampler=case"]
    with pytest.raises(InputError, match="far enough"):
        training.main(cli.load(Config, arguments))
    shares = json.loads((tmp_path / "sampler.json").read_text())
    sizes = {case: store.cases[store.row[case]].shape[0] for case in store.splits.select("all")[0]}
    assert {name: of["members"] for name, of in shares.items()} == sizes and len(sizes) == 5
    counts = [of["an_epoch"] for of in shares.values()]
    assert sum(counts) == sum(sizes.values()) and max(counts) - min(counts) <= 1
    first = [f"{of['an_epoch']} {name} (of {of['members']})" for name, of in shares.items()][:3]
    assert f"each epoch of sampler=case: {', '.join(first)}, ... 5 in all, in sampler.json" in capfd.readouterr().out


def test_two_runs_cannot_share_a_folder(store, trained, tmp_path):
    folder, _ = trained
    arguments = [f"data.store={store.path}", f"run={folder}", *SMALL]
    with pytest.raises(InputError, match="already holds a run. Continue it with resume=auto"):
        training.main(cli.load(Config, arguments))
    with pytest.raises(InputError, match=r"another configuration \(data.context: 0 there, 1 asked\)"):
        training.main(cli.load(Config, [*arguments, "resume=auto", "data.context=1"]))
    other = shutil.copytree(store.path, tmp_path / "other")
    splits = json.loads((other / "splits.json").read_text())
    splits["test"], splits["folds"][0] = splits["folds"][0], splits["test"]
    (other / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match="is not the store that run=.* was trained on"):
        training.main(cli.load(Config, [f"data.store={other}", f"run={folder}", *SMALL, "resume=auto"]))
    with pytest.raises(InputError, match=r"optim.name: adam there, sgd asked"):
        training.main(cli.load(Config, [*arguments, "resume=auto", "optim.name=sgd"]))
    about = folder / "environment.json"
    kept = about.read_text()
    about.write_text(kept[:20])
    with pytest.raises(InputError, match="environment.json cannot be read .*Name another folder"):
        training.main(cli.load(Config, [*arguments, "resume=auto"]))
    about.write_text(kept)
    with pytest.raises(InputError, match="is a file"):
        training.main(cli.load(Config, [f"data.store={store.path}", f"run={folder / 'log.jsonl'}"]))


def test_a_wrong_argument_under_the_launcher_is_reported_once():
    done = run_program([*LAUNCH, "-m", "kits_dist.train", "data.store=/nowhere", "run=/tmp/never"], code=1)
    assert (done.stdout + done.stderr).count("data.store=/nowhere: no store.json there") == 1
    assert not Path("/tmp/never").exists()


PROGRAMS = ["phantom", "audit", "prepare", "train", "evaluate", "postprocess", "fuse", "crossval", "predict"]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("program", [*PROGRAMS, "report", "doctor"])
def test_every_program_answers_help(program):
    import runpy
    from unittest import mock

    with mock.patch.object(sys, "argv", ["kits-dist", program, "help"]), pytest.raises(SystemExit) as caught:
        runpy.run_module("kits_dist", run_name="__main__")
    assert caught.value.code == 0


def test_a_run_without_learning_scores_poorly(store, tmp_path):
    """With optim.lr=0 nothing is learned: good scores come from training, not from the pipeline."""
    folder = tmp_path / "still"
    train(store, folder, "optim.epochs=1", "optim.lr=0", "log.images=0")
    evaluate.main(evaluate.Args(run=str(folder)))
    summary = json.loads((folder / "evaluation" / "test" / "summary.json").read_text())
    assert summary["regions"]["tumor"]["dice"] < 0.2


@pytest.mark.slow
def test_two_launched_processes_evaluate_as_one(trained, store, tmp_path):
    folder, _ = trained
    other = shutil.copytree(store.path, tmp_path / "store")
    splits = json.loads((other / "splits.json").read_text())
    splits["test"] += splits["folds"][
        1
    ]  # the validation cases of this run, so that there are two cases it was not trained on
    splits["folds"][1] = []
    (other / "splits.json").write_text(json.dumps(splits))
    tables = ("cases.csv", "summary.json", "panel.png")
    found = []
    for name in ("one", "two"):
        copy = shutil.copytree(folder, tmp_path / name / "run", ignore=shutil.ignore_patterns("evaluation"))
        words = ["kits_dist.evaluate", f"run={copy}", f"store={other}"]
        if name == "one":
            fork_server.run(*words)
        else:
            run_program([*LAUNCH, "-m", *words])
        output = copy / "evaluation" / "test"
        found.append({path: (output / path).read_bytes() for path in tables})
        found[-1] |= {path.name: path.read_bytes() for path in sorted((output / "predictions").iterdir())}
    assert found[0] == found[1] and len(found[0]) > len(tables) + 1
