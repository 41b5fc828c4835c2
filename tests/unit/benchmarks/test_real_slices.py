"""Real slices: what is scored of whom, the figures against numbers by hand, and what cannot work."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import real_slices
from benchmarks.lib import study_runs, tables
from benchmarks.lib.studies import Arm, Evaluation, Study, Training
from benchmarks.real_slices import Args, RealSlice, groups_of, lines_of, mean_by_patient, staged
from kits_dist.imaging.nifti import kits_geometry, read_image, read_labels, write_nifti
from kits_dist.labels import KIDNEY
from kits_dist.utils.errors import InputError, MissingInput
from tests.unit.benchmarks.test_studies import SMALL


def add_case(folder: Path, name: str, slices: int) -> None:
    image = np.arange(slices, dtype=np.int16)[:, None, None] + np.zeros((1, 8, 6), np.int16)
    geometry = kits_geometry(image.shape, (5.0, 0.8, 0.8))
    write_nifti(folder / name / "imaging.nii.gz", image, geometry)
    write_nifti(folder / name / "segmentation.nii.gz", (image % 2).astype(np.uint8) * KIDNEY, geometry)


@pytest.fixture
def slices(tmp_path) -> Path:
    """Five slices of three patients: one of case 2, two each of cases 4 and 7."""
    add_case(tmp_path / "one", "case_00002_s010", 1)
    add_case(tmp_path / "one", "case_00004_s003", 1)
    add_case(tmp_path / "one", "case_00004_s009", 1)
    add_case(tmp_path / "two", "case_00007", 2)
    return tmp_path


def test_every_slice_is_a_case_and_trained_patients_are_left_out(slices):
    both = f"[{slices / 'one'},{slices / 'two'}]"
    where, chosen, left_out = staged(slices / "study", both, {"case_00002", "case_00099"})
    assert left_out == ["case_00002"]
    assert [(one.patient, one.source) for one in chosen] == [("case_00004", "one")] * 2 + [("case_00007", "two")] * 2
    assert sorted(folder.name for folder in where.iterdir()) == sorted(one.name for one in chosen)
    last = where / chosen[-1].name
    assert read_image(last / "imaging.nii.gz").array.tolist() == np.ones((1, 8, 6)).tolist()  # the second slice
    assert read_labels(last / "segmentation.nii.gz").spacing_mm == pytest.approx((5.0, 0.8, 0.8))
    again, *_ = staged(slices / "study", both, set())
    assert again != where  # other slices, another folder
    with pytest.raises(InputError, match=r"all patients \(case_00007\) are among the painted cases"):
        staged(slices / "study", str(slices / "two"), {"case_00007"})


def test_patients_are_resampled_and_slices_averaged():
    value, (low, high) = mean_by_patient(np.array([0.2, 0.4, 0.9]), ["a", "a", "b"])
    assert value == pytest.approx(0.5)  # over slices, not (0.3 + 0.9) / 2
    assert (low, high) == (0.3, 0.9)  # of two patients a resample holds one alone in half the draws
    assert mean_by_patient(np.array([0.2, 0.4]), ["a", "a"])[1] == (0.3, 0.3)
    # a resample that holds "a" three times has 150 slices of 0 and 3 of 1
    assert mean_by_patient(np.array([0.0] * 50 + [1.0] * 5), ["a"] * 50 + [*"bcdef"])[1][0] < 0.1


def test_the_halves_are_of_patients():
    one, two = (RealSlice(name, name[:10], "x") for name in ("case_00002_s1", "case_00007_s4"))
    assert groups_of([one, two]) == {"": [one, two], "even case numbers": [one], "odd case numbers": [two]}
    assert "y" in groups_of([one, two._replace(source="y")])


DICE = {  # of two slices of case 4 and two of case 7, the third of which has no kidney
    ("old", 0): (0.5, 0.5, 1.0, 0.5),
    ("old", 1): (0.5, 0.5, 1.0, 0.5),
    ("painted", 0): (0.6, 0.6, 0.0, 0.8),
    ("painted", 1): (0.6, 0.6, 0.0, 1.0),
}


def test_figures_by_hand(slices, store, tmp_path, monkeypatch):
    where, chosen, left_out = staged(slices / "study", f"[{slices / 'one'},{slices / 'two'}]", {"case_00002"})
    asked = []

    def program(words, log, place):
        asked.append(words)
        of = dict(word.split("=", 1) for word in words if "=" in word)
        if "kits_dist.train" in words:
            Path(of["run"]).mkdir(parents=True, exist_ok=True)
            (Path(of["run"]) / "environment.json").write_text('{"commit": "abc"}')
        elif words[0] == "kits_dist.evaluate":
            output = Path(of["output"])
            output.mkdir(parents=True)
            dice = DICE[output.parts[-4], int(output.parts[-3][-1])]
            rows = [
                f"{one.name},{value},{0 if value in (0.0, 1.0) and number == 2 else 3.5},0.0,0"
                for number, (one, value) in enumerate(zip(chosen, dice, strict=True))
            ]
            head = "case,kidney_and_mass_dice,kidney_and_mass_truth_ml,tumor_dice,tumor_truth_ml"
            (output / "cases.csv").write_text("\n".join([head, *rows]))
        return 12.0

    monkeypatch.setattr(study_runs, "_program", program)
    evaluation = Evaluation(words=("regions=[kidney_and_mass,tumor]",), scans=str(where))
    arms = tuple(Arm(name, (Training(SMALL),), (evaluation,)) for name in ("old", "painted"))
    study = Study("real_slices", str(store.path), arms, tmp_path / "s", seeds=(0, 1))
    assert study_runs.run(study, jobs=1) == {}
    predict, evaluate = asked[1:3]
    folder = tmp_path / "s" / "old" / "seed_0"
    assert predict == ["kits_dist.predict", f"run={folder}", f"input={where}", f"output={folder / 'predictions'}"]
    assert evaluate[:3] == ["kits_dist.evaluate", f"predictions={folder / 'predictions'}", f"truth={where}"]

    args = Args(labels="x", slices="y")
    old, new = ([*lines_of(study, arm, chosen, left_out, "kits", args)] for arm in arms)
    assert [line.config["variant"] for line in new] == [
        "painted", "painted, one", "painted, two", "painted, even case numbers", "painted, odd case numbers"
    ]  # fmt: skip
    assert {line.config["region"] for line in new} == {"kidney_and_mass"}  # no slice has a tumor
    whole = new[0]
    assert (old[0].value, whole.value, whole.windows) == (0.5, 0.7, 3)  # 0.6 0.6 0.9
    assert whole.spread == (0.6, 0.9) and whole.config["by_seed"] == [0.66667, 0.73333]
    assert whole.config["difference"] == 0.2 and whole.config["difference_ci95"] == [0.1, 0.4]
    assert whole.config["cases"]["real"] == 2 and whole.config["left_out"] == ["case_00002"]
    assert (whole.config["data"], whole.config["training_s"]) == ("kits", [12.0, 12.0])
    assert old[0].config["reference"] is None and "difference" not in old[0].config
    assert "| painted | kidney_and_mass | 0.700 [0.600 .. 0.900] | +0.200 [+0.100 .. +0.400] |" in tables.studies(
        [*old, *new]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"slices": "x"}, "labels=DIR, or a ready store of painted ones, store=DIR"),
        ({"slices": "x", "labels": "a", "store": "b"}, "labels=DIR, or a ready store"),
        ({"labels": "a"}, r"slices=DIR, several slices=\[A,B\]"),
        ({"slices": "x", "store": "b", "augment": 2}, "augment=2: 0 or more, and with labels= only"),
    ],
)
def test_what_cannot_work_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        Args(**words)


def test_missing_folders_and_real_training_cases_are_named(slices, store, tmp_path):
    folders = {"runs": str(tmp_path / "r"), "out": str(tmp_path / "o")}
    with pytest.raises(MissingInput, match="slices=nowhere: no such folder"):
        real_slices.main(Args(slices="nowhere", store=str(store.path), **folders))
    with pytest.raises(InputError, match=f"store={store.path} holds real cases; this study trains on painted ones"):
        real_slices.main(Args(slices=str(slices / "one"), store=str(store.path), **folders))
