import csv
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from kits_dist import evaluate
from kits_dist.evaluation import score_jobs
from kits_dist.imaging.datasets import MARKER
from kits_dist.imaging.nifti import kits_geometry, read_labels, write_nifti
from kits_dist.labels import REGIONS
from kits_dist.utils.errors import InputError, JobFailed, MissingInput


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
    with pytest.raises(InputError, match="nothing for case_00004.*name it: store=DIR. Else predict them.*missing=zero"):
        run(*folders, tmp_path / "b")
    summary, _ = run(*folders, tmp_path / "b", missing="zero")
    assert summary["missing"] == "zero" and summary["missing_cases"] == ["case_00004"] and summary["cases"] == 6
    assert summary["regions"]["kidney_and_mass"]["dice"] == pytest.approx(before - 1 / 6)
    assert summary["regions"]["kidney_and_mass"]["misses"] == 1
    assert summary["lesions"]["found"] == 4 and summary["lesions"]["true"] == 6  # case 0 has its tumor not found


def test_a_missing_prediction_scores_0_also_where_there_is_nothing_to_find(folders, tmp_path):
    (folders[0] / "case_00003.nii.gz").unlink()  # has no cyst: an empty prediction would score 1
    summary, rows = run(*folders, tmp_path / "out", missing="zero")
    assert rows[3]["cyst_dice"] == "0" and summary["regions"]["cyst"]["dice"] == pytest.approx(5 / 6, abs=0.1)
    assert summary["regions"]["cyst"]["misses"] == 1 and rows[3]["cyst_miss"] == "1" and rows[3]["cyst_hd95_mm"] == ""


def test_distances_count_their_misses(folders, tmp_path):
    summary, rows = run(*folders, tmp_path / "out")
    tumor = summary["regions"]["tumor"]
    assert (tumor["misses"], tumor["distance_cases"], tumor["cases_with_region"]) == (1, 5, 6)
    assert rows[0]["tumor_hd95_mm"] == "" and rows[0]["tumor_miss"] == "1"
    assert tumor["hd95_mm"] == pytest.approx(np.mean([float(row["tumor_hd95_mm"]) for row in rows[1:]]))
    cyst = summary["regions"]["cyst"]  # both empty in the odd cases: no distance, and no miss
    assert (cyst["misses"], cyst["distance_cases"]) == (0, 3)


def test_slice_and_pooled_dice_are_other_means(folders, tmp_path):
    summary, rows = run(*folders, tmp_path / "out")
    truth, predicted = (
        read_labels(path).array == 2
        for path in (folders[1] / "case_00001" / "aggregated_MAJ_seg.nii.gz", folders[0] / "case_00001.nii.gz")
    )
    by_slice = [2 * (p & t).sum() / (p.sum() + t.sum()) for p, t in zip(predicted, truth, strict=True) if (p | t).any()]
    assert float(rows[1]["tumor_dice_slice"]) == pytest.approx(np.mean(by_slice)) and rows[1]["tumor_slices"] == "3"
    weights = np.array([int(row["tumor_slices"]) for row in rows])
    values = np.array([float(row["tumor_dice_slice"]) for row in rows])
    tumor = summary["regions"]["tumor"]
    assert tumor["dice_slice"] == pytest.approx((weights * values).sum() / weights.sum(), abs=1e-8)
    assert tumor["slices"] == weights.sum() and tumor["dice_slice_ci95"][0] < tumor["dice_slice"]


def test_tables_have_titles_and_no_interval_of_few_cases(folders, tmp_path, capsys):
    predictions, truth = folders
    (predictions / "case_00005.nii.gz").unlink()
    shutil.rmtree(truth / "case_00005")
    evaluate.main(evaluate.Args(compare=(str(predictions),) * 2, truth=str(truth), output=str(tmp_path / "out")))
    said = capsys.readouterr().out.splitlines()
    titles = [said[place - 1] for place, line in enumerate(said) if line.startswith("data: ") and place]
    assert titles[:2] == [f"A: {predictions}", f"B: {predictions}"]
    dice = next(line for line in said if line.startswith("kidney_and_mass"))
    assert "too few" in dice and " .. " not in dice


def test_the_poster_s_measure_is_printed_where_it_is_asked_for(folders, tmp_path, capsys):
    summary, rows = run(*folders, tmp_path / "out")
    assert "the poster's measure" not in capsys.readouterr().out
    kidney = summary["regions"]["kidney_and_mass"]
    slices = [
        read_labels(path / "aggregated_MAJ_seg.nii.gz").array.any(axis=(1, 2)) for path in sorted(folders[1].iterdir())
    ]
    assert kidney["dice_poster_empty"] == pytest.approx(1 - np.concatenate(slices).mean())
    assert [row["kidney_and_mass_poster_slices"] for row in rows] == [str(len(of_case)) for of_case in slices]
    run(*folders, tmp_path / "again", poster=True)
    said = f"kidney_and_mass {kidney['dice_poster']:.3f} (predicting nothing: {kidney['dice_poster_empty']:.3f}), tumor"
    assert said in capsys.readouterr().out


def test_the_poster_s_measure_is_refused_where_it_would_not_be_printed():
    with pytest.raises(InputError, match="poster=true prints with run= and predictions="):
        evaluate.Args(compare=("a", "b"), poster=True)


def test_the_challenge_s_own_table(folders, tmp_path):
    _, rows = run(*folders, tmp_path / "out")
    lines = (tmp_path / "out" / "challenge.csv").read_text().split("\n")
    assert lines[0] == "caseID,Dice_kidney,Dice_masses,Dice_tumor,SD_kidney,SD_masses,SD_tumor"
    columns = [f"{region}_{figure}" for figure in ("dice", "surface_dice") for region in REGIONS]
    for line, row in zip(lines[1:-1], rows, strict=True):
        assert line == ",".join([row["case"], *(f"{float(row[column]):0.8f}" for column in columns)])
    means = [np.mean([float(row[column]) for row in rows]) for column in columns]
    name, *last = lines[-1].split(",")  # no line end behind it
    assert name == "average" and np.allclose([float(n) for n in last], means, rtol=0, atol=1.1e-8)
    run(*folders, tmp_path / "out", regions=("tumor",))
    assert not (tmp_path / "out" / "challenge.csv").exists()  # the challenge's table has three regions


def test_the_table_of_cases_has_no_summary_row_and_json_no_nan(folders, tmp_path, capsys):
    for path in folders[0].iterdir():
        volume = read_labels(path)
        write_nifti(path, np.zeros_like(volume.array), volume.geometry)
    summary, rows = run(*folders, tmp_path / "out")
    assert len(rows) == 6 and summary["regions"]["tumor"]["hd95_mm"] is None
    assert summary["regions"]["tumor"]["hd95_mm_ci95"] is None and summary["regions"]["tumor"]["misses"] == 6
    assert summary["lesions"]["under_5_ml"]["dice"] == 0 and summary["lesions"]["over_30_ml"]["dice"] is None
    assert "NaN" not in (tmp_path / "out" / "summary.json").read_text()
    printed = capsys.readouterr().out
    assert (
        "tumors found: 0 of 6 (0.000, 0.000 .. 0.000); false positives: 0.00 per case" in printed
        and "nan" not in printed
    )


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


def test_with_a_store_its_test_cases_alone_are_scored(folders, store, tmp_path):
    expected = run(*folders, tmp_path / "all")[1]
    summary, rows = run(*folders, tmp_path / "test", store=str(store.path))
    assert [row["case"] for row in rows] == sorted(store.splits.test) and 0 < len(rows) < 6
    assert summary["split"] == "test" and all(row in expected for row in rows)
    (folders[0] / f"{store.splits.test[0]}.nii.gz").unlink()
    with pytest.raises(InputError, match=f"nothing for {store.splits.test[0]}"):
        run(*folders, tmp_path / "out", store=str(store.path))
    shutil.rmtree(folders[1] / store.splits.test[0])
    with pytest.raises(InputError, match=f"truth has no {store.splits.test[0]}, which the split holds"):
        run(*folders, tmp_path / "out", store=str(store.path))
    with pytest.raises(InputError, match="split=val: which cases it holds depends on a run's fold"):
        run(*folders, tmp_path / "out", store=str(store.path), split="val")


def renamed(folder, how):
    """The predictions under other names: how(NAME) -> path below a new folder."""
    target = folder.parent / "renamed"
    for path in sorted(folder.iterdir()):
        new = target / how(path.name.removesuffix(".nii.gz"))
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, new)
    return target


@pytest.mark.parametrize(
    "how",
    [
        "{0}/{0}_seg.nii.gz",
        "{0}_seg.nii.gz",
        "{0}_trans.nii.gz",
        "{0}_0000/{0}_0000_seg.nii.gz",
        "{0}/segmentation.nii.gz",
    ],
)
def test_names_of_other_systems(folders, tmp_path, how):
    expected = run(*folders, tmp_path / "a")[0]
    target = renamed(folders[0], how.format)
    (target / "plans.json").write_text("{}")
    assert run(target, folders[1], tmp_path / "b")[0] == expected


def test_names_that_are_not_utf8_and_upper_case_endings_are_scored(folders, tmp_path):
    predictions = folders[0]
    strange = os.fsdecode(b"Ni\xe8re")
    for kind, name in (("p", f"{strange}.nii.gz"), ("t", f"{strange}.NII.GZ")):
        (tmp_path / kind).mkdir()
        shutil.copy(predictions / "case_00002.nii.gz", tmp_path / kind / name)
    for output in ("one", "two"):
        _, rows = run(tmp_path / "p", tmp_path / "t", tmp_path / output)
        assert [row["case"] for row in rows] == ["Ni\\udce8re"] and float(rows[0]["tumor_dice"]) == 1
    evaluate.main(evaluate.Args(compare=(str(tmp_path / "one"), str(tmp_path / "two")), output=str(tmp_path / "c")))


def test_two_files_of_one_case_are_refused(folders, tmp_path):
    shutil.copy(folders[0] / "case_00000.nii.gz", folders[0] / "case_00000_seg.nii.gz")
    with pytest.raises(
        InputError, match="both .*case_00000.nii.gz and .*case_00000_seg.nii.gz are case_00000. Keep one"
    ):
        run(*folders, tmp_path / "out")


def test_what_a_prediction_may_be(folders, tmp_path):
    expected = run(*folders, tmp_path / "a")[0]
    path = folders[0] / "case_00002.nii.gz"
    image = nib.load(path)
    labels = np.asarray(image.dataobj)
    for array in (labels.astype(np.float64), labels.astype(np.int32), labels[..., None]):  # 4-D with one time
        nib.save(nib.Nifti1Image(array, image.affine), path)
        assert run(*folders, tmp_path / "b")[0] == expected
    for array, words in (
        (labels + 0.5, r"case_00002.nii.gz: label values \[0.5, 1.5"),
        (labels.astype(np.int16) * 100, r"case_00002.nii.gz: label values \[100.0, 200.0"),
        (np.stack([labels] * 2, axis=-1), "case_00002.nii.gz: 4 axes, .*x2; .* Split 4-D files"),
    ):
        nib.save(nib.Nifti1Image(array, image.affine), path)
        with pytest.raises(JobFailed, match=f"1 of 6 could not be scored: .*{words}"):
            run(*folders, tmp_path / "c")
    nib.save(image, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(JobFailed, match="case_00002.nii.gz: damaged or truncated"):
        run(*folders, tmp_path / "c")
    assert not any((tmp_path / "c").iterdir())


def test_a_truth_of_two_kinds_is_refused(folders, tmp_path):
    """A mean over the single files would lack the cases in folders."""
    predictions, truth = folders
    both = shutil.copytree(truth, tmp_path / "both")
    shutil.copy(predictions / "case_00002.nii.gz", both / "case_00009.nii.gz")
    with pytest.raises(InputError, match="truth=.* holds folders of cases and single label maps. Keep one kind"):
        run(predictions, both, tmp_path / "out")


def test_a_grid_elsewhere_is_refused_with_both_affines(folders, tmp_path):
    path = folders[0] / "case_00000.nii.gz"
    image = nib.load(path)
    for change, words in ((5e-4, ""), (2e-3, r"is not on the grid of .*: affine \[\[.*0.002\].* and \[\[")):
        affine = image.affine.copy()
        affine[0, 3] += change
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
        if words:
            with pytest.raises(JobFailed, match=words):
                run(*folders, tmp_path / "out")
        else:
            run(*folders, tmp_path / "out")


def same_tables(a: Path, b: Path) -> bool:
    return all(
        (a / name).read_bytes() == (b / name).read_bytes() for name in ("cases.csv", "challenge.csv", "summary.json")
    )


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(InputError, match="workers=-1 must be 0"):
        evaluate.Args(run="a", workers=-1)


def test_other_processes_are_started_where_they_pay_off(folders, tmp_path, monkeypatch):
    asked = []

    def here(function, items, title, workers):
        asked.append((len(items), workers))
        return [(item, function(item)) for item in items]

    monkeypatch.setattr(score_jobs, "run_all", here)
    monkeypatch.setattr(score_jobs, "affordable_workers", lambda processes: 3)
    run(*folders, tmp_path / "quick")
    monkeypatch.setattr(score_jobs, "WORTH_S", 0)
    run(*folders, tmp_path / "long")
    assert asked == [(5, 1), (5, 3)]  # the first case was scored to see how long one takes
    assert same_tables(tmp_path / "quick", tmp_path / "long")


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
    with pytest.raises(InputError, match="name one of run="):
        evaluate.Args()
