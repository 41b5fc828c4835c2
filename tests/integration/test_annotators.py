"""A run scored against several annotators, and the majority of real annotations."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from kits_dist import evaluate
from kits_dist.imaging import annotators
from kits_dist.imaging.nifti import kits_geometry, read_labels, write_nifti
from kits_dist.utils.errors import InputError
from tests.helpers.runs import Threshold
from tests.integration import test_geometry as geometry
from tests.unit.imaging.test_annotators import full_map

DATA = Path(os.environ.get("KITS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
needs_raters = pytest.mark.skipif(
    not (DATA / "kits_raters").is_dir(), reason="no kits_raters/ in the data folder; set KITS_DATA to one with it"
)


def test_a_run_against_samples(tmp_path, monkeypatch):
    label = geometry.wide_label()
    spacing = (3.0, 0.8, 0.7)
    geometry.write_cases(tmp_path / "raw", label, geometry.painted(label, geometry.BODY), spacing)
    for number, way in enumerate((1, -1)):  # three annotators who agree with the label
        for kind, inside in (("kidney", label > 0), ("tumor", label == 2), ("cyst", label == 3)):
            for n in (1, 2, 3):
                name = f"{kind}_instance-1_annotation-{n}.nii.gz"
                path = tmp_path / "truth" / f"case_{number:05d}" / "segmentations" / name
                write_nifti(path, inside[::way].astype(np.uint8), kits_geometry(label.shape, spacing))
    model = Threshold(*geometry.BETWEEN)
    by_file, _, _ = geometry.evaluated(tmp_path, monkeypatch, model, size_px="32x64")
    arguments = {"run": str(tmp_path / "run"), "store": str(tmp_path / "store"), "reference": "samples"}
    evaluate.main(evaluate.Args(**arguments, truth=str(tmp_path / "truth")))
    output = tmp_path / "run" / "evaluation" / "test_samples"
    (by_samples,) = geometry.rows_of(output)
    assert by_samples == by_file and 0 < float(by_file["tumor_dice"]) < 1
    assert json.loads((output / "summary.json").read_text())["reference"] == "samples"
    with pytest.raises(InputError, match="reference=samples is made of truth=DIR/CASE/segmentations/"):
        evaluate.Args(**arguments)
    (tmp_path / "other" / "case_00009").mkdir(parents=True)
    with pytest.raises(InputError, match="other has no case_0000., which the split holds"):
        evaluate.main(evaluate.Args(**arguments, truth=str(tmp_path / "other")))


@pytest.mark.kits
@needs_raters
@pytest.mark.parametrize("case_id", ["case_00152", "case_00210"])
def test_the_majority_of_real_annotations_is_the_published_label(case_id):
    published = read_labels(DATA / "kits23_labels" / case_id / "segmentation.nii.gz").array
    assert np.array_equal(
        full_map(annotators.majority(annotators.read_annotations(DATA / "kits_raters" / case_id))), published
    )
