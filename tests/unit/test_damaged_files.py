"""Files that were cut, edited or lost after they were written: one message, and no wrong result in silence."""

import json
import shutil

import numpy as np
import pytest
from torch import nn

from kits_dist import cli, evaluate, phantom, prepare, report
from kits_dist import train as training
from kits_dist.config import Config
from kits_dist.data.store import Store, array_path
from kits_dist.imaging.datasets import find_cases
from kits_dist.models import weights as model_weights
from kits_dist.training.tracker import log_lines
from kits_dist.utils.errors import InputError, JobFailed


def edited(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("store.json", lambda _: [], "has format None"),
        ("store.json", lambda c: {"format": c["format"]}, "is damaged .KeyError"),
        ("cases.json", lambda c: c[:-1], "cases.json is missing or not the one that prepare wrote"),
        ("cases.json", lambda c: [{**c[0], "voxels_sha256": "other"}, *c[1:]], "not the one that prepare wrote"),
        ("splits.json", lambda c: {"test": c["test"]}, "is damaged .TypeError"),
        ("splits.json", lambda c: {**c, "test": ["case_99999"]}, "names case_99999, which is no case of this store"),
        ("splits.json", lambda c: {**c, "variants": {"v": []}}, "names v, which is no case of this store"),
        ("splits.json", lambda c: {**c, "test": [c["folds"][1][0]]}, "names case_0000. 2 times: test set, one fold"),
        ("splits.json", lambda c: {**c, "folds": [c["folds"][0]] * 3}, "names case_0000. 3 times: test set, one fold"),
    ],
)
def test_tables_of_a_store(store, tmp_path, name, change, words):
    copy = shutil.copytree(store.path, tmp_path / "store")
    edited(copy / name, change)
    with pytest.raises(InputError, match=words):
        Store(copy)


def test_a_slice_table_of_another_store(store, tmp_path):
    copy = shutil.copytree(store.path, tmp_path / "store")
    with np.load(copy / "slices.npz") as columns:
        changed = {name: columns[name].copy() for name in columns}
    changed["tumor"][0] += 1
    np.savez(copy / "slices.npz", **changed)
    with pytest.raises(InputError, match="slices.npz is missing or not the one that prepare wrote"):
        Store(copy)


def test_prepare_again_repairs_what_was_flipped_cut_or_lost(raw, tmp_path, capsys):
    args = prepare.Args(source=str(raw), store=str(tmp_path / "s"), workers=1)
    prepare.main(args)
    flipped = array_path(tmp_path / "s", "axial", "case_00002", "image")
    content = bytearray(flipped.read_bytes())
    content[500] ^= 1  # the same size
    flipped.write_bytes(content)
    array_path(tmp_path / "s", "axial", "case_00003", "slices").unlink()
    (tmp_path / "s" / "axial" / "case_00004" / "case.json").write_text("null")
    capsys.readouterr()
    prepare.main(args)
    assert "3 cases written, 3 already there" in capsys.readouterr().out


@pytest.mark.parametrize("more", [{"seed": -1}, {"workers": -1}, {"window_hu": (0, float("inf"))}])
def test_prepare_refuses_before_it_touches_a_good_store(store, tmp_path, more):
    with pytest.raises(InputError):
        prepare.Args(source="a", store=str(store.path), **more)
    assert (store.path / "store.json").is_file()


@pytest.mark.parametrize(
    ("schema", "arguments", "key"),
    [
        (prepare.Args, ["source=a", "store="], "store"),
        (phantom.Args, ["output=", "cases=1"], "output"),
        (Config, ["run=r", "data.store="], "data.store"),
    ],
)
def test_an_empty_value_is_not_the_current_folder(schema, arguments, key):
    with pytest.raises(InputError, match=f"^{key}= is empty: "):
        cli.load(schema, arguments)


def test_exported_weights_with_a_flipped_bit(tmp_path):
    path = tmp_path / "model.safetensors"
    model_weights.export(path, nn.Conv2d(3, 4, 3).state_dict(), {"step": 1})
    assert model_weights.read_export(path)[1] == {"step": 1}
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged .its weights' sha256 differs"):
        model_weights.read_export(path)


@pytest.mark.parametrize(
    ("left", "words"), [("log.jsonl", "holds log.jsonl but no config.yaml"), ("store.json", "slice")]
)
def test_a_folder_that_holds_something_else_is_no_run(store, tmp_path, left, words):
    (tmp_path / left).write_text("{}")
    with pytest.raises(InputError, match=words):
        training.main(cli.load(Config, [f"data.store={store.path}", f"run={tmp_path}", "resume=auto"]))
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == [left]


def test_a_log_is_read_as_far_as_it_is_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1, "val/loss": 2}\n[]\n{"step": "a"}\n\xff\xfe\n{"step": 2}\n{"step": 3, "val')
    assert log_lines(path) == [{"step": 1, "val/loss": 2}, {"step": 2}]
    assert log_lines(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("environment.json", "[]", "environment.json: cannot be read"),
        ("evaluation/test/summary.json", "{}", "evaluation/test: damaged tables .KeyError.*Run evaluate again"),
        ("evaluation/test/cases.csv", "case\nx\n", "damaged tables"),
    ],
)
def test_report_on_damaged_files(tmp_path, name, content, words):
    (tmp_path / "evaluation" / "test").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("run: r")
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "evaluation" / "test" / "summary.json").write_text('{"regions": {"tumor": {}}}')
    (tmp_path / "evaluation" / "test" / "cases.csv").write_text(
        "case,tumor_dice,tumor_truth_ml,tumor_predicted_ml\na,1,1,1\n"
    )
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        report.main(report.Args(run=str(tmp_path)))


def test_a_store_is_no_source(store):
    with pytest.raises(InputError, match="It is a slice store, made by kits_dist.prepare"):
        find_cases(store.path)


@pytest.mark.parametrize(
    "argument",
    [
        "data.threads=1000000",
        "data.prefetch=1000000",
        "data.margin=99999999999",
        "data.size_px=99200x99200",
        "optim.lr=.inf",
    ],
)
def test_numbers_beyond_sense_are_refused_before_anything_starts(argument):
    with pytest.raises(InputError, match=argument.split("=")[0]):
        cli.load(Config, ["run=r", "data.store=s", argument])


def test_a_damaged_truth_is_named_like_a_damaged_prediction(raw, tmp_path):
    truth, predictions = shutil.copytree(raw, tmp_path / "truth"), tmp_path / "predictions"
    predictions.mkdir()
    for case in truth.iterdir():
        shutil.copy(case / "aggregated_MAJ_seg.nii.gz", predictions / f"{case.name}.nii.gz")
    (truth / "case_00001" / "aggregated_MAJ_seg.nii.gz").write_bytes(b"")
    with pytest.raises(JobFailed, match="1 of 6 could not be scored: .*truth/case_00001.*is empty"):
        evaluate.main(evaluate.Args(predictions=str(predictions), truth=str(truth), output=str(tmp_path / "out")))
