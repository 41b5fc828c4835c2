"""Intervals over cases, and two systems on the same cases."""

import json

import numpy as np
import pytest

from kits_dist import evaluate
from kits_dist.evaluation import comparison
from kits_dist.evaluation.bootstrap import Bootstrap
from kits_dist.imaging.nifti import kits_geometry, write_nifti
from kits_dist.utils.errors import InputError, MissingInput


def test_the_interval_covers_the_mean_and_shrinks_with_cases():
    rng = np.random.default_rng(0)
    for count in (8, 400):
        values = rng.normal(0.8, 0.1, count)
        low, high = Bootstrap(count).interval(values)
        assert low < values.mean() < high
        # 1.96 standard errors on each side for a normal mean
        assert high - low == pytest.approx(2 * 1.96 * values.std() / count**0.5, rel=0.15)
    assert Bootstrap(8).interval(values[:8]) == Bootstrap(8).interval(values[:8])
    assert Bootstrap(8, seed=1).interval(values[:8]) != Bootstrap(8).interval(values[:8])
    assert Bootstrap(1).interval(np.array([0.5])) == [0.5, 0.5]


def test_each_resample_draws_as_many_cases_as_there_are():
    weights = Bootstrap(5, resamples=2000).weights
    assert weights.shape == (2000, 5) and (weights.sum(axis=1) == 5).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(5), abs=0.1)


def test_ratios_are_resampled_by_case():
    bootstrap = Bootstrap(4)
    found, true = np.array([2.0, 0, 1, 3]), np.array([4.0, 0, 2, 6])
    assert bootstrap.interval(found, true) == [0.5, 0.5]  # a half in every case that has any
    assert bootstrap.interval(np.zeros(4), np.zeros(4)) is None  # nothing to take a share of


def test_the_signed_rank_test_of_a_textbook():
    # ranks of |d| are 1..8 and only the 1 is negative: W = 1; of 2^8 signs, W <= 1 in 2 and as many on the other side
    assert comparison.wilcoxon_p(np.array([-1.0, 2, 3, 4, 5, 6, 7, 8])) == pytest.approx(4 / 256)
    assert comparison.wilcoxon_p(np.array([0.0, 0, -1, 2, 3, 4, 5, 6, 7, 8])) == pytest.approx(4 / 256)
    assert comparison.wilcoxon_p(np.zeros(5)) == 1


def tables(*values):
    return {f"case_{k}": {"tumor_dice": value, "tumor_hd95_mm": mm} for k, (value, mm) in enumerate(values)}


def test_what_predicting_nothing_scores_is_no_figure_of_a_system():
    a = {"case_0": {"tumor_dice": 0.5, "tumor_dice_poster": 0.8, "tumor_dice_poster_empty": 0.6}}
    (figures,) = comparison.compare(a, a, ("A", "B")).values()
    assert list(figures) == ["dice", "dice_poster"]


def test_pairs_without_a_figure_are_counted_out():
    a = tables((0.9, 1.0), (0.8, None), (0.7, 3.0), (1.0, 2.0))
    b = tables((0.8, 2.0), (0.8, 1.0), (0.5, None), (0.7, 5.0))
    (figures,) = comparison.compare(a, b, ("A", "B")).values()
    assert figures["dice"]["pairs"] == 4 and figures["dice"]["difference"] == pytest.approx((0.1 + 0 + 0.2 + 0.3) / 4)
    low, high = figures["dice"]["difference_ci95"]
    assert low < figures["dice"]["difference"] < high
    assert figures["hd95_mm"] == {
        **{"a": 1.5, "b": 3.5, "difference": -2.0, "pairs": 2},
        **{"difference_ci95": [-3, -1], "p": 0.5},
    }
    none = comparison.compare(a, {case: row | {"tumor_hd95_mm": None} for case, row in b.items()}, ("A", "B"))
    assert none["tumor"]["hd95_mm"]["pairs"] == 0 and none["tumor"]["hd95_mm"]["p"] is None
    text = comparison.as_text({"a": "A", "b": "B", "data": "phantom", "cases": 4, "notes": [], "regions": none})
    assert "undefined for A or B in every case" in text


def test_a_mean_over_slices_is_that_of_the_summary():
    """Two cases of 1 and 3 slices for A, of 2 and 2 for B: what evaluate calls `slice` and compare `dice_slice`."""
    a, b = (
        {
            f"case_{k}": {"tumor_dice": value, "tumor_dice_slice": value, "tumor_slices": count}
            for k, (value, count) in enumerate(rows)
        }
        for rows in (((0.8, 1.0), (0.4, 3.0)), ((0.6, 2.0), (0.2, 2.0)))
    )
    of_slices = comparison.compare(a, b, ("A", "B"))["tumor"]["dice_slice"]
    assert (of_slices["a"], of_slices["b"]) == (pytest.approx((0.8 + 3 * 0.4) / 4), pytest.approx(0.4))
    assert of_slices["difference"] == pytest.approx(0.5 - 0.4)
    # twice the first case, each once, twice the second
    assert of_slices["difference_ci95"] == pytest.approx([0.1, 0.2])


def test_an_interval_of_fewer_than_six_cases_is_not_shown():
    for count, shown in ((5, "too few"), (6, "+0.100 .. +0.100")):
        a, b = (tables(*[(value, 1.0)] * count) for value in (0.6, 0.5))
        found = {"a": "A", "b": "B", "data": "kits", "cases": count, "notes": []}
        row = comparison.as_text(found | {"regions": comparison.compare(a, b, ("A", "B"))}).splitlines()[3]
        assert shown in row and row.split()[-1] == str(count)


def test_other_cases_are_refused_by_name():
    a, b = tables((1, 1), (1, 1)), tables((1, 1))
    with pytest.raises(InputError, match="compare: B has no case_1. Score both on the same cases"):
        comparison.compare(a, b, ("A", "B"))
    with pytest.raises(InputError, match="compare: A has no case_1"):
        comparison.compare(b, a, ("A", "B"))
    with pytest.raises(InputError, match="no region in common"):
        comparison.compare(b, {"case_0": {"mass_dice": 1.0}}, ("A", "B"))


@pytest.fixture
def systems(tmp_path):
    """Three cases of a bar; system a is shorter by one voxel, b by k + 1."""
    for k in range(3):
        label = np.zeros((3, 16, 16), np.uint8)
        label[:, 2:10, 2:12] = 2
        geometry = kits_geometry(label.shape, (3, 0.8, 0.8))
        for name, cut in (("truth", 0), ("a", 1), ("b", k + 1)):
            map_ = label.copy()
            map_[:, :, 12 - cut :] = 0
            write_nifti(tmp_path / name / f"case_{k:05d}.nii.gz", map_, geometry)
    return tmp_path


def compare(tmp_path, capsys, **more):
    evaluate.main(evaluate.Args(**more))
    return capsys.readouterr().out, json.loads((tmp_path / "out" / "comparison.json").read_text())


def test_two_folders_in_one_command_and_from_their_tables(systems, capsys):
    output = str(systems / "out")
    text, result = compare(
        systems,
        capsys,
        compare=(str(systems / "a"), str(systems / "b")),
        truth=str(systems / "truth"),
        output=output,
    )
    row = result["regions"]["tumor"]["dice"]
    # 9 of 10 columns: 18 / 19; 8 of 10: 16 / 18; 7 of 10: 14 / 17
    assert row["a"] == pytest.approx(18 / 19) and row["b"] == pytest.approx((18 / 19 + 16 / 18 + 14 / 17) / 3)
    assert row["pairs"] == 3 and f"{row['difference']:+.3f}" in text
    assert (systems / "out" / "a" / "challenge.csv").is_file()
    again = compare(systems, capsys, compare=(f"{output}/a", f"{output}/b"), output=output)[1]
    assert again["regions"]["tumor"]["dice"]["difference"] == pytest.approx(row["difference"], abs=1e-9)
    run = systems / "run" / "evaluation"
    run.mkdir(parents=True)
    (systems / "out" / "a").rename(run / "val")
    mixed = compare(systems, capsys, compare=(str(systems / "run"), f"{output}/b"), output=output, split="val")[1]
    assert mixed["regions"] == again["regions"]


def test_what_cannot_be_compared(systems, capsys):
    out = systems / "out"
    for name in "ab":
        arguments = {"predictions": str(systems / name), "truth": str(systems / "truth"), "output": str(out / name)}
        evaluate.main(evaluate.Args(**arguments))
    pair = str(out / "a"), str(out / "b")
    with pytest.raises(MissingInput, match="no cases.csv there, nor in evaluation/test/"):
        evaluate.main(evaluate.Args(compare=(str(systems / "truth"), pair[1])))
    with pytest.raises(InputError, match="takes two folders"):
        evaluate.main(evaluate.Args(compare=("a",)))
    summary = json.loads((out / "a" / "summary.json").read_text())
    (out / "a" / "summary.json").write_text(json.dumps(summary | {"data": "phantom", "reference": "samples"}))
    evaluate.main(evaluate.Args(compare=pair))
    assert "note: A was scored against reference=samples, B against reference=file" in capsys.readouterr().out
    (out / "b" / "summary.json").write_text(json.dumps(summary | {"data": "kits"}))
    with pytest.raises(InputError, match="A was scored on phantom cases, B on kits"):
        evaluate.main(evaluate.Args(compare=pair))
    (out / "b" / "summary.json").write_text("{")
    with pytest.raises(InputError, match="summary.json: cannot be read"):
        evaluate.main(evaluate.Args(compare=pair))
    for damage in ("", "case,tumor_dice\n", "case,tumor_dice\na,x\n", "case,tumor_dice\na,1\na,1\n", "b\n1\n"):
        (out / "b" / "cases.csv").write_text(damage)
        with pytest.raises(InputError, match="cases.csv: .*Run evaluate again"):
            evaluate.main(evaluate.Args(compare=pair))
