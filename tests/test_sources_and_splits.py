import shutil

import numpy as np
import pytest

from kits_dist.data.sources import MARKER, find_cases
from kits_dist.data.splits import Splits, Traits, make_splits
from kits_dist.errors import InputError, MissingInput


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (["case_00001/imaging.nii.gz", "case_00001/segmentation.nii.gz"], "KiTS19/KiTS23"),
        (["data/case_00001/imaging.nii.gz", "data/case_00001/aggregated_MAJ_seg.nii.gz"], "KiTS21"),
        (["dataset/case_00001/imaging.nii.gz", "dataset/case_00001/segmentation.nii.gz"], "KiTS19/KiTS23"),
        (["kits21/data/case_00001/imaging.nii.gz", "kits21/data/case_00001/aggregated_MAJ_seg.nii.gz"], "KiTS21"),
        (["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], "nnU-Net raw"),
    ],
)
def test_layouts_are_found(tmp_path, files, layout):
    for file in files:
        touch(tmp_path / file)
    source = find_cases(tmp_path)
    assert (source.layout, source.data, len(source.cases)) == (layout, "kits", 1)
    assert source.cases[0].image and source.cases[0].label


def test_a_mark_says_what_made_the_cases_and_missing_files_are_kept_as_none(tmp_path):
    touch(tmp_path / "case_00001" / "imaging.nii.gz")
    (tmp_path / MARKER).write_text('{"data": "painted"}')
    source = find_cases(tmp_path)
    assert find_cases(tmp_path.parent / tmp_path.name).data == "painted"
    (tmp_path / "above" / "data").mkdir(parents=True)
    for path in (tmp_path / "case_00001", tmp_path / MARKER):
        shutil.copytree(path, tmp_path / "above" / "data" / path.name) if path.is_dir() else shutil.copy(
            path, tmp_path / "above" / "data"
        )
    assert find_cases(tmp_path / "above").data == "painted"  # the mark lies beside the cases, below what was named
    assert source.data == "painted" and source.cases[0].label is None


def test_a_folder_of_nothing_is_answered_with_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match="Looked for case_.*imagesTr"):
        find_cases(tmp_path)
    with pytest.raises(MissingInput, match="no such folder"):
        find_cases(tmp_path / "nowhere")
    shutil.rmtree(tmp_path)


def cases(n):
    rng = np.random.default_rng(3)
    return [Traits(f"case_{i:05d}", rng.lognormal(3.5, 1.3), rng.choice([0.5, 1, 3, 5]), bool(i % 2)) for i in range(n)]


@pytest.mark.parametrize("n", [*range(3, 60), 96, 300])
def test_every_case_is_in_exactly_one_part(n):
    splits = make_splits(cases(n), seed=0)
    parts = [splits.test, *splits.folds]
    assert sorted(c for part in parts for c in part) == sorted(c.case_id for c in cases(n))
    assert len(splits.test) == max(1, round(0.2 * n))
    for fold in range(len(splits.folds)):
        train, val = splits.select(fold)
        assert train and val and not set(train) & set(val) and not set(train + val) & set(splits.test)


def test_parts_are_alike_and_depend_on_the_seed_only():
    everyone = {c.case_id: c for c in cases(300)}
    splits = make_splits(cases(300), seed=0)
    assert splits == make_splits(cases(300)[::-1], seed=0) != make_splits(cases(300), seed=1)
    overall = np.median([c.tumor_ml for c in everyone.values()])
    for part in (splits.test, *splits.folds):
        assert 0.6 < np.median([everyone[c].tumor_ml for c in part]) / overall < 1.6
        assert 0.4 < np.mean([everyone[c].cyst for c in part]) < 0.6
        assert (
            0.4
            < np.mean([everyone[c].slice_mm >= 3 for c in part]) / np.mean([c.slice_mm >= 3 for c in cases(300)])
            < 1.6
        )


def test_folds_that_cannot_be_used_are_refused():
    splits = make_splits(cases(2), seed=0)
    assert len(splits.test) == 1 and splits.select("all") == (splits.folds[0], splits.folds[0])
    with pytest.raises(InputError, match="leaves no case to train on"):
        splits.select(0)
    with pytest.raises(InputError, match=r"folds 0..0, and all"):
        splits.select(3)
    assert make_splits(cases(1), seed=0) == Splits(0, [], [["case_00000"]])
