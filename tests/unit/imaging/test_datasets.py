"""Every layout of a data set is recognized, and what is missing or contradictory is named."""

import json
import os
from pathlib import Path

import pytest

from kits_dist import audit, cli, prepare
from kits_dist.imaging.checks import check_case
from kits_dist.imaging.datasets import MARKER, find_all_cases, find_cases
from kits_dist.utils.errors import InputError, MissingInput


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def kits(root, *ids, label="segmentation"):
    touch(root, *(f"case_{i:05d}/{name}.nii.gz" for i in ids for name in ("imaging", label)))
    return root


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (["case_00001/imaging.nii.gz", "case_00001/segmentation.nii.gz"], "KiTS19 or KiTS23"),
        (["data/case_00001/imaging.nii.gz", "data/case_00001/segmentation.nii.gz"], "KiTS19"),
        (["dataset/case_00001/imaging.nii.gz", "dataset/case_00001/segmentation.nii.gz"], "KiTS23"),
        (["case_1/imaging.nii", "case_1/segmentation.nii", "case_1/instances/tumor_instance-1.nii.gz"], "KiTS23"),
        (["data/case_00001/imaging.nii.gz", "data/case_00001/aggregated_MAJ_seg.nii.gz"], "KiTS21"),
        (["kits21/data/case_00001/imaging.nii.gz", "kits21/data/case_00001/aggregated_MAJ_seg.nii.gz"], "KiTS21"),
        (["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTr/._a_0000.nii.gz"], "nnU-Net raw"),
    ],
)
def test_layouts_are_found(tmp_path, files, layout):
    touch(tmp_path, *files)
    source = find_cases(tmp_path)
    assert (source.layout, source.data, len(source.cases)) == (layout, "kits", 1)
    assert source.cases[0].image and source.cases[0].label and not source.cases[0].missing
    assert source.labels == ("majority" if layout == "KiTS21" else None)


def test_scans_of_one_patient_are_known_by_their_ids_or_by_a_table(tmp_path):
    touch(
        tmp_path,
        *(
            f"case_{i}/{kind}.nii.gz"
            for i in ("00001_s12", "00001_s3", "00002")
            for kind in ("imaging", "segmentation")
        ),
    )
    assert [case.patient for case in find_cases(tmp_path).cases] == ["case_00001", "case_00001", "case_00002"]
    (tmp_path / "patients.csv").write_text("case,patient,age\ncase_00002,ann,50\ncase_00001_s3,ann,50\n")
    assert [case.patient for case in find_cases(tmp_path).cases] == ["case_00001", "ann", "ann"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("case patient\ncase_00001 ann\n", "patients.csv: needs the columns case and patient"),
        ("case,patient\ncase_00001\n", "patients.csv: needs the columns case and patient, and both in every row"),
        ("case,patient\ncase_00001,ann\ncase_00001,bob\n", "patients.csv: case_00001 twice"),
        ("case,patient\ncase_00007,ann\n", "patients.csv: case_00007 without a folder of that name"),
    ],
)
def test_a_table_of_patients_that_cannot_be_meant_is_refused(tmp_path, table, said):
    kits(tmp_path, 1)
    (tmp_path / "patients.csv").write_text(table)
    with pytest.raises(InputError, match=said):
        find_cases(tmp_path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", ";\t,")
def test_a_table_of_patients_is_read_as_spreadsheets_save_it(tmp_path, encoding, delimiter):
    kits(tmp_path, 1)
    text = "case,patient\r\ncase_00001,Jürgen\r\n".replace(",", delimiter)
    (tmp_path / "patients.csv").write_bytes(text.encode(encoding))
    assert [case.patient for case in find_cases(tmp_path).cases] == ["Jürgen"]


def test_upper_case_endings_are_those_of_nifti(tmp_path):
    touch(tmp_path, "case_00001/imaging.NII.GZ", "case_00001/segmentation.Nii")
    (case,) = find_cases(tmp_path).cases
    assert case.image.name == "imaging.NII.GZ" and case.label.name == "segmentation.Nii" and not case.missing
    touch(tmp_path / "raw", "imagesTr/a_0000.NII.GZ", "labelsTr/a.NII")
    assert [case.case_id for case in find_cases(tmp_path / "raw").cases if not case.missing] == ["a"]


def test_a_case_whose_name_is_not_utf8_is_refused_before_any_work(tmp_path):
    touch(tmp_path, "case_1/imaging.nii.gz", "case_1/segmentation.nii.gz")
    (tmp_path / "case_1").rename(os.fsdecode(os.fsencode(tmp_path) + b"/case_M\xfcller"))
    with pytest.raises(InputError, match="are not UTF-8. Rename these cases"):
        find_all_cases(str(tmp_path))


def test_labels_choose_one_of_kits21s_aggregations(tmp_path):
    names = {"majority": "aggregated_MAJ_seg", "and": "aggregated_AND_seg", "or": "aggregated_OR_seg"}
    touch(tmp_path, "case_00001/imaging.nii.gz", *(f"case_00001/{name}.nii.gz" for name in names.values()))
    kits(tmp_path, 2, label="aggregated_MAJ_seg")
    for choice, name in names.items():
        first, second = find_cases(tmp_path, choice).cases
        assert first.label.name == f"{name}.nii.gz"
    assert second.label is None and second.missing == "label file (expected case_00002/aggregated_OR_seg.nii.gz)"


@pytest.mark.parametrize("folder", ["data", "dataset", "."])
def test_labels_that_the_layout_does_not_have_are_refused(tmp_path, folder):
    kits(tmp_path / folder, 1)
    layout = find_cases(tmp_path).layout
    with pytest.raises(InputError, match=f"labels=and: .* is {layout}; only KiTS21 has aggregated_AND_seg"):
        find_cases(tmp_path, "and")
    with pytest.raises(InputError, match="labels=or: .* only KiTS21"):
        prepare.main(prepare.Args(source=str(tmp_path), store=str(tmp_path / "store"), labels="or"))


def test_files_that_are_not_there_are_named_as_expected(tmp_path):
    touch(tmp_path / "kits", "case_00001/imaging.nii.gz", "case_00002/segmentation.nii.gz", "case_00003/notes.txt")
    one, two, three = find_cases(tmp_path / "kits").cases
    assert one.missing == "label file (expected case_00001/segmentation.nii.gz)" and one.image and not one.label
    assert two.missing == "image file (expected case_00002/imaging.nii.gz)" and two.label and not two.image
    assert three.missing.count("expected") == 2
    touch(tmp_path / "raw", "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii", "labelsTr/b.nii", "labelsTr/c.nii.gz")
    a, b, c = find_cases(tmp_path / "raw").cases
    assert a.missing == "label file (expected labelsTr/a.nii.gz)" and not b.missing
    assert c.missing == "image file (expected imagesTr/c_0000.nii.gz)"


def test_a_case_with_two_cts_is_that_cases_fault(tmp_path):
    touch(tmp_path, "case_1/imaging.nii", "case_1/imaging.nii.gz", "case_2/imaging.nii", "case_2/segmentation.nii")
    one, two = find_cases(tmp_path).cases
    assert one.missing.endswith("case_1 holds both imaging.nii.gz and imaging.nii. Keep one of them") and not one.image
    assert not two.missing


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            ["imagesTr/a_0000.nii", "imagesTr/a_0000.nii.gz"],
            "both .*imagesTr/a_0000.nii and .*a_0000.nii.gz are a. Keep one",
        ),
        (
            ["imagesTr/a_0000.nii", "labelsTr/a.nii", "labelsTr/a.nii.gz"],
            "both .*labelsTr/a.nii and .*a.nii.gz are a. Keep one",
        ),
    ],
)
def test_a_file_that_is_there_twice_is_refused(tmp_path, files, words):
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=words):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}, None),
        ({"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}, None),  # nnU-Net's Dataset220_KiTS2023
        ({"0": "background", "1": "Kidney", "2": "Tumor"}, None),  # nnU-Net 1's Task064_KiTS_labelsFixed
        ({"background": 0, "tumor": 1, "kidney": 2}, "calls label 1 'tumor'; here labels are .*'kidney': 1"),
        ({"0": "background", "1": "tumor"}, "calls label 1 'tumor'"),
        ({"background": 0, "kidney": [2, 3]}, "calls label 2, 3 'kidney'"),
        ({"background": 0, "liver": 1}, "calls label 1 'liver'"),
    ],
)
def test_a_dataset_json_with_other_ids_is_refused(tmp_path, labels, words):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    if words is None:
        assert len(find_cases(tmp_path).cases) == 1
    else:
        with pytest.raises(InputError, match=words):
            find_cases(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="dataset.json: cannot be read"):
        find_cases(tmp_path)


def test_a_mark_says_what_made_the_cases(tmp_path):
    kits(tmp_path / "above" / "data", 1)
    for folder in (tmp_path / "above" / "data", tmp_path / "above"):  # beside the cases, or in the folder named
        (folder / MARKER).write_text('{"data": "painted"}')
        assert find_cases(tmp_path / "above").data == "painted"
        (folder / MARKER).unlink()
    mark = tmp_path / "above" / MARKER
    for content, words in (
        ('{"data": "mri"}', "data is 'mri', not one of kits"),
        ("[]", "not an object"),
    ):
        mark.write_text(content)
        with pytest.raises(InputError, match=words):
            find_cases(tmp_path / "above")


def test_a_folder_of_nothing_is_answered_with_what_was_looked_for_and_what_is_there(tmp_path):
    with pytest.raises(InputError, match="Looked for case_.*imagesTr.* It is empty"):
        find_cases(tmp_path)
    with pytest.raises(MissingInput, match="no such folder"):
        find_cases(tmp_path / "nowhere")
    touch(tmp_path, "notes.txt", "imagesTr/a.mha", ".hidden")
    with pytest.raises(InputError, match=r"It holds imagesTr, notes.txt\."):
        find_cases(tmp_path)
    touch(tmp_path, "predictions/case_00001.nii.gz", "predictions/case_00002.nii.gz")
    with pytest.raises(InputError, match="single files .case_00001.nii.gz, case_00002.nii.gz.; a case is a folder"):
        find_cases(tmp_path / "predictions")
    kits(tmp_path / "below" / "data", 1)
    with pytest.raises(InputError, match=f"There are cases in {tmp_path / 'below'}: name that folder"):
        find_cases(tmp_path)


def test_several_folders_are_one_data_set_and_the_first_wins(tmp_path):
    a, b = kits(tmp_path / "a" / "data", 1, 2), kits(tmp_path / "b" / "dataset", 2, 3)
    both = find_all_cases(f"[{a}, {b}]")
    assert both.layout == "KiTS19 + KiTS23" and [c.case_id for c in both.cases] == [f"case_0000{i}" for i in (1, 2, 3)]
    assert both.cases[1].image.is_relative_to(a)
    (note,) = both.notes
    assert note.startswith(f"{b}: 1 of 2 cases left out, because an earlier folder has the same ids: case_00002.")
    assert find_all_cases(f"[{b},{a}]").cases[0].image.is_relative_to(b)
    assert find_all_cases(str(a)).notes == []


def test_folders_of_different_kinds_are_not_mixed(tmp_path):
    a, b = kits(tmp_path / "a", 1), kits(tmp_path / "b", 2)
    (b / MARKER).write_text('{"data": "phantom"}')
    with pytest.raises(InputError, match=f"{a} holds kits, {b} holds phantom cases.*Keep them apart"):
        find_all_cases(f"[{a},{b}]")


def test_folders_may_be_called_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("1e3", "2021", "[x]", "a,b", "no"):
        kits(tmp_path / name, 1)
        for program in (audit, prepare):
            args = cli.load(program.Args, [f"source={name}", *(["store=s"] if program is prepare else [])])
            assert len(find_all_cases(args.source).cases) == 1
    kits(tmp_path / "second", 2)
    assert len(find_all_cases(cli.load(audit.Args, ["source=[2021,second]"]).source).cases) == 2
    with pytest.raises(MissingInput, match=r"source=2021,second: no such folder. Several are written source=\[A,B\]"):
        find_all_cases("2021,second")
    with pytest.raises(InputError, match="names an empty folder"):
        find_all_cases("[2021,]")
    with pytest.raises(MissingInput, match="source=nowhere: no such folder"):
        find_all_cases("[2021,nowhere]")
    with pytest.raises(InputError, match=r"labels=both.*majority.*and.*or"):
        cli.load(audit.Args, ["source=2021", "labels=both"])


def nnunet(root, *names, **dataset):
    touch(root, *(f"imagesTr/{name}_0000.nii.gz" for name in names), *(f"labelsTr/{name}.nii.gz" for name in names))
    if dataset:
        (root / "dataset.json").write_text(json.dumps(dataset))
    return root


@pytest.mark.parametrize(
    ("more", "dataset", "words"),
    [
        (["imagesTr/a_0001.nii.gz"], {}, r"imagesTr holds second channels \(a_0001.nii.gz\); a CT has one"),
        (["imagesTr/b_0002.nii"], {}, r"imagesTr holds second channels \(b_0002.nii\); a CT has one"),
        (
            [],
            {"channel_names": {"0": "FLAIR", "1": "T1"}},
            r"dataset.json names 2 channels \(FLAIR, T1\); a CT has one",
        ),
        ([], {"modality": {"0": "CT", "1": "CT"}}, r"dataset.json names 2 channels \(CT, CT\)"),  # nnU-Net 1
        ([], {"channel_names": ["CT", "PET"]}, r"dataset.json names 2 channels \(CT, PET\)"),
    ],
)
def test_several_channels_are_refused_by_audit_and_prepare(tmp_path, more, dataset, words):
    """Channel 0 alone would be a guess."""
    touch(nnunet(tmp_path / "nn", "a", "b", **dataset), *more)
    for run in (
        lambda: prepare.main(prepare.Args(source=str(tmp_path / "nn"), store=str(tmp_path / "store"))),
        lambda: audit.main(audit.Args(source=str(tmp_path / "nn"))),
    ):
        with pytest.raises(InputError, match=words):
            run()


@pytest.mark.parametrize("name", ["CT", "ct", "venous CT", "CTA"])
def test_one_channel_of_ct_needs_no_word(tmp_path, name):
    assert find_cases(nnunet(tmp_path, "a_0001", "a_0002", channel_names={"0": name})).notes == []
    assert [case.case_id for case in find_cases(tmp_path).cases] == ["a_0001", "a_0002"]


def test_what_an_nnunet_folder_holds_besides_is_said_once(tmp_path):
    nnunet(tmp_path, "a", channel_names={"0": "T2"}, numTraining=4)
    touch(tmp_path, "imagesTs/b_0000.nii.gz", "labelsTs/b.nii.gz", "imagesTr/c.nii.gz", "labelsTr/c.mha", "notes.txt")
    touch(tmp_path, "imagesTr/d_0001.nii.gz", ".hidden")
    notes = [note.replace(f"{tmp_path}", "") for note in find_cases(tmp_path).notes]
    assert notes == [
        "/dataset.json calls the images 'T2'; here they are read as CT, in HU",
        "/dataset.json says numTraining=4, but 1 cases are here",
        "/imagesTr: c.nii.gz, d_0001.nii.gz not used; expected NAME_0000.nii.gz",
        "/labelsTr: c.mha not used; expected NAME.nii.gz",
        "/imagesTs: 1 files not used; a test set of its own is for predict",
        "/labelsTs: 1 files not used; a test set of its own is for predict",
        ": notes.txt not used",
    ]
    assert find_all_cases(str(tmp_path)).notes == find_cases(tmp_path).notes


def test_what_a_kits_folder_holds_besides_is_said_once(tmp_path):
    kits(tmp_path / "data", 1, 2, label="aggregated_MAJ_seg")
    touch(tmp_path / "data", "case_00001/imaging_arterial.nii.gz", "case_00002/imaging_arterial.nii.gz")
    touch(tmp_path / "data", "case_00001/segmentations/x.nii.gz", "case_00001/.DS_Store", "kits.json")
    touch(tmp_path / "data", "patient_7/imaging.nii.gz", "case_00003.zip")
    kits(tmp_path / "dataset", 8)
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    notes = [note.replace(f"{tmp_path}", "") for note in find_cases(tmp_path).notes]
    assert notes == [
        "/data: not used of the cases' folders: imaging_arterial.nii.gz (2 cases)",
        "/data: case_00003.zip, patient_7 not used, because a case is a folder case_NAME",
        "the cases in /dataset, /imagesTr are not used. Name that folder, too",
    ]


def test_labels_of_another_layout_are_said(tmp_path):
    """In KiTS21's layout a segmentation.nii.gz is not what is read."""
    kits(tmp_path, 1, label="aggregated_MAJ_seg")
    touch(tmp_path, "case_00001/segmentation.nii.gz", "case_00001/aggregated_AND_seg.nii.gz")
    assert [note.split(": ")[-1] for note in find_cases(tmp_path).notes] == ["segmentation.nii.gz"]


def test_a_case_that_is_a_link_to_nothing_is_a_case(tmp_path):
    kits(tmp_path, 1)
    (tmp_path / "case_00002").symlink_to(tmp_path / "nowhere")
    one, two = find_cases(tmp_path).cases
    assert not one.missing and two.case_id == "case_00002" and two.missing.endswith("case_00002 is a link to nothing")
    assert find_cases(tmp_path).notes == []


def test_a_case_whose_folder_must_not_be_read_spares_the_others(tmp_path, monkeypatch):
    """Tests may run as root, whom no permission stops."""
    kits(tmp_path, 1, 2)
    real = Path.iterdir

    def iterdir(path):
        if path.name == "case_00002":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    one, two = find_cases(tmp_path).cases
    assert not one.missing and two.missing == "readable folder (Permission denied)"


def test_a_ct_that_is_a_link_to_nothing_is_not_called_missing(tmp_path):
    kits(tmp_path, 1)
    (tmp_path / "case_00001" / "imaging.nii.gz").unlink()
    (tmp_path / "case_00001" / "imaging.nii.gz").symlink_to(tmp_path / "nowhere")
    (case,) = find_cases(tmp_path).cases
    assert not case.missing and case.image
    with pytest.raises(InputError, match="imaging.nii.gz: no such file"):
        check_case(case)
