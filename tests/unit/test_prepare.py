import errno
import json
import os
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from kits_dist import prepare
from kits_dist.data.splits import Splits
from kits_dist.data.store import Store, array_path
from kits_dist.evaluation.held_out import held_out
from kits_dist.imaging.nifti import kits_geometry, read_image, read_labels, write_nifti
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed, MissingInput
from tests.conftest import SHAPES, write_case


def run(source, store, **more):
    prepare.main(prepare.Args(source=str(source), store=str(store), workers=1, **more))
    return Store(store)


def test_the_store_holds_every_voxel(raw, store):
    for case in store.cases:
        row = store.row[case.case_id]
        image = read_image(raw / case.case_id / "imaging.nii.gz")
        label = read_labels(raw / case.case_id / "aggregated_MAJ_seg.nii.gz")
        assert np.array_equal(store.image(row), np.clip(image.array, 0, 200))
        assert np.array_equal(store.label(row), label.array)
        assert case.voxels["tumor"] == (label.array == 2).sum()
        assert case.geometry.axis_codes == "IPL" and case.spacing_mm == pytest.approx((3.0, 0.8, 0.8))
    assert [case.shape for case in store.cases] == SHAPES


def test_the_slice_table_counts_each_slice(store):
    table = store.slices
    assert len(table.case) == sum(shape[0] for shape in SHAPES)
    for i in range(len(table.case)):
        label = store.label(table.case[i])[table.index[i]]
        assert (table.kidney[i], table.tumor[i], table.cyst[i]) == tuple((label == v).sum() for v in (1, 2, 3))


def test_normalization_is_that_of_the_training_voxels(store):
    train, _ = store.splits.select(1)
    voxels = np.concatenate([store.image(store.row[case]).ravel() for case in train]).astype(float)
    norm = store.normalization(1)
    assert (norm.mean, norm.sd) == pytest.approx((voxels.mean(), voxels.std()))
    assert norm._asdict() == store.meta["normalization"]["1"]


def test_other_folds_bring_their_own_normalization(store, tmp_path):
    copy = shutil.copytree(store.path, tmp_path / "store")
    splits = json.loads((copy / "splits.json").read_text())
    first, *others = splits["folds"]
    splits["folds"] = [first, [case for fold in others for case in fold]]
    (copy / "splits.json").write_text(json.dumps(splits))
    (alone,) = splits["folds"][0]
    voxels = store.image(store.row[alone]).astype(float)
    assert Store(copy).normalization(1).mean == pytest.approx(voxels.mean())


def test_a_finished_case_is_kept_and_a_changed_or_cut_one_is_done_again(raw, tmp_path, capsys):
    source = shutil.copytree(raw, tmp_path / "raw")
    run(source, tmp_path / "store")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store" / "axial").rglob("*.npy")}
    write_case(source, 1, (4, 63, 65), seed=9)
    cut = array_path(tmp_path / "store", "axial", "case_00002", "image")
    cut.write_bytes(cut.read_bytes()[:-10])
    capsys.readouterr()
    run(source, tmp_path / "store")
    assert "2 cases written, 4 already there" in capsys.readouterr().out
    again = {p.parent.name for p, time in before.items() if p.stat().st_mtime_ns != time}
    assert again == {"case_00001", "case_00002"}


def test_a_bad_case_is_named_the_others_are_finished_and_nothing_passes_as_a_store(raw, tmp_path, capsys):
    source = shutil.copytree(raw, tmp_path / "raw")
    (source / "case_00003" / "imaging.nii.gz").write_bytes(b"")
    write_nifti(
        source / "case_00004" / "aggregated_MAJ_seg.nii.gz",
        np.zeros((2, 64, 64), np.uint8),
        kits_geometry((2, 64, 64), (3, 1, 1)),
    )
    (source / "case_00005" / "aggregated_MAJ_seg.nii.gz").unlink()
    with pytest.raises(JobFailed, match=r"3 of 6 cases .*skip=\[case_00003,case_00004,case_00005\]"):
        run(source, tmp_path / "store")
    said = capsys.readouterr().out
    assert "empty (0 bytes)" in said and "image is 7x64x64 but label is 2x64x64" in said and "has no label file" in said
    assert len(list((tmp_path / "store" / "axial").iterdir())) == 3
    with pytest.raises(MissingInput, match="no store.json"):
        Store(tmp_path / "store")
    assert len(run(source, tmp_path / "store", skip=("case_00003", "case_00004", "case_00005")).cases) == 3
    with pytest.raises(InputError, match="no such case"):
        run(source, tmp_path / "store", skip=("case_99999",))


def test_image_and_label_on_other_grids_are_refused(raw, tmp_path, capsys):
    source = shutil.copytree(raw, tmp_path / "raw")
    label = read_labels(source / "case_00000" / "aggregated_MAJ_seg.nii.gz")
    write_nifti(
        source / "case_00000" / "aggregated_MAJ_seg.nii.gz",
        label.array,
        kits_geometry(label.array.shape, (3.0, 0.9, 0.8)),
    )
    with pytest.raises(JobFailed):
        run(source, tmp_path / "store")
    assert "image and label differ in affine" in capsys.readouterr().out


def test_another_orientation_gives_the_same_store(raw, store, tmp_path):
    source = shutil.copytree(raw, tmp_path / "raw")
    for name in ("imaging.nii.gz", "aggregated_MAJ_seg.nii.gz"):
        path = source / "case_00000" / name
        opened = nib.load(path)
        nib.save(nib.as_closest_canonical(opened), path)
        assert nib.aff2axcodes(nib.load(path).affine) == ("R", "A", "S")
    turned = run(source, tmp_path / "store")
    assert np.array_equal(turned.image(0), store.image(0)) and np.array_equal(turned.label(0), store.label(0))


def test_a_store_that_is_not_whole_is_refused(raw, tmp_path):
    run(raw, tmp_path / "s")
    meta = tmp_path / "s" / "store.json"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(InputError, match="has format 99, this version reads 4"):
        Store(tmp_path / "s")
    meta.write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        Store(tmp_path / "s")
    meta.write_text(json.dumps(content))
    path = array_path(tmp_path / "s", "axial", "case_00002", "label")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=f"label.npy has {len(whole) - 1} bytes instead of {len(whole)}"):
        Store(tmp_path / "s")
    path.unlink()
    with pytest.raises(InputError, match="label.npy is missing"):
        Store(tmp_path / "s")


def test_another_window_writes_every_case_anew(raw, tmp_path):
    run(raw, tmp_path / "store", window_hu=(0, 200))
    again = run(raw, tmp_path / "store", window_hu=(20, 45))
    fresh = run(raw, tmp_path / "fresh", window_hu=(20, 45))
    assert all(np.array_equal(again.image(row), fresh.image(row)) for row in range(len(fresh.cases)))
    assert again.meta == fresh.meta and again.image(0).max() == 25


def test_no_window_and_no_source(tmp_path):
    for window_hu in ((200, 0), (0, 0.4), (0, float("nan"))):
        with pytest.raises(InputError, match="low must be below high"):
            prepare.Args(source="a", store="b", window_hu=window_hu)
    with pytest.raises(MissingInput, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path / "s")


def stored_otherwise(source, copy):
    """The same scan under another name, in another axis order and compression: other bytes, same voxels."""
    copy.mkdir()
    for name in ("imaging.nii.gz", "aggregated_MAJ_seg.nii.gz"):
        nib.save(nib.as_closest_canonical(nib.load(source / name)), copy / name)
    assert (source / "imaging.nii.gz").read_bytes() != (copy / "imaging.nii.gz").read_bytes()


def test_copies_of_a_scan_are_reported_and_kept_on_one_side(raw, tmp_path, capsys):
    source = shutil.copytree(raw, tmp_path / "raw")
    stored_otherwise(source / "case_00002", source / "case_00077")
    for seed in range(4):  # test_splits.py tries many
        store = run(source, tmp_path / "store", seed=seed)
        for part in (store.splits.test, *store.splits.folds):
            assert ("case_00002" in part) == ("case_00077" in part)
        said = capsys.readouterr().out
        assert "warning  case_00077  the same CT as case_00002, voxel by voxel: one patient" in said
        assert "warning  case_00002  the same CT as case_00077" in said  # by kept cases as well
    hashes = {case.case_id: case.voxels_sha256 for case in store.cases}
    assert len(hashes) == 7 and len(set(hashes.values())) == 6
    assert hashes["case_00002"] == hashes["case_00077"] and len(hashes["case_00002"]) == 64


def test_scans_of_one_patient_and_copies_of_them_are_kept_on_one_side(raw, tmp_path):
    source = shutil.copytree(raw, tmp_path / "raw")
    stored_otherwise(source / "case_00002", source / "case_00077")  # a copy, under the name of another patient's scan
    (source / "patients.csv").write_text(
        "case,patient\ncase_00000,ann\ncase_00002,ann\ncase_00077,bob\ncase_00003,bob\n"
    )
    together = {"case_00000", "case_00002", "case_00077", "case_00003"}
    for seed in range(4):
        store = run(source, tmp_path / "store", seed=seed)
        parts = [set(part) & together for part in (store.splits.test, *store.splits.folds)]
        assert together in parts and sum(map(len, parts)) == 4


def test_the_poster_s_splits_on_other_data_say_what_they_are(raw, tmp_path, capsys):
    store = run(raw, tmp_path / "store", splits="poster")
    assert "note     splits=poster: these are not KiTS21's case numbers" in capsys.readouterr().out
    assert store.splits.select(0) == (sorted(store.row)[:4], sorted(store.row)[4:5])


def test_a_copy_of_a_trained_case_is_recognized_by_its_voxels(raw, store, tmp_path, monkeypatch):
    source = tmp_path / "raw"
    source.mkdir()
    stored_otherwise(raw / "case_00004", source / "case_00900")
    shutil.copytree(raw / "case_00001", source / "case_00001")
    other = run(source, tmp_path / "store")
    trained = {store.cases[store.row["case_00004"]].voxels_sha256, store.cases[store.row["case_00001"]].voxels_sha256}
    predictor = SimpleNamespace(
        config=SimpleNamespace(data=SimpleNamespace(store="", fold=0)),
        window=other.window,
        trained_on=trained,
        members=[],
    )
    assert sorted(other.splits.test + other.splits.folds[0]) == ["case_00001", "case_00900"]
    for split, cases in (("test", other.splits.test), ("val", other.splits.folds[0])):
        monkeypatch.setattr(Splits, "select", lambda self, fold, cases=cases: ([], cases))
        with pytest.raises(InputError, match=f"trained on {cases[0]}; such a score says nothing about new patients"):
            held_out(predictor, split, str(other.path))


def test_the_store_says_which_labels_it_holds(raw, tmp_path):
    source = shutil.copytree(raw, tmp_path / "raw")
    for case in source.iterdir():
        wide = read_labels(case / "aggregated_MAJ_seg.nii.gz")
        larger = np.maximum(wide.array, np.roll(wide.array > 0, 1, axis=1))
        write_nifti(case / "aggregated_OR_seg.nii.gz", larger, wide.geometry)
    majority, either = run(source, tmp_path / "store"), run(source, tmp_path / "or", labels="or")
    assert (majority.meta["labels"], majority.meta["source_layout"]) == ("majority", "KiTS21")
    assert either.meta["labels"] == "or"
    assert all(a.voxels["kidney"] < b.voxels["kidney"] for a, b in zip(majority.cases, either.cases, strict=True))
    again = run(source, tmp_path / "store", labels="or")  # a finished case of other labels is not kept
    assert [case.voxels for case in again.cases] == [case.voxels for case in either.cases]
    for case in source.iterdir():
        (case / "aggregated_OR_seg.nii.gz").unlink()
        (case / "aggregated_MAJ_seg.nii.gz").rename(case / "segmentation.nii.gz")
    assert run(source, tmp_path / "one").meta["labels"] is None


def test_cases_of_several_folders_make_one_store(raw, tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, names in ((a, ("case_00000", "case_00001")), (b, ("case_00001", "case_00002", "case_00003"))):
        for name in names:
            shutil.copytree(raw / name, folder / name)
    store = run(f"[{a},{b}]", tmp_path / "store")
    assert [case.case_id for case in store.cases] == [f"case_0000{i}" for i in range(4)]
    assert f"note     {b}: 1 of 3 cases left out" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"skip=\['case_9'\]: no such case: \['case_9'\]"):
        run(f"[{a},{b}]", tmp_path / "store", skip=("case_9",))
    with pytest.raises(InputError, match="no patient is left"):
        run(a, tmp_path / "store", skip=("case_00000", "case_00001"))


def test_a_case_of_another_format_is_done_again(raw, tmp_path, capsys):
    run(raw, tmp_path / "store")
    record = tmp_path / "store" / "axial" / "case_00002" / "case.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"format": 1}))
    capsys.readouterr()
    run(raw, tmp_path / "store")
    assert "1 cases written, 5 already there" in capsys.readouterr().out


def test_the_same_cases_make_the_same_store_whatever_the_clock_says(raw, store, tmp_path, monkeypatch):
    monkeypatch.setattr("time.localtime", lambda seconds=0: (1970, 1, 1, 0, 0, 0, 3, 1, 0))  # zip begins with 1980
    assert run(raw, tmp_path / "store").fingerprint() == store.fingerprint()


def test_cases_that_would_be_one_folder_are_refused_before_any_work(raw, tmp_path, monkeypatch):
    for name in ("case_a", "case_A"):
        shutil.copytree(raw / "case_00000", tmp_path / "raw" / name)
    monkeypatch.setattr(files, "_tells_case", lambda folder: False)
    with pytest.raises(InputError, match="store=.*case_A and case_a would be one file"):
        run(tmp_path / "raw", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_store_on_a_disk_that_maps_no_files_is_refused(store, monkeypatch):
    def load(path, mmap_mode):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(InputError, match="its disk cannot map files into memory .*Copy the store"):
        Store(store.path).image(0)


def test_splits_that_were_edited_on_windows_are_read(store, tmp_path):
    copy = shutil.copytree(store.path, tmp_path / "store")
    text = (copy / "splits.json").read_text()
    (copy / "splits.json").write_bytes(text.replace("\n", "\r\n").encode("utf-16"))
    assert Store(copy).splits == store.splits
