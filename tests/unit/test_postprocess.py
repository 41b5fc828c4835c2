"""Rules are chosen on `val` alone, stored for the very weights, and applied by evaluate and predict."""

import csv
import json
import shutil

import numpy as np
import pytest

from kits_dist import evaluate, postprocess, predict
from kits_dist.data.store import Store, array_path
from kits_dist.evaluation import score_run
from kits_dist.evaluation.rule_search import LabelPair, dice_after, search_rules
from kits_dist.imaging.nifti import read_labels, write_nifti
from kits_dist.inference import region_models
from kits_dist.inference.postprocessing import FILE, Rules
from kits_dist.labels import KIDNEY, REGIONS, TUMOR
from kits_dist.utils.errors import InputError
from tests.helpers.runs import Threshold, export_run

MM = (1.0, 1.0, 1.0)
ALL = tuple(REGIONS)


def patient(*specks):
    """Truth: two kidneys of 8 ml, one with a tumor of 1 ml. Prediction: the same and `specks` (corner, side, label)."""
    truth = np.zeros((30, 50, 70), np.uint8)
    for column in (5, 45):
        truth[5:25, 5:25, column : column + 20] = KIDNEY
    truth[10:20, 10:20, 10:20] = TUMOR
    predicted = truth.copy()
    for corner, side, label in specks:
        predicted[tuple(slice(c, c + side) for c in corner)] = label
    return LabelPair(predicted, truth, MM)


def test_the_rule_that_adds_most_comes_first_and_what_adds_nothing_is_left_out():
    third_kidney = ((5, 30, 30), 15, KIDNEY)  # 3.4 ml: two_kidneys and min_kidney_ml=5 remove it
    small_tumor = ((12, 12, 50), 4, TUMOR)  # 0.064 ml in the other kidney: min_tumor_ml=0.1 removes it
    pairs = [patient(third_kidney, small_tumor), patient(third_kidney), patient()]
    choice = search_rules(pairs, ALL, min_gain=1e-4)
    assert [step["rule"] for step in choice.kept] == ["min_kidney_ml", "min_tumor_ml"]
    assert choice.rules == Rules(min_kidney_ml=5.0, min_tumor_ml=0.1)  # the mildest values that do it
    assert choice.before == dice_after(pairs, ALL, Rules()) < choice.after == 1.0
    alone = {(row["rule"], row["value"]): row["gain"] for row in choice.alone}
    assert alone["two_kidneys", True] == alone["min_kidney_ml", 5.0] > alone["min_tumor_ml", 0.1] > 0
    assert alone["fill_holes", True] == 0 and alone["min_tumor_ml", 2.0] < 0  # it removes the true tumor, too
    assert search_rules(pairs, ALL, min_gain=0.5).rules == Rules()
    assert search_rules([patient()], ALL, min_gain=0).kept == []


def test_the_mean_is_over_cases_and_regions():
    pair = patient(((12, 12, 50), 4, TUMOR))  # 64 voxels of kidney called tumor
    tumor = 2 * 1000 / (2 * 1000 + 64)
    assert dice_after([pair, patient()], ALL, Rules()) == pytest.approx((1 + tumor + tumor + 3) / 6)


@pytest.fixture
def noisy(store, tmp_path, monkeypatch):
    """A run whose kidneys are right and whose body is full of specks: of 60 HU +- 12, what is above 80."""
    monkeypatch.setattr(score_run, "draw_cases", lambda *_: None)  # takes most of the time, tested elsewhere
    run = export_run(tmp_path / "run", monkeypatch, Threshold(80.0), size_px="96x96", store=str(store.path))
    return run


def scores(run, split="test"):
    return json.loads((run / "evaluation" / split / "summary.json").read_text())


def test_evaluate_and_predict_apply_and_report_the_chosen_rules(noisy, raw, store, tmp_path, capsys):
    evaluate.main(evaluate.Args(run=str(noisy)))
    assert scores(noisy)["postprocess"] == {} and scores(noisy)["tta"] == "none"
    before = scores(noisy)["regions"]["kidney_and_mass"]["dice"]
    postprocess.main(postprocess.Args(run=str(noisy)))
    stored = json.loads((noisy / FILE).read_text())
    assert stored["rules"] == {"min_kidney_ml": 1.0} and stored["val"]["after"] > stored["val"]["before"] + 0.02
    printed = capsys.readouterr().out
    assert "kept min_kidney_ml=1" in printed and f"test: label maps of {noisy}" in printed
    evaluate.main(evaluate.Args(run=str(noisy)))
    after = scores(noisy)
    assert after["postprocess"] == {"min_kidney_ml": 1.0}
    assert "post-processing: min_kidney_ml=1 (chosen on val)" in capsys.readouterr().out
    assert after["regions"]["kidney_and_mass"]["dice"] > before + 0.02
    # the reported effect on test is what evaluate then finds
    assert stored["test"]["before"] == pytest.approx(before, abs=1e-12)
    assert stored["test"]["after"] == pytest.approx(after["regions"]["kidney_and_mass"]["dice"], abs=1e-12)
    evaluate.main(evaluate.Args(run=str(noisy), postprocess=False))
    assert scores(noisy)["regions"]["kidney_and_mass"]["dice"] == before
    case_id = store.splits.test[0]
    for key, wanted in (("cleaned", True), ("not_cleaned", False)):
        out = tmp_path / key
        predict.main(predict.Args(run=str(noisy), input=str(raw / case_id), output=str(out), postprocess=wanted))
        assert json.loads((out / f"{case_id}.json").read_text())["postprocess"] == (stored["rules"] if wanted else {})
    a, b = (read_labels(tmp_path / key / f"{case_id}.nii.gz").array for key in ("cleaned", "not_cleaned"))
    assert (a > 0).sum() < (b > 0).sum() and not (a[b == 0]).any()
    assert np.array_equal(b, read_labels(noisy / "evaluation" / "test" / "predictions" / f"{case_id}.nii.gz").array)


def test_the_test_cases_have_no_influence(noisy, store, tmp_path):
    """Every test prediction and every test label are changed; the choice is the same to the last digit."""
    evaluate.main(evaluate.Args(run=str(noisy)))
    postprocess.main(postprocess.Args(run=str(noisy)))
    first = json.loads((noisy / FILE).read_text())
    other = shutil.copytree(store.path, tmp_path / "other")
    for case_id in store.splits.test:
        path = array_path(other, "axial", case_id, "label")
        label = np.load(path)
        np.save(path, np.where(np.indices(label.shape).sum(axis=0) % 3, 0, 1).astype(np.uint8))
    evaluate.main(evaluate.Args(run=str(noisy), store=str(other), postprocess=False))
    postprocess.main(postprocess.Args(run=str(noisy), store=str(other)))
    second = json.loads((noisy / FILE).read_text())
    assert first["test"] != second["test"]
    assert {key: value for key, value in first.items() if key != "test"} == {
        key: value for key, value in second.items() if key != "test"
    }


def test_label_maps_of_evaluate_are_reused_only_without_rules_and_tta(noisy, store, capsys):
    args = postprocess.Args(run=str(noisy))
    for how, reused in (({}, True), ({"tta": "flip"}, False), ({"postprocess": True}, False)):
        evaluate.main(evaluate.Args(run=str(noisy), split="val", **{"postprocess": False, **how}))
        capsys.readouterr()
        postprocess.main(args)
        assert ("val: label maps of" in capsys.readouterr().out) == reused, how
    evaluate.main(evaluate.Args(run=str(noisy), split="val", postprocess=False))
    summary = noisy / "evaluation" / "val" / "summary.json"
    content = json.loads(summary.read_text())
    for key, value in (("step", 99), ("store_sha256", "other")):
        summary.write_text(json.dumps(content | {key: value}))
        capsys.readouterr()
        postprocess.main(args)
        assert "val: label maps of" not in capsys.readouterr().out
    assert json.loads((noisy / FILE).read_text())["val"]["cases"] == len(store.splits.select(0)[1])


def test_an_unfinished_evaluation_leaves_no_summary(noisy, monkeypatch):
    evaluate.main(evaluate.Args(run=str(noisy)))

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(score_run, "write_nifti", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(evaluate.Args(run=str(noisy)))
    assert not (noisy / "evaluation" / "test" / "summary.json").exists()


def test_evaluate_takes_several_runs_and_mirrored_slices(store, tmp_path, monkeypatch):
    models = [Threshold(80.0), Threshold(110.0)]
    runs = [
        export_run(tmp_path / name, monkeypatch, models[0], size_px="96x96", store=str(store.path)) for name in "ab"
    ]
    loaded = iter(models * 3)
    monkeypatch.setattr(region_models, "build_model", lambda *a, **k: next(loaded))
    both = f"[{runs[0]},{runs[1]}]"
    with pytest.raises(InputError, match="names several runs: say with output=DIR"):
        evaluate.main(evaluate.Args(run=both))
    evaluate.main(evaluate.Args(run=both, output=str(tmp_path / "out"), tta="flip"))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["tta"] == "flip" and summary["step"] == [None, None] and summary["postprocess"] == {}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"cases.csv", "contours.png", "surfaces.png", "panel.png", "predictions"} <= names
    with open(tmp_path / "out" / "cases.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == store.splits.test and float(rows[0]["findings_kidney_right_ml"]) > 0
    assert "findings_tumor_ml" not in rows[0]  # these runs predict no tumor


VOXEL_ML = 3.0 * 0.8 * 0.8 / 1000  # of the store's cases


@pytest.fixture
def folds(store, tmp_path, monkeypatch):
    """Runs of two folds with one val case each, and label maps drawn by hand as what evaluate left of them: the first
    is the truth and a speck of 20 voxels, the second the truth with a hole of one voxel."""
    deep = [fold for fold in range(5) if store.cases[store.row[store.splits.folds[fold][0]]].shape[0] >= 4][:2]
    runs = []
    for fold, fault in zip(deep, ("speck", "hole"), strict=True):
        run = tmp_path / f"run_{fault}"
        export_run(run, monkeypatch, Threshold(80.0), size_px="96x96", store=str(store.path), fold=fold)
        (case_id,) = store.splits.folds[fold]
        row = store.row[case_id]
        predicted = (np.asarray(store.label(row)) > 0).astype(np.uint8)
        if fault == "speck":
            predicted[1:3, :2, :5] = 1
        else:
            predicted[(2, *np.argwhere(predicted[2]).mean(axis=0).astype(int))] = 0
        write_nifti(
            run / "evaluation" / "val" / "predictions" / f"{case_id}.nii.gz", predicted, store.cases[row].geometry
        )
        about = {"step": None, "store_sha256": store.fingerprint(), "tta": "none", "postprocess": {}}
        (run / "evaluation" / "val" / "summary.json").write_text(json.dumps(about))
        runs.append(run)
    return runs, [store.row[store.splits.folds[fold][0]] for fold in deep]


def pool(runs, output, **more):
    postprocess.main(postprocess.Args(run=f"[{','.join(map(str, runs))}]", output=str(output), **more))
    return json.loads((output / FILE).read_text())


def test_rules_for_the_mean_of_folds_are_chosen_once_on_all_of_their_val_cases(folds, store, tmp_path):
    runs, rows = folds
    kidneys = [int((np.asarray(store.label(row)) > 0).sum()) for row in rows]
    stored = pool(runs, tmp_path / "all", min_gain=0)
    assert stored["rules"] == {"fill_holes": True, "min_kidney_ml": 1.0}  # one fault is of one fold, one of the other
    assert stored["kept"][0]["rule"] == "min_kidney_ml" and 20 * VOXEL_ML < 1.0 < min(kidneys) * VOXEL_ML
    with_speck = 2 * kidneys[0] / (2 * kidneys[0] + 20)
    with_hole = 2 * (kidneys[1] - 1) / (2 * (kidneys[1] - 1) + 1)
    assert stored["val"] == {"cases": 2, "before": pytest.approx((with_speck + with_hole) / 2), "after": 1.0}
    assert stored["step"] == [None, None]
    for run, alone in zip(runs, ({"min_kidney_ml": 1.0}, {"fill_holes": True}), strict=True):
        postprocess.main(postprocess.Args(run=str(run), min_gain=0))
        assert json.loads((run / FILE).read_text())["rules"] == alone


def test_evaluate_and_predict_take_the_rules_of_exactly_these_runs(folds, raw, store, tmp_path, capsys):
    runs, _ = folds
    both, rules = f"[{runs[1]},{runs[0]}]", tmp_path / "all" / FILE  # in any order: it is the same mean
    pool(runs, tmp_path / "all", min_gain=0)
    evaluate.main(evaluate.Args(run=both, output=str(tmp_path / "test"), rules=str(rules)))
    assert f"fill_holes, min_kidney_ml=1 (chosen on val, {rules})" in capsys.readouterr().out
    summary = json.loads((tmp_path / "test" / "summary.json").read_text())
    assert summary["postprocess"] == {"fill_holes": True, "min_kidney_ml": 1.0}
    case_id = store.splits.test[0]
    predict.main(predict.Args(run=both, input=str(raw / case_id), output=str(tmp_path / "labels"), rules=str(rules)))
    assert json.loads((tmp_path / "labels" / f"{case_id}.json").read_text())["postprocess"] == summary["postprocess"]
    cleaned, scored = (
        read_labels(tmp_path / name / f"{case_id}.nii.gz").array for name in ("labels", "test/predictions")
    )
    assert np.array_equal(cleaned, scored)
    for other in (str(runs[0]), f"[{runs[0]},{shutil.copytree(runs[0], tmp_path / 'copy')}]"):
        with pytest.raises(InputError, match="was chosen for other weights than those of run="):
            evaluate.main(evaluate.Args(run=other, output=str(tmp_path / "other"), rules=str(rules)))
    with pytest.raises(InputError, match="nowhere.json: cannot be read"):
        evaluate.main(evaluate.Args(run=both, output=str(tmp_path / "other"), rules="nowhere.json"))


def test_runs_that_have_no_common_mean_are_refused(folds, store, tmp_path, monkeypatch):
    runs, _ = folds
    with pytest.raises(InputError, match="both validate case_.*, which would count twice"):
        pool([runs[0], shutil.copytree(runs[0], tmp_path / "copy")], tmp_path / "all")
    where = {"size_px": "96x96", "store": str(store.path), "fold": 4}
    tumor = export_run(tmp_path / "tumor", monkeypatch, Threshold(80.0), regions=("tumor",), **where)
    with pytest.raises(InputError, match="different regions: kidney_and_mass and tumor"):
        pool([runs[0], tumor], tmp_path / "all")
    other = shutil.copytree(store.path, tmp_path / "store")
    splits = json.loads((other / "splits.json").read_text())
    splits["folds"] = splits["folds"][::-1]
    (other / "splits.json").write_text(json.dumps(splits))
    elsewhere = export_run(tmp_path / "other", monkeypatch, Threshold(80.0), **where | {"store": str(other)})
    with pytest.raises(InputError, match="are of different stores"):
        pool([runs[0], elsewhere], tmp_path / "all")
    assert not (tmp_path / "all" / FILE).exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"run": "nowhere"}, "run=nowhere: no such folder"),
        ({"run": "[a,b]"}, "run=a: no such folder. Name a trained run, or several"),
        ({"run": "[.,..]"}, r"run=\[.,..\] names several runs: say with output=DIR where their common rules go"),
        ({"run": ".", "output": "x"}, "output=x is for several runs"),
        ({"run": ".", "min_gain": 2.0}, "min_gain=2.0: use 0 or more, below 1"),
    ],
)
def test_what_cannot_be_tuned_is_refused(args, words):
    with pytest.raises(InputError, match=words):
        postprocess.main(postprocess.Args(**args))


def test_rules_are_not_chosen_on_cases_that_were_trained_on(noisy, store, tmp_path):
    other = shutil.copytree(store.path, tmp_path / "other")
    cases = json.loads((other / "cases.json").read_text())
    assert Store(other).cases[0].voxels_sha256 == cases[0]["voxels_sha256"]
    splits = json.loads((other / "splits.json").read_text())
    splits["folds"][0] = []
    (other / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match="split=val: this store has no such cases"):
        postprocess.main(postprocess.Args(run=str(noisy), store=str(other)))
