"""Scores on cases whose CT is not in HU say so."""

import json
import shutil

import numpy as np
import pytest

from kits_dist import evaluate, prepare
from kits_dist.data.store import Store
from kits_dist.evaluation import score_run
from kits_dist.evaluation.held_out import intensity_warnings
from kits_dist.imaging.nifti import read_image, write_nifti
from tests.helpers.runs import Threshold, export_run


@pytest.fixture(scope="module")
def foreign(raw, tmp_path_factory):
    """A store of cases that another program stored with an offset."""
    folder = tmp_path_factory.mktemp("foreign")
    shutil.copytree(raw, folder / "raw")
    for path in (folder / "raw").glob("case_*/imaging.nii.gz"):
        image = read_image(path)
        write_nifti(path, (image.array + 1024).astype(np.int16), image.geometry)
    prepare.main(prepare.Args(source=str(folder / "raw"), store=str(folder / "store"), workers=1))
    return Store(folder / "store")


def test_cases_that_are_not_in_hu_are_said_with_their_scores(foreign, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(score_run, "draw_cases", lambda *_: None)  # takes most of the time, tested elsewhere
    run = export_run(tmp_path / "run", monkeypatch, Threshold(80.0), size_px="96x96", store=str(foreign.path))
    evaluate.main(evaluate.Args(run=str(run)))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    warnings = json.loads((run / "evaluation" / "test" / "summary.json").read_text())["warnings"]
    assert list(warnings) == foreign.splits.test and len(said) == len(warnings)
    assert all("stored with an offset, likely +1024" in text for text in (*said, *warnings.values()))


def test_warnings_of_other_kinds_and_cases_are_left_out(foreign, tmp_path):
    store = Store(shutil.copytree(foreign.path, tmp_path / "store"))
    path = store.path / "axial" / "case_00001" / "case.json"
    record = json.loads(path.read_text())
    record["findings"] = [["case_00001", "warning", "no tumor", "x"], ["case_00001", "warning", "scale", "y"]]
    path.write_text(json.dumps(record))
    (store.path / "axial" / "case_00002" / "case.json").unlink()
    found = intensity_warnings(store, ["case_00001", "case_00002"])
    assert [(finding.case_id, finding.message) for finding in found] == [("case_00001", "y")]
