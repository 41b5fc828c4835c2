"""Scoring with worker processes and with a launcher gives the tables of one process."""

from pathlib import Path

import numpy as np
import pytest

from kits_dist import evaluate
from kits_dist.imaging.nifti import read_labels, write_nifti
from tests.helpers.launching import LAUNCH, run_program


@pytest.fixture(scope="module")
def predictions(raw, tmp_path_factory) -> Path:
    """The truth of every case, shifted by as many voxels as the case's number."""
    folder = tmp_path_factory.mktemp("predictions")
    for number, case in enumerate(sorted(raw.iterdir())):
        volume = read_labels(case / "aggregated_MAJ_seg.nii.gz")
        write_nifti(folder / f"{case.name}.nii.gz", np.roll(volume.array, number, axis=2), volume.geometry)
    return folder


def score(predictions: Path, truth: Path, output: Path, workers: int) -> None:
    args = evaluate.Args(predictions=str(predictions), truth=str(truth), output=str(output), workers=workers)
    evaluate.main(args)


def same_tables(a: Path, b: Path) -> bool:
    names = ("cases.csv", "challenge.csv", "summary.json")
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_worker_processes_give_the_tables_of_one_process(predictions, raw, tmp_path):
    for workers in (1, 2):
        score(predictions, raw, tmp_path / str(workers), workers)
    assert same_tables(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_launched_processes_give_the_tables_of_one_and_report_a_fault_once(predictions, raw, tmp_path):
    score(predictions, raw, tmp_path / "one", workers=1)
    command = [*LAUNCH, "-m", "kits_dist.evaluate", f"truth={raw}"]
    done = run_program([*command, f"predictions={predictions}", f"output={tmp_path / 'two'}"])
    assert same_tables(tmp_path / "one", tmp_path / "two") and done.stdout.count("tables and pictures") == 1

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in predictions.iterdir():
        (damaged / path.name).write_bytes(b"" if "00003" in path.name else path.read_bytes())
    done = run_program([*command, f"predictions={damaged}", f"output={tmp_path / 'bad'}"], code=1)
    assert done.stderr.count("1 of 6 could not be scored") == 1
    assert not list((tmp_path / "bad").iterdir())  # made before the work, and nothing in it
