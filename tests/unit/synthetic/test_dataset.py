"""The phantom program: reproducible folders, variants written next to their patients, no leak between splits."""

import json
import shutil

import numpy as np
import pytest

from kits_dist import audit, prepare
from kits_dist import phantom as program
from kits_dist.data.store import Store
from kits_dist.imaging.datasets import MARKER, VARIANT_RECORD, find_cases
from kits_dist.imaging.nifti import read_labels, write_nifti
from kits_dist.imaging.predictions import find_truths
from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.lesion_transplant import transplantable_lesions
from kits_dist.synthetic.variants import draw_donor
from kits_dist.utils.errors import InputError, JobFailed


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    root = tmp_path_factory.mktemp("annotations")
    program.main(program.Args(output=str(root), cases=4, size=(16, 64, 64), workers=1))
    return root


def painted(annotations, output, **more):
    program.main(
        program.Args(**({"labels": str(annotations), "output": str(output), "augment": 2, "workers": 1} | more))
    )
    return output


@pytest.fixture(scope="module")
def augmented(annotations, tmp_path_factory):
    return painted(annotations, tmp_path_factory.mktemp("augmented") / "raw", seed=3)


def test_variants_are_written_next_to_the_painted_cases(annotations, augmented, tmp_path, capsys, monkeypatch):
    source = find_cases(augmented)
    assert source.data == "painted" and json.loads((augmented / MARKER).read_text())["augment"] == 2
    originals = [case.case_id for case in source.cases if not case.made_from]
    assert originals == [f"case_{i:05d}" for i in range(4)] and len(source.cases) == 12
    volumes = {case.case_id: read_labels(case.label) for case in source.cases if not case.made_from}
    donors = [case for case, volume in volumes.items() if transplantable_lesions(volume.array, volume.spacing_mm)]
    for case in source.cases:
        if case.made_from:
            record = json.loads((case.label.parent / VARIANT_RECORD).read_text())
            assert case.case_id == f"{case.made_from[0]}-variant-{record['variant']}"
            assert set(case.made_from[1:]) == {one["donor"] for one in record["lesions"]}
            donor, _ = draw_donor(case.made_from[0], donors, 3, int(case.made_from[0][-5:]), record["variant"])
            assert set(case.made_from[1:]) <= {donor}
    assert any(len(case.made_from) == 2 for case in source.cases)
    # in another order, and from painted cases, whose variants are skipped
    monkeypatch.setattr(program, "run_all", lambda work, items, *_: [(item, work(item)) for item in list(items)[::-1]])
    again = painted(augmented, tmp_path / "again", seed=3, augment=1)
    assert len(list(again.glob("case_*"))) == 8
    for file in again.rglob("case_*/*"):
        assert (augmented / file.relative_to(again)).read_bytes() == file.read_bytes()
    assert "4 variants in addition" in capsys.readouterr().out
    plain = painted(annotations, tmp_path / "plain", seed=3, augment=0)
    assert sorted(p.name for p in plain.glob("case_*")) == originals
    for file in plain.rglob("case_*/*"):
        assert (augmented / file.relative_to(plain)).read_bytes() == file.read_bytes()
    assert sorted(find_truths(augmented)) == originals  # scores are means over patients


def test_a_store_trains_on_variants_where_their_patients_train(augmented, tmp_path, capsys):
    def store(name: str, **more) -> Store:
        prepare.main(prepare.Args(source=str(augmented), store=str(tmp_path / name), workers=1, **more))
        return Store(tmp_path / name)

    made_from = {case.case_id: set(case.made_from) for case in find_cases(augmented).cases if case.made_from}
    opened = store("store")
    assert "; 8 variants, trained on where their patients are" in capsys.readouterr().out
    assert not set(made_from) & {case for part in (opened.splits.test, *opened.splits.folds) for case in part}
    for fold in (0, 1, 2, "all"):
        train, _ = opened.splits.select(fold)
        used = {case for case in train if case in made_from}
        assert used == {case for case, parents in made_from.items() if parents <= set(train)}
    assert set(opened.splits.select("all")[0]) & set(made_from)
    first = store("store", seed=0, skip=("case_00000",))
    assert "not trained on, because a case that they were made from is not here" in capsys.readouterr().out
    for fold in (0, 1, "all"):
        assert all("case_00000" not in made_from.get(case, ()) for case in first.splits.select(fold)[0])
    with pytest.raises(InputError, match="no patient is left"):
        store("store", skip=tuple(f"case_{i:05d}" for i in range(4)))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "variant.json is not there"), ("{}", "must list case ids, found None"), ("{", "cannot be read")],
)
def test_a_variant_without_a_valid_record_is_not_used(augmented, tmp_path, content, words):
    root = shutil.copytree(augmented, tmp_path / "raw")
    record = root / "case_00001-variant-2" / VARIANT_RECORD
    record.unlink() if content is None else record.write_text(content)
    with pytest.raises(JobFailed, match="1 of 12 cases cannot be used: case_00001-variant-2"):
        audit.main(audit.Args(source=str(root), output=str(tmp_path), workers=1))
    (case,) = [case for case in find_cases(root).cases if case.case_id == "case_00001-variant-2"]
    assert words in case.missing and not case.label


def test_impossible_requests_say_what_to_give(annotations, tmp_path):
    for wrong, words in (
        ({"augment": -1}, "augment=-1 must be 0"),
        ({"augment": 2, "cases": 10}, r"augment=2 makes variants of annotated cases: .*labels=DIR.* cases=30"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
    ):
        with pytest.raises(InputError, match=words):
            program.Args(output="x", **wrong)
    with pytest.raises(InputError, match="2 cases with a tumor .* of 1 annotated cases 1 have.* more than cases=1"):
        painted(annotations, tmp_path / "one", cases=1)
    bare = shutil.copytree(annotations, tmp_path / "bare")
    for case, values in (("case_00002", (TUMOR, CYST)), ("case_00003", (KIDNEY,))):
        path = bare / case / "aggregated_MAJ_seg.nii.gz"
        label = read_labels(path)
        write_nifti(path, label.array * np.isin(label.array, values).astype(np.uint8), label.geometry)
    with pytest.raises(InputError, match="no kidney is annotated in case_00002, so no variant can be made of it"):
        painted(bare, tmp_path / "none")
    assert not (tmp_path / "one").exists() and not (tmp_path / "none").exists()
    write_nifti(path, label.array * 0, label.geometry)
    with pytest.raises(InputError, match="aggregated_MAJ_seg.nii.gz: the label is empty: where are the kidneys"):
        program.main(program.Args(output=str(tmp_path / "empty"), labels=str(bare), workers=1))


def test_the_program_never_writes_over_other_cases(tmp_path):
    def args(**more) -> program.Args:
        return program.Args(**({"output": str(tmp_path), "cases": 1, "size": (8, 64, 64), "workers": 1} | more))

    program.main(args())
    before = (tmp_path / "case_00000" / "imaging.nii.gz").read_bytes()
    program.main(args())  # the very same again
    with pytest.raises(InputError, match="holds phantoms made with"):
        program.main(args(seed=5))
    with pytest.raises(InputError, match="holds phantoms made with"):
        program.main(args(labels=str(tmp_path)))
    (tmp_path / MARKER).unlink()
    with pytest.raises(InputError, match="cases that kits_dist.phantom did not make"):
        program.main(args())
    assert (tmp_path / "case_00000" / "imaging.nii.gz").read_bytes() == before
    for wrong, words in (
        ({"cases": 0}, "at least 1"),
        ({"size": (4, 64, 64)}, "at least 8 slices"),
        ({"spacing_mm": (0, 1, 1)}, "above 0"),
    ):
        with pytest.raises(InputError, match=words):
            args(**wrong)
