"""`evaluate` and `predict` with a cascade, from files to tables and label maps."""

import json

import numpy as np
import pytest

from kits_dist import evaluate, predict, prepare
from kits_dist.imaging.nifti import read_labels, write_nifti
from tests.unit.inference.test_cascade import Blind, runs, scan, truth


def test_predict_and_evaluate_run_the_cascade_in_one_command(tmp_path, monkeypatch, capsys):
    for number in range(3):
        labels = np.roll(truth(), number, axis=1)
        folder, volume = tmp_path / "raw" / f"case_{number:05d}", scan(labels)
        write_nifti(folder / "imaging.nii.gz", volume.array, volume.geometry)
        write_nifti(folder / "aggregated_MAJ_seg.nii.gz", labels, volume.geometry)
    store = tmp_path / "store"
    prepare.main(prepare.Args(source=str(tmp_path / "raw"), store=str(store), workers=1))
    splits = {"seed": 0, "test": ["case_00001", "case_00002"], "folds": [["case_00000"]]}
    (store / "splits.json").write_text(json.dumps(splits))
    one, two = runs(tmp_path, monkeypatch, first=Blind(90.0, beyond=80))
    evaluate.main(evaluate.Args(run=f"[{one},{two}]", split="test", store=str(store), panel=1, workers=1))
    printed = capsys.readouterr().out
    assert "phase 1 alone" in printed and "phase 2 alone, in the boxes of the annotation" in printed
    found = {
        name: json.loads((two / "evaluation" / f"test{name}" / "summary.json").read_text())
        for name in ("", "_phase1", "_phase2")
    }
    assert [list(summary["regions"]) for summary in found.values()] == [
        ["kidney_and_mass", "mass", "tumor", "kidney", "cyst"],
        ["kidney_and_mass"],
        ["mass", "tumor", "cyst"],
    ]
    assert found["_phase2"]["regions"]["tumor"]["dice"] == 1
    assert found[""]["regions"]["tumor"]["dice"] == 0.5
    assert found["_phase1"]["regions"]["kidney_and_mass"]["dice"] == pytest.approx(2 / 3)
    assert found[""]["runs"] == ["one", "two"]
    assert "stage" not in found[""] and "boxes of the annotation" in found["_phase2"]["stage"]
    evaluate.main(evaluate.Args(run=f"[{two},{one}]", split="test", store=str(store), panel=0, workers=1))
    assert not (one / "evaluation").exists()  # in whatever order, the tables are phase 2's
    pair = tuple(str(two / "evaluation" / name) for name in ("test", "test_phase2"))
    evaluate.main(evaluate.Args(compare=pair, output=str(tmp_path / "compared")))
    (note,) = json.loads((tmp_path / "compared" / "comparison.json").read_text())["notes"]
    assert note.startswith("A is a whole prediction, B phase 2 alone")
    evaluate.main(
        evaluate.Args(run=str(two), split="test", store=str(store), output=str(tmp_path / "alone"), workers=1)
    )
    assert (tmp_path / "alone" / "cases.csv").is_file()

    output = tmp_path / "out"
    predict.main(predict.Args(run=f"[{one},{two}]", input=str(tmp_path / "raw/case_00000"), output=str(output)))
    seen = truth()
    seen[..., 80:] = 0
    assert (read_labels(next(output.glob("*.nii.gz"))).array == seen).all()
