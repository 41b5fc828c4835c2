import numpy as np
import pytest
from PIL import Image

from kits_dist.figures import cases as case_figures
from kits_dist.figures.cases import SelectedCase, draw_cases, expected_labels, select_cases
from kits_dist.imaging.nifti import write_nifti
from kits_dist.labels import REGIONS

ALL = tuple(REGIONS)


def table(path, rows, region="tumor"):
    lines = [f"case,{region}_dice,{region}_truth_ml", *(f"{case},{dice},{ml}" for case, dice, ml in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_worst_median_and_best_of_those_that_have_the_region(tmp_path):
    rows = [("a", 0.9, 5), ("b", 0.1, 5), ("c", 1.0, 0), ("d", 0.5, 5), ("e", 0.0, 0), ("f", 0.6, 5)]
    assert select_cases(table(tmp_path / "cases.csv", rows), "tumor") == [
        SelectedCase("worst", "b", 0.1),
        SelectedCase("median", "f", 0.6),
        SelectedCase("best", "a", 0.9),
    ]
    assert [one.rank for one in select_cases(table(tmp_path / "two.csv", rows[:2]), "tumor")] == ["worst", "median"]
    assert select_cases(table(tmp_path / "one.csv", rows[:1]), "tumor") == [SelectedCase("worst", "a", 0.9)]
    assert select_cases(table(tmp_path / "none.csv", rows[2:3]), "tumor") == []


@pytest.mark.parametrize("regions", [ALL, ("kidney_and_mass",), ("tumor",)], ids="+".join)
def test_a_perfect_prediction_looks_like_what_is_expected(store, tmp_path, regions):
    cases = [case for case in store.cases if case.voxels["tumor"]][:3]
    for case in cases:
        truth = np.asarray(store.label(store.row[case.case_id]))
        write_nifti(tmp_path / "predictions" / f"{case.case_id}.nii.gz", expected_labels(truth, regions), case.geometry)
    region = regions[-1]
    table(tmp_path / "cases.csv", [(case.case_id, k / 4, 1) for k, case in enumerate(cases)], region)
    draw_cases(tmp_path, store, regions)
    surfaces, contours = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("surfaces", "contours"))
    side, margin, head, text = case_figures.SIDE_PX, 6, 44, 18
    for k in range(3):
        y = head + k * (side + text + margin) + text
        for sheet, columns in ((surfaces, (0, 1)), (contours, (1, 2))):
            left, right = (sheet[y : y + side, margin + c * (side + margin) :][:, :side] for c in columns)
            assert np.array_equal(left, right) and len(np.unique(left.reshape(-1, 3), axis=0)) > 20


def test_without_a_case_that_has_the_region_nothing_is_drawn(store, tmp_path):
    table(tmp_path / "cases.csv", [("case_00000", 1.0, 0)])
    draw_cases(tmp_path, store, ALL)
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]


@pytest.mark.parametrize("shape", [(100, 80), (30, 200)])
def test_the_window_is_square_in_mm_and_within_the_slice(shape):
    pixel_mm = (2.0, 1.0)
    for box in ((slice(40, 45), slice(30, 40)), (slice(0, 3), slice(70, 80)), (slice(10, 30), slice(0, 80))):
        rows, columns = case_figures._square(box, shape, pixel_mm)
        for part, whole, length in zip((rows, columns), box, shape, strict=True):
            assert 0 <= part.start <= whole.start and min(whole.stop, length) <= part.stop <= length
        high, wide = ((part.stop - part.start) * mm for part, mm in zip((rows, columns), pixel_mm, strict=True))
        if rows.stop - rows.start < shape[0] and columns.stop - columns.start < shape[1]:
            assert abs(high - wide) <= 2


def test_expected_labels_are_those_of_a_perfect_model():
    truth = np.array([[[0, 1, 2, 3]]], np.uint8)
    assert expected_labels(truth, ("kidney_and_mass",)).tolist() == [[[0, 1, 1, 1]]]
    assert expected_labels(truth, ("tumor",)).tolist() == [[[0, 0, 2, 0]]]
    assert expected_labels(truth, ALL).tolist() == truth.tolist()
