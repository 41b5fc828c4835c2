"""Cross-validation: the val scores of the folds become one table out of fold, and one page."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from kits_dist import crossval, report
from kits_dist.cli import load
from kits_dist.config import Config, save_config
from kits_dist.evaluation import cross_validation
from kits_dist.evaluation.case_scores import score_case
from kits_dist.evaluation.summary import summarize
from kits_dist.evaluation.tables import read_scores, write_tables
from kits_dist.inference.postprocessing import FILE
from kits_dist.labels import scored_regions
from kits_dist.utils.errors import InputError, MissingInput

REGIONS = scored_regions(("kidney_and_mass", "mass", "tumor"))
STEPS = [10, 20, 30, 40, 50]
RAW = {"reference": "file", "tta": "none", "postprocess": {}}


def scored(store, case_id, shift):
    """The truth moved by `shift` columns, scored."""
    truth = np.asarray(store.label(store.row[case_id]))
    spacing_mm = store.cases[store.row[case_id]].spacing_mm
    return score_case(case_id, np.roll(truth, shift, axis=2), truth, spacing_mm, REGIONS)


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    """What train and evaluate leave of five folds, whose predictions are the truth moved by 0..4 columns."""
    folder = tmp_path_factory.mktemp("made") / "folds"
    for fold, (cases, step) in enumerate(zip(store.splits.folds, STEPS, strict=True)):
        run = folder / f"fold_{fold}"
        scores = [scored(store, case_id, fold) for case_id in cases]
        summary = summarize(scores, "kits", "val") | RAW | {"step": step, "store_sha256": store.fingerprint()}
        write_tables(run / "evaluation" / "val", scores, summary)
        save_config(load(Config, [f"run={run}", f"data.store={store.path}", f"data.fold={fold}"]), run / "config.yaml")
        (run / "environment.json").write_text(json.dumps({"data": "kits", "torch": "2"}))
        (run / "log.jsonl").write_text(
            "\n".join(json.dumps({"step": s, "train/loss": 1 / s, "val/dice_grid/tumor": 0.1 * fold}) for s in (1, 2))
        )
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "folds"))


def with_test(folder, store, rules):
    """The same with the mean's scores on test, the rules' later ones perfect."""
    (folder / FILE).write_text(
        json.dumps({"rules": rules, "step": STEPS, "val": {"cases": 5, "before": 0.5, "after": 0.625}, "alone": []})
    )
    for name, shift, chosen in (("test_raw", 2, {}), ("test", 0, rules)):
        scores = [scored(store, case_id, shift) for case_id in store.splits.test]
        about = RAW | {"step": STEPS, "postprocess": chosen}
        write_tables(folder / "evaluation" / name, scores, summarize(scores, "kits", "test") | about)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_table_of_cases_is_read_back_as_it_was_scored(store, tmp_path):
    scores = [scored(store, case_id, 1)._replace(measurements={"tumor_ml": 1.5, "gone": None}) for case_id in store.row]
    write_tables(tmp_path, scores, {})
    again = read_scores(tmp_path / "cases.csv", list(REGIONS))
    for a, b in zip(scores, again, strict=True):
        assert (a.case_id, a.regions.keys(), a.measurements) == (b.case_id, b.regions.keys(), b.measurements)
        for name, figures in (*a.regions.items(), ("lesions", a.lesions)):  # kidney is told apart from kidney_and_mass
            read = b.lesions if name == "lesions" else b.regions[name]
            assert read.keys() == figures.keys()
            for key, value in figures.items():
                assert read[key] == (value if value is None else pytest.approx(value, rel=1e-9)), (name, key)
    with pytest.raises(InputError, match="kidney_and_mass_dice is of none of tumor, lesions, findings"):
        read_scores(tmp_path / "cases.csv", ["tumor"])
    (tmp_path / "cases.csv").write_text("case,tumor_dice\nx,1\n")
    with pytest.raises(InputError, match="no column mass_dice"):
        read_scores(tmp_path / "cases.csv", ["tumor", "mass"])


def test_out_of_fold_is_the_mean_over_all_cases_of_all_folds(folder, store, capsys):
    crossval.main(crossval.Args(run=str(folder)))
    written = json.loads((folder / "evaluation" / "out_of_fold" / "summary.json").read_text())
    everyone = [scored(store, case, fold) for fold, cases in enumerate(store.splits.folds) for case in cases]
    expected = summarize(sorted(everyone, key=lambda score: score.case_id), "kits", "out_of_fold")
    assert written["cases"] == 5 and written["step"] == STEPS
    for name in REGIONS:
        assert written["regions"][name].keys() == expected["regions"][name].keys()
        for key, value in expected["regions"][name].items():
            assert written["regions"][name][key] == pytest.approx(value, rel=1e-8), key
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "data: kits" and re.match(r"fold 0, val +1  1\.000 \(1\.000 \.\. 1\.000\)", printed[2])
    dice = written["regions"]["kidney_and_mass"]
    low, high = dice["dice_ci95"]
    assert f"all 5, out of fold       5  {dice['dice']:.3f} ({low:.3f} .. {high:.3f})" in printed[7]
    assert not any("test," in line for line in printed)  # it was not evaluated


def test_one_table_and_one_page_hold_folds_and_test_before_and_after_the_rules(folder, store, capsys):
    with_test(folder, store, {"min_tumor_ml": 0.5})
    crossval.main(crossval.Args(run=str(folder)))
    printed = capsys.readouterr().out
    before, after = (
        re.search(rf"^test, {name} +1  (\d\.\d+)", printed, flags=re.M) for name in ("mean of all", "after rules")
    )
    assert float(before[1]) < float(after[1]) == 1.0
    assert "rules: min_tumor_ml=0.5; mean Dice out of fold 0.5000 -> 0.6250" in printed
    report.main(report.Args(run=str(folder)))
    page = (folder / "report.html").read_text()
    for row in cross_validation.table(folder):
        assert f"<tr><td>{row.title}</td><td>{row.cases}</td><td><b>{row.dice['kidney_and_mass'][0]:.3f}</b>" in page
    assert [page.count(f">fold {fold}</text>") for fold in range(5)] == [2] * 5  # a curve each in two charts
    assert "weights of step 10, 20, 30, 40, 50" in page and "Dice, out of fold (5 cases" in page
    assert "http" not in page and "contains no patient images" in page


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"postprocess": {"two_kidneys": True}}, r"fold_1/evaluation/val has postprocess=.*Run evaluate again: python"),
        ({"store_sha256": "other"}, "fold_1/evaluation/val has store_sha256=other"),
        ({"tta": "flip"}, "fold_1/evaluation/val has tta=flip, not none"),
        ({"reference": "samples"}, "fold_1/evaluation/val has reference=samples"),
        ({"regions": {"tumor": {}}}, "fold_1 predicts other regions than"),
    ],
)
def test_scores_that_have_no_common_mean_are_refused(folder, fault, words):
    change(folder / "fold_1" / "evaluation" / "val" / "summary.json", **fault)
    with pytest.raises(InputError, match=words):
        crossval.main(crossval.Args(run=str(folder)))
    assert not (folder / "evaluation").exists()


def test_a_fold_that_is_missing_or_unfinished_or_of_other_cases_is_named(folder, tmp_path):
    args = crossval.Args(run=str(folder))
    tables = folder / "fold_1" / "evaluation" / "val"
    lines = (tables / "cases.csv").read_text()
    (tables / "cases.csv").write_text(lines.replace("case_", "case_9"))
    with pytest.raises(InputError, match="fold_1/evaluation/val is not of the cases of its fold: case_"):
        crossval.main(args)
    (tables / "summary.json").unlink()
    with pytest.raises(MissingInput, match="fold_1/evaluation/val: not evaluated yet, or not to its end"):
        crossval.main(args)
    (tables / "summary.json").write_text('{"cases": 1}')
    with pytest.raises(InputError, match="summary.json lacks regions, step"):
        crossval.main(args)
    (folder / "fold_4").rename(tmp_path / "away")
    with pytest.raises(InputError, match="holds 4 folds, but .* has 5"):
        crossval.main(args)
    (folder / "fold_0").rename(folder / "fold_9")
    with pytest.raises(MissingInput, match="must hold fold_0, fold_1, .* found: fold_1, fold_2, fold_3, fold_9"):
        crossval.main(args)
    with pytest.raises(MissingInput, match="found: none"):
        crossval.main(crossval.Args(run=str(tmp_path)))


def test_a_table_never_mixes_weights(folder, store):
    with_test(folder, store, {"two_kidneys": True})
    crossval.main(crossval.Args(run=str(folder)))
    change(folder / FILE, rules={})
    with pytest.raises(InputError, match="evaluation/test was not made with the rules of postprocess.json"):
        cross_validation.table(folder)
    for path in (folder / FILE, folder / "evaluation" / "test" / "summary.json"):
        change(path, step=[1])
        with pytest.raises(
            InputError, match=rf"{path.name}|test is of weights of steps \[1\], the folds' are of \[10, "
        ):
            cross_validation.table(folder)
    with_test(folder, store, {})
    (folder / FILE).write_text(json.dumps({"rules": {}, "step": STEPS}))
    with pytest.raises(InputError, match="damaged tables .*'val'"):
        crossval.main(crossval.Args(run=str(folder)))
