import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from kits_dist import evaluate
from kits_dist.data.sources import MARKER
from kits_dist.data.volume import kits_geometry, read_labels, write_nifti
from kits_dist.errors import InputError, JobFailed, MissingInput


def run(predictions, truth, output, **more):
    evaluate.main(evaluate.Args(predictions=str(predictions), truth=str(truth), output=str(output), **more))
    with open(output / "cases.csv") as file:
        return json.loads((output / "summary.json").read_text()), list(csv.DictReader(file))


@pytest.fixture
def folders(raw, tmp_path):
    """Truth in KiTS21 layout, predictions as loose files: perfect but for case 0, which has no tumor, and case 1,
    shifted."""
    truth, predictions = shutil.copytree(raw, tmp_path / "truth"), tmp_path / "predictions"
    for folder in sorted(truth.iterdir()):
        volume = read_labels(folder / "aggregated_MAJ_seg.nii.gz")
        array = volume.array.copy()
        if folder.name == "case_00000":
            array[array == 2] = 1
        if folder.name == "case_00001":
            array = np.roll(array, 3, axis=2)
        write_nifti(predictions / f"{folder.name}.nii.gz", array, volume.geometry)
    return predictions, truth


def test_scores_by_hand(folders, tmp_path):
    summary, rows = run(*folders, tmp_path / "out")
    tumor = [float(row["tumor_dice"]) for row in rows]
    assert [row["case"] for row in rows] == [f"case_{i:05d}" for i in range(6)]
    assert tumor[0] == 0 and 0 < tumor[1] < 1 and tumor[2:] == [1] * 4
    region = summary["regions"]["tumor"]
    assert region["dice"] == pytest.approx(np.mean(tumor), abs=1e-6)
    assert region["dice_ci95"][0] < region["dice"] < region["dice_ci95"][1]
    counts = np.array(
        [[int(row[f"tumor_{c}"]) for c in ("true_positive", "false_positive", "false_negative")] for row in rows]
    )
    tp, fp, fn = counts.sum(axis=0)
    assert region["dice_pooled"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert summary["cases"] == 6 and summary["data"] == "unknown"
    # odd cases hold no cyst, and none is predicted: both empty scores 1
    assert float(rows[3]["cyst_dice"]) == 1 and summary["regions"]["cyst"]["cases_with_region"] == 3
    voxel_ml = 3 * 0.8 * 0.8 / 1000
    assert float(rows[2]["tumor_truth_ml"]) == pytest.approx((counts[2, 0] + counts[2, 2]) * voxel_ml, abs=1e-3)


def test_the_mark_of_the_data_travels(folders, tmp_path):
    (folders[1] / MARKER).write_text('{"data": "phantom"}')
    assert run(*folders, tmp_path / "out")[0]["data"] == "phantom"


def test_another_orientation_of_the_same_grid_scores_the_same(folders, tmp_path):
    before = run(*folders, tmp_path / "a")[0]["regions"]
    for path in folders[0].iterdir():
        nib.save(nib.as_closest_canonical(nib.load(path)), path)
    assert run(*folders, tmp_path / "b")[0]["regions"] == before


def test_a_missing_prediction_is_an_error_or_a_zero_never_a_smaller_mean(folders, tmp_path):
    before = run(*folders, tmp_path / "a")[0]["regions"]["kidney_and_mass"]["dice"]
    (folders[0] / "case_00004.nii.gz").unlink()
    with pytest.raises(InputError, match="nothing for case_00004.*missing=zero"):
        run(*folders, tmp_path / "b")
    summary, _ = run(*folders, tmp_path / "b", missing="zero")
    assert summary["missing"] == "zero" and summary["missing_cases"] == ["case_00004"] and summary["cases"] == 6
    assert summary["regions"]["kidney_and_mass"]["dice"] == pytest.approx(before - 1 / 6)


def test_regions_that_a_system_cannot_predict_are_absent(folders, tmp_path):
    summary, _ = run(*folders, tmp_path / "out", regions=("kidney_and_mass",))
    assert list(summary["regions"]) == ["kidney_and_mass"]
    with pytest.raises(InputError, match="regions=.*choose from"):
        evaluate.Args(predictions="a", truth="b", output="c", regions=("liver",))


def test_one_bad_prediction_among_good_ones_is_named_and_there_is_no_mean(folders, tmp_path):
    (folders[0] / "case_00002.nii.gz").write_bytes(b"")
    with pytest.raises(JobFailed, match="1 of 6 could not be scored: .*case_00002.nii.gz: the file is empty"):
        run(*folders, tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()


def test_extra_cases_other_grids_and_wrong_folders_are_refused(folders, tmp_path):
    predictions, truth = folders
    volume = read_labels(predictions / "case_00000.nii.gz")
    write_nifti(predictions / "other.nii.gz", volume.array, volume.geometry)
    with pytest.raises(InputError, match="no truth for other"):
        run(predictions, truth, tmp_path / "out")
    (predictions / "other.nii.gz").unlink()
    for array, spacing, words in (
        (volume.array[:, :-1], (3.0, 0.8, 0.8), r"shape \(5, 63, 80\) and \(5, 64, 80\)"),
        (volume.array, (3.0, 0.8, 0.9), r"spacing \[3.0, 0.8, 0.9\] and \[3.0, 0.8, 0.8\] mm"),
    ):
        write_nifti(predictions / "case_00000.nii.gz", array, kits_geometry(array.shape, spacing))
        with pytest.raises(JobFailed, match=words):
            run(predictions, truth, tmp_path / "out")
    with pytest.raises(MissingInput, match="predictions=.*no such folder"):
        run(tmp_path / "nowhere", truth, tmp_path / "out")
    with pytest.raises(InputError, match="also needs truth=DIR"):
        evaluate.Args(predictions="a")
    with pytest.raises(InputError, match="name either run="):
        evaluate.Args()
