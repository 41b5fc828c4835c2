"""A network learns from the labels of its own patients, and from those alone."""

import shutil
from pathlib import Path

import pytest

from benchmarks.lib.studies import Arm, Study, Training, rows
from benchmarks.lib.study_runs import run
from benchmarks.lib.study_setup import recipe
from kits_dist import phantom, prepare


def store_of(raw: Path) -> str:
    prepare.main(prepare.Args(source=str(raw), store=str(raw.with_suffix(".store"))))
    return str(raw.with_suffix(".store"))


@pytest.mark.slow(minutes=3)
def test_labels_of_another_patient_teach_nothing(tmp_path):
    """The demo's recipe on phantoms of one grid, tested on patients that were not trained on.

    With their own labels the network finds tumors; with each label moved to the next patient it does not.
    """
    own, moved = tmp_path / "own", tmp_path / "moved"
    phantom.main(phantom.Args(output=str(own), cases=60, size=(24, 96, 96), spacing_mm=(8, 4, 4)))
    shutil.copytree(own, moved)
    folders = sorted(own.glob("case_*"))
    for mine, other in zip(folders, [*folders[1:], folders[0]], strict=True):
        shutil.copy(other / "aggregated_MAJ_seg.nii.gz", moved / mine.name)
    words = recipe("", on_gpu=False, quick=False, epochs=5)
    arms = tuple(Arm(raw.name, (Training(words, store=store_of(raw)),)) for raw in (own, moved))
    study = Study("sanity", arms[0].trainings[0].store, arms, tmp_path / "study", seeds=(0,))
    assert run(study) == {}
    dice = {row.name: {region: means[0] for region, means in row.by_seed.items()} for row in rows(study)}
    assert dice["moved"]["tumor"] < 0.2, dice
    assert dice["own"]["tumor"] > dice["moved"]["tumor"] + 0.15, dice
    assert dice["own"]["kidney_and_mass"] > max(0.85, dice["moved"]["kidney_and_mass"] + 0.1), dice
