"""Variants of annotated cases: sane anatomy, lesions where they can be, the same bits anywhere, no leak in a split."""

import json
import shutil
from pathlib import Path

import cc3d
import numpy as np
import pytest
from scipy import ndimage

from kits_dist import audit, prepare
from kits_dist import phantom as program
from kits_dist.data.splits import Traits, make_splits
from kits_dist.data.store import Store
from kits_dist.imaging.datasets import MARKER, VARIANT_RECORD, find_cases
from kits_dist.imaging.nifti import read_labels, write_nifti
from kits_dist.imaging.predictions import find_truths
from kits_dist.labels import CYST, KIDNEY, TUMOR
from kits_dist.synthetic.deformation import Deformation, deform, draw_deformation
from kits_dist.synthetic.lesion_transplant import DonorLesion, resample_lesion, transplant, transplantable_lesions
from kits_dist.synthetic.phantom import make_case, paint_case, room_for_lesions, tissue_hu
from kits_dist.synthetic.shapes import SmoothField, grid_axes, rotation
from kits_dist.synthetic.variants import AnnotatedCase, draw_donor, make_variant
from kits_dist.utils.errors import InputError, JobFailed

SIZE = (24, 96, 96)
REAL_LABELS = Path(__file__).parents[4] / "shared" / "data" / "kits23_labels"


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def annotated(index: int) -> AnnotatedCase:
    case = make_case(1, index, SIZE)
    return AnnotatedCase(f"case_{index:05d}", case.label, case.spacing_mm)


@pytest.fixture(scope="module")
def own() -> AnnotatedCase:
    return annotated(0)


@pytest.fixture(scope="module")
def donor() -> AnnotatedCase:
    return next(
        one for one in map(annotated, range(1, 9)) if len(transplantable_lesions(one.label, one.spacing_mm)) >= 2
    )


# --- deformation ------------------------------------------------------------------------------------------------------


def test_no_deformation_changes_nothing(own):
    fields = tuple(SmoothField(rng(0), 45.0) for _ in range(3))
    still = Deformation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.0, fields)
    assert np.array_equal(deform(own.label, own.spacing_mm, still), own.label)
    larger = still._replace(scale=(1.1, 1.0, 1.0))
    grown = (deform(own.label, own.spacing_mm, larger) > 0).sum()
    assert grown / (own.label > 0).sum() == pytest.approx(1.1, abs=0.05)  # 9 mm slices: the ends are coarse


def test_a_kidney_that_the_scan_cuts_off_stays_cut_off():
    label = np.zeros((30, 40, 40), np.uint8)
    label[:20, 15:25, 15:25] = KIDNEY  # 100 mm
    fields = tuple(SmoothField(rng(0), 45.0) for _ in range(3))
    smaller = deform(label, (5.0, 2.0, 2.0), Deformation((0.0, 0.0, 0.0), (0.8, 1.0, 1.0), 0.0, fields))
    assert (smaller[:18, 15:25, 15:25] == KIDNEY).all()  # about its middle, 50 mm down, to 90 mm
    assert not smaller[18:].any()


@pytest.mark.parametrize("seed", range(4))
def test_labels_stay_labels_and_nothing_tears(own, seed):
    moved = deform(own.label, own.spacing_mm, draw_deformation(rng(seed)))
    assert moved.dtype == np.uint8 and moved.shape == own.label.shape
    assert set(np.unique(moved)) == set(np.unique(own.label)) and not np.array_equal(moved, own.label)
    for value in np.unique(own.label)[1:]:
        assert 0.6 < (moved == value).sum() / (own.label == value).sum() < 1.6  # 1.15^3 at most, and the grid
    counts = [cc3d.statistics(cc3d.connected_components(one > 0))["voxel_counts"] for one in (own.label, moved)]
    assert len({(n[1:] > 50).sum() for n in counts}) == 1  # as many kidneys as before


@pytest.mark.parametrize("seed", range(8))
def test_thin_and_tiny_pieces_do_not_vanish(seed):
    label = np.zeros((20, 60, 60), np.uint8)
    label[4:16, 20:40, 15:30] = KIDNEY
    label[6:14, 22:38, 30] = TUMOR  # a sheet, one voxel thick
    label[10, 30, 20], label[4, 45, 40] = CYST, CYST  # single voxels, in the kidney and alone
    moved = deform(label, (3.0, 1.5, 1.5), draw_deformation(rng(seed)))
    assert (moved == TUMOR).sum() > 0.6 * (label == TUMOR).sum()
    assert cc3d.connected_components(moved == CYST).max() >= 2


def test_deformation_never_folds_and_its_inverse_is_one():
    axes = grid_axes((41, 41, 41), (5.0, 5.0, 5.0), (-100.0,) * 3)
    for seed in range(20):
        one = draw_deformation(rng(seed))
        source = one.source_mm(axes)
        slopes = np.stack([np.stack(np.gradient(part, 5.0)) for part in source])  # (3, 3, D, H, W)
        assert np.linalg.det(slopes.transpose(2, 3, 4, 0, 1)).min() > 0.1
        voxel = (7, 20, 33)
        there = [float(a[i]) for a, i in zip(axes, voxel, strict=True)]
        assert one.target_mm(source[:, *voxel]) == pytest.approx(there, abs=0.05)


# --- transplants ------------------------------------------------------------------------------------------------------


def ball(radius_mm: float, spacing_mm: tuple[float, float, float]) -> DonorLesion:
    axes = grid_axes(tuple(2 * int(radius_mm / s + 2) + 1 for s in spacing_mm), spacing_mm, (0.0, 0.0, 0.0))
    z, y, x = (m - m.mean() for m in axes.mesh())
    return DonorLesion(TUMOR, z * z + y * y + x * x < radius_mm**2, spacing_mm)


@pytest.mark.parametrize("spacing_mm", [(5.0, 0.8, 0.8), (1.0, 1.0, 1.0), (3.0, 1.5, 1.5)])
def test_a_lesion_keeps_size_and_shape_at_another_spacing(spacing_mm):
    for lesion in (ball(10.0, (1.0, 0.7, 0.7)), ball(12.0, (5.0, 0.8, 0.8))):
        mask = resample_lesion(lesion, spacing_mm, rotation(30.0, 80.0, -50.0))
        assert mask.sum() * np.prod(spacing_mm) / 1000 == pytest.approx(lesion.ml, rel=0.03)
        assert cc3d.connected_components(mask).max() == 1
        for axis, step in enumerate(spacing_mm):  # a ball is as wide as before, whatever the turn: 20 or 24 mm
            width = mask.any(axis=tuple(d for d in range(3) if d != axis)).sum() * step
            assert abs(width - 2 * (lesion.ml * 750 / np.pi) ** (1 / 3)) <= 2 * max(step, 2.5)


def test_a_lesion_is_turned_as_its_record_says():
    rod = np.zeros((5, 5, 31), bool)
    rod[1:-1, 1:-1, 1:-1] = True
    turn = rotation(30.0, 0.0, 20.0)
    mask = resample_lesion(DonorLesion(TUMOR, rod, (2.0, 1.0, 1.0)), (1.0, 1.0, 1.0), turn)
    longest = np.linalg.svd(np.argwhere(mask) - np.argwhere(mask).mean(0))[2][0]
    assert abs(longest @ turn[:, 2]) > 0.995  # where the rod's own direction, x, goes: within 6 degrees


def test_lesions_are_those_that_can_be_moved():
    label = np.zeros((20, 60, 60), np.uint8)
    label[5:10, 5:15, 5:15] = TUMOR  # 0.5 ml at 1 mm
    label[10:15, 5:15, 5:15] = CYST  # against it, and a lesion of its own
    label[15:20, 30:40, 30:40] = TUMOR  # cut by the end of the scan
    label[3:5, 40:42, 40:42] = TUMOR  # a speck of 8 mm^3
    found = transplantable_lesions(label, (1.0, 1.0, 1.0))
    assert sorted((one.value, one.ml) for one in found) == [(TUMOR, 0.5), (CYST, 0.5)]


def test_a_transplanted_lesion_lies_where_it_could_have_grown(own, donor):
    room = room_for_lesions(own.label, own.spacing_mm, 0, 0)
    lesions = transplantable_lesions(donor.label, donor.spacing_mm)
    placed = 0
    for seed in range(12):
        found = transplant(own.label, own.spacing_mm, lesions[seed % len(lesions)], room, rng(seed))
        if found is None:
            continue
        after, about = found
        placed += 1
        new = after != own.label
        assert set(np.unique(after[new])) == {about.value} and new.sum() == about.voxels
        assert (own.label[new] <= KIDNEY).all() and (own.label[new] == KIDNEY).any()  # on no lesion, partly in kidney
        grown = ndimage.binary_dilation(new, np.ones((3, 3, 3))) & ~new
        assert (after[grown] == KIDNEY).any() and (after[grown] <= KIDNEY).all()  # against kidney, apart from lesions
        assert room[new].all()
        lost = np.sum(own.label == KIDNEY) - np.sum(after == KIDNEY)
        assert 0 < lost <= 0.25 * np.sum(own.label == KIDNEY)
    assert placed >= 6


def test_no_lesion_is_forced_where_there_is_no_place(own):
    lesion = ball(14.0, (2.0, 2.0, 2.0))
    room = np.ones(own.label.shape, bool)
    assert transplant(own.label, own.spacing_mm, lesion, room, rng(0)) is not None
    assert transplant(own.label, own.spacing_mm, lesion, own.label == KIDNEY, rng(0)) is None
    assert transplant(np.where(own.label == KIDNEY, TUMOR, 0), own.spacing_mm, lesion, room, rng(0)) is None
    assert transplant(own.label, own.spacing_mm, ball(60.0, (4.0, 4.0, 4.0)), room, rng(0)) is None


def test_a_lesion_needs_kidney_to_hang_on_and_to_remain():
    room = np.ones((40, 40, 40), bool)
    string, crumbs = np.zeros((2, 40, 40, 40), np.uint8)
    string[:, 20, 20] = KIDNEY  # a ball 18 mm wide takes 9 of its 40 voxels, and has 380
    assert transplant(string, (2.0, 2.0, 2.0), ball(9.0, (2.0, 2.0, 2.0)), room, rng(0)) is None
    crumbs[5:40:6, 5:40:6, 5:40:6] = crumbs[6:40:6, 5:40:6, 5:40:6] = KIDNEY  # pairs of voxels
    for seed in range(12):
        found = transplant(crumbs, (2.0, 2.0, 2.0), ball(4.0, (2.0, 2.0, 2.0)), room, rng(seed))
        if found:
            new = found[0] == TUMOR
            assert (found[0][ndimage.binary_dilation(new, np.ones((3, 3, 3)))] == KIDNEY).any()


def test_there_is_no_room_in_bone_muscle_and_air(own):
    image = paint_case(own.label, own.spacing_mm, 3, 0, 2).image
    room = room_for_lesions(own.label, own.spacing_mm, 3, 0, 2)
    outside = room & (own.label == 0)
    assert room[own.label > 0].all() and 0.05 < outside.mean() < 0.5
    air, bone = image < -700, image > 280  # HU of a voxel that is half fat: -550
    assert air.mean() > 0.1 and bone.mean() > 0.003
    assert np.mean(air[outside]) < 0.002 and np.mean(bone[outside]) < 0.002  # the working grid is not the voxels' own
    assert not room[:, :3].any() and not room[:, -3:].any()  # air before the patient, air and table behind


# --- variants ---------------------------------------------------------------------------------------------------------


def test_a_variant_is_the_same_bits_again_and_says_what_it_is(own, donor):
    first, again = (make_variant(own, donor, 2, 0, 0, 1) for _ in range(2))
    assert np.array_equal(first.case.image, again.case.image) and first.record == again.record
    assert json.loads(json.dumps(first.record)) == first.record
    record, label = first.record, first.case.label
    assert record["made_from"] == [own.case_id, donor.case_id] and (record["seed"], record["variant"]) == (0, 1)
    assert record["lesions"] and all(one["donor"] == donor.case_id for one in record["lesions"])
    assert record["hu"] == tissue_hu(0, 0, 1) != tissue_hu(0, 0, 2)
    assert set(np.unique(label)) <= {0, KIDNEY, TUMOR, CYST} and label.shape == own.label.shape
    alone = make_variant(own, None, 0, 0, 0, 1)
    assert alone.record["made_from"] == [own.case_id] and alone.record["lesions"] == []
    added = label != alone.case.label
    voxel_ml = np.prod(own.spacing_mm) / 1000
    assert added.sum() * voxel_ml == pytest.approx(sum(one["ml"] for one in record["lesions"]), abs=0.02)
    bone, still = alone.case.image > 300, ~ndimage.binary_dilation(added, np.ones((3, 3, 3)))
    assert not (bone & added).any() and np.array_equal((first.case.image > 300) & still, bone & still)


def test_seed_case_and_number_each_make_another_variant(own):
    images = [make_variant(own, None, 0, *key).case.image for key in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2))]
    for i, image in enumerate(images):
        assert all(np.mean(image != other) > 0.9 for other in images[:i])
    zero = paint_case(own.label, own.spacing_mm, 5, 3, 0).image
    assert np.array_equal(zero, paint_case(own.label, own.spacing_mm, 5, 3).image)  # the case itself is variant 0


def test_a_donor_is_another_patient_drawn_in_any_order():
    ids = [f"case_{i:05d}" for i in range(10)]
    drawn = [draw_donor(ids[4], ids, 7, 4, number) for number in range(1, 401)]
    assert drawn == [draw_donor(ids[4], ids[::-1], 7, 4, number) for number in range(1, 401)]
    donors = [donor for donor, _ in drawn if donor]
    assert set(donors) == set(ids) - {ids[4]}
    assert [(donor is None) == (wanted == 0) for donor, wanted in drawn] == [True] * 400
    assert 0.15 < 1 - len(donors) / 400 < 0.35  # a quarter without
    assert {wanted for _, wanted in drawn} == {0, 1, 2}


@pytest.mark.kits
def test_variants_of_real_annotations():
    if not REAL_LABELS.is_dir():
        pytest.skip(f"needs real KiTS23 annotations in {REAL_LABELS}")

    def real(case_id: str) -> AnnotatedCase:
        volume = read_labels(REAL_LABELS / case_id / "segmentation.nii.gz")
        return AnnotatedCase(case_id, volume.array, volume.spacing_mm)

    own = real("case_00148")  # 36 slices, one tumor, no cyst; the donor has both, at another spacing
    label, record = (one := make_variant(own, real("case_00110"), 2, 0, 148, 1)).case.label, one.record
    for value in (KIDNEY, TUMOR):
        assert 0.6 < np.sum(label == value) / np.sum(own.label == value) < 3  # the added tumor is of 29 ml, its own 25
    assert [one["donor"] for one in record["lesions"]] == ["case_00110"] * 2
    found = sum(
        len(transplantable_lesions(np.where(label == value, label, 0), own.spacing_mm)) for value in (TUMOR, CYST)
    )
    assert found == len(transplantable_lesions(own.label, own.spacing_mm)) + 2
    assert np.mean(one.case.image[label >= TUMOR] > 250) < 0.01 and np.mean(one.case.image[label > 0] < -300) < 0.01


# --- splits -----------------------------------------------------------------------------------------------------------


def test_no_variant_is_trained_on_while_a_patient_of_it_is_held_out():
    for seed in range(60):
        one = rng(seed)
        number = int(one.integers(3, 40))
        ids = [f"case_{i:05d}" for i in range(number)]
        scan = {case: f"scan {one.integers(number)}" for case in ids}  # some are there twice
        originals = [Traits(c, one.lognormal(3, 1), 3.0, bool(one.integers(2)), scan[c]) for c in ids]
        made_from = {
            f"{case}-variant-{k}": (case, *one.choice(ids, one.integers(2), replace=False))
            for case in ids
            for k in (1, 2)
        }
        variants = [Traits(v, 1.0, 9.0, True, f"pixels of {v}", tuple(map(str, f))) for v, f in made_from.items()]
        mixed = [(originals + variants)[i] for i in one.permutation(3 * number)]
        splits, plain = make_splits(mixed, seed), make_splits(originals, seed)
        assert (splits.test, splits.folds) == (plain.test, plain.folds)  # the same patients are held out
        held_out_somewhere = set()
        folds = range(len(splits.folds)) if len(splits.folds) > 1 else []
        for fold in (*folds, "all"):
            train, val = splits.select(fold)
            assert (set(train) & set(ids), val) == (set(plain.select(fold)[0]), plain.select(fold)[1])
            known = {scan[case] for case in train if case in scan}
            used = set(train) - set(ids)
            for variant, parents in made_from.items():
                assert (variant in used) == ({scan[p] for p in parents} <= known)
            away = {scan[case] for case in (splits.test if fold == "all" else [*splits.test, *val])}
            assert not {scan[p] for variant in used for p in made_from[variant]} & away
            held_out_somewhere |= set(made_from) - used
        assert held_out_somewhere or not splits.test


def test_variants_alone_are_no_data_set():
    with pytest.raises(InputError, match="every case is a synthetic variant"):
        make_splits([Traits("case_1-variant-1", 1.0, 1.0, False, "a", ("case_1",))], 0)


# --- the program ------------------------------------------------------------------------------------------------------


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


def test_the_program_writes_variants_beside_the_painted_cases(annotations, augmented, tmp_path, capsys, monkeypatch):
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
    # in another order, and from painted cases, whose variants are passed over
    monkeypatch.setattr(program, "run_all", lambda work, items, *_: [(item, work(item)) for item in list(items)[::-1]])
    again = painted(augmented, tmp_path / "again", seed=3)
    for file in augmented.rglob("case_*/*"):
        assert (again / file.relative_to(augmented)).read_bytes() == file.read_bytes()
    assert "8 variants beside them" in capsys.readouterr().out
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
    "content, words",
    [(None, "variant.json is not there"), ("{}", "must list case ids, found None"), ("{", "is damaged")],
)
def test_a_variant_that_does_not_say_what_it_is_is_not_used(augmented, tmp_path, content, words):
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
    with pytest.raises(InputError, match="of 1 annotated cases in .* 1 have a tumor .* needed.*more than cases=1"):
        painted(annotations, tmp_path / "one", cases=1)
    bare = shutil.copytree(annotations, tmp_path / "bare")
    for case, values in (("case_00002", (TUMOR, CYST)), ("case_00003", (KIDNEY,))):
        path = bare / case / "aggregated_MAJ_seg.nii.gz"
        label = read_labels(path)
        write_nifti(path, label.array * np.isin(label.array, values).astype(np.uint8), label.geometry)
    with pytest.raises(InputError, match="no kidney is annotated in case_00002, so nothing can be varied there"):
        painted(bare, tmp_path / "none")
    assert not (tmp_path / "one").exists() and not (tmp_path / "none").exists()
