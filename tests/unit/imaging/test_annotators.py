"""References made from several annotators: majority, the challenge's samples, each against the others."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from kits_dist import evaluate
from kits_dist.imaging import annotators
from kits_dist.imaging.foreground import Foreground
from kits_dist.imaging.nifti import kits_geometry, read_labels, write_nifti
from kits_dist.utils.errors import InputError, JobFailed, MissingInput
from tests.unit.test_evaluate import run

SHAPE, SPACING = (4, 12, 14), (3.0, 0.8, 0.7)
GEOMETRY = kits_geometry(SHAPE, SPACING)


def write(case: Path, kind: str, instance: int, annotation: int, rows: slice, columns: slice) -> np.ndarray:
    """As KiTS21 stores it, in float64."""
    mask = np.zeros(SHAPE)
    mask[1:3, rows, columns] = 1
    write_nifti(case / "segmentations" / f"{kind}_instance-{instance}_annotation-{annotation}.nii.gz", mask, GEOMETRY)
    return mask > 0


def full_map(one: Foreground) -> np.ndarray:
    """Return the labels on their whole grid."""
    labels = np.zeros(one.grid.shape, np.uint8)
    labels[tuple(slice(c, c + n) for c, n in zip(one.corner, one.array.shape, strict=True))] = one.array
    return labels


@pytest.fixture
def case(tmp_path):
    """(folder, {(kind, instance): {annotation: mask}}): two kidneys, a tumor and a cyst that overlap, 3 or 4 raters."""
    folder = tmp_path / "truth" / "case_00007"
    drawn = {}
    for kind, instance, numbers, row in (
        ("kidney", 1, (1, 2, 3), 1),
        ("kidney", 2, (1, 2, 3, 4), 4),
        ("tumor", 1, (1, 2, 3), 2),
        ("cyst", 1, (2, 3, 5), 3),
    ):
        drawn[kind, instance] = {
            n: write(folder, kind, instance, n, slice(row, row + 3 + n), slice(n, n + 6)) for n in numbers
        }
    return folder, drawn


def test_majority_is_more_than_half_and_tumor_lies_on_top(case):
    folder, drawn = case
    expected = np.zeros(SHAPE, np.uint8)
    for kind, label in (("kidney", 1), ("cyst", 3), ("tumor", 2)):
        for (of_kind, _), masks in drawn.items():
            if of_kind == kind:  # 2 of 3, 3 of 4
                expected[np.sum(list(masks.values()), axis=0) >= len(masks) // 2 + 1] = label
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    assert np.array_equal(full_map(annotators.majority(annotators.read_annotations(folder))), expected)


def sampled(drawn, seed) -> list[np.ndarray]:
    """The challenge's rule, written down a second time: all samples of all groups, one after the other."""
    random = np.random.RandomState(seed)
    of_kind = {kind: [masks for (k, _), masks in drawn.items() if k == kind] for kind in ("kidney", "tumor", "cyst")}
    n = min(len(masks) for masks in drawn.values())
    maps = []
    for _ in range(5):
        offsets = {kind: [random.randint(0, len(masks)) for masks in all_] for kind, all_ in of_kind.items()}
        for i in range(n):
            labels = np.zeros(SHAPE, np.uint8)
            for kind, label in (("kidney", 1), ("cyst", 3), ("tumor", 2)):
                for masks, offset in zip(of_kind[kind], offsets[kind], strict=True):
                    labels[masks[sorted(masks)[(offset + i) % len(masks)]]] = label
            maps.append(labels)
    return maps


def test_samples_are_the_challenge_s(case):
    folder, drawn = case
    expected = sampled(drawn, seed=7)
    got = [
        map_
        for one, often in annotators.samples(annotators.read_annotations(folder))
        for map_ in [full_map(one)] * often
    ]
    assert len(got) == len(expected) == 15
    assert sorted(map_.tobytes() for map_ in got) == sorted(map_.tobytes() for map_ in expected)
    other = folder.rename(folder.with_name("case_00008"))  # another number, other samples
    got = [full_map(one).tobytes() for one, _ in annotators.samples(annotators.read_annotations(other))]
    assert set(got) != {map_.tobytes() for map_ in expected}


def test_a_case_scores_the_mean_over_its_samples(case, tmp_path):
    folder, drawn = case
    predicted = sampled(drawn, seed=7)[4]
    write_nifti(tmp_path / "predictions" / "case_00007.nii.gz", predicted, GEOMETRY)
    summary, (row,) = run(tmp_path / "predictions", folder.parent, tmp_path / "out", reference="samples")
    single = []
    for number, map_ in enumerate(sampled(drawn, seed=7)):
        write_nifti(tmp_path / f"{number}" / "case_00007.nii.gz", map_, GEOMETRY)
        single.append(run(tmp_path / "predictions", tmp_path / f"{number}", tmp_path / f"out{number}")[1][0])
    for column in ("tumor_dice", "mass_surface_dice", "kidney_assd_mm", "cyst_hd95_mm", "kidney_and_mass_truth_ml"):
        mean = np.mean([float(one[column]) for one in single])
        assert float(row[column]) == pytest.approx(mean, rel=1e-8), column
    assert 0 < float(row["tumor_dice"]) < 1
    assert summary["reference"] == "samples" and summary["regions"]["tumor"]["misses"] == 0


def test_each_rater_against_the_majority_of_the_others(case, tmp_path):
    folder, drawn = case
    (folder / "segmentations" / "kidney_instance-2_annotation-4.nii.gz").unlink()
    for number, other in ((2, 1), (3, 2), (5, 3)):
        names = [f"cyst_instance-1_annotation-{n}.nii.gz" for n in (number, other)]
        (folder / "segmentations" / names[0]).rename(folder / "segmentations" / names[1])
    drawn["kidney", 2].pop(4)
    drawn["cyst", 1] = {other: drawn["cyst", 1][number] for number, other in ((2, 1), (3, 2), (5, 3))}
    pairs = annotators.leave_one_out_pairs(annotators.read_annotations(folder))
    for rater, (own, others) in zip((1, 2, 3), pairs, strict=True):
        two = [n for n in (1, 2, 3) if n != rater]
        expected, alone = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
        for kind, label in (("kidney", 1), ("cyst", 3), ("tumor", 2)):
            for (of_kind, _), masks in drawn.items():
                if of_kind == kind:  # more than half of two is both
                    expected[masks[two[0]] & masks[two[1]]] = label
                    alone[masks[rater]] = label
        assert np.array_equal(full_map(others), expected) and np.array_equal(full_map(own), alone)
    evaluate.main(evaluate.Args(raters=str(folder.parent), output=str(tmp_path / "ceiling")))
    assert (tmp_path / "ceiling" / "challenge.csv").is_file()


def test_what_is_wrong_with_annotations_is_named(case, tmp_path):
    folder, _ = case
    first = folder / "segmentations" / "kidney_instance-1_annotation-1.nii.gz"
    volume = read_labels(first)

    def says(words):
        with pytest.raises(JobFailed, match=words):
            evaluate.main(evaluate.Args(raters=str(folder.parent), output=str(tmp_path / "out")))

    write_nifti(first, volume.array * 2, GEOMETRY)
    says("kidney_instance-1_annotation-1.nii.gz: an annotator's mask must hold 0 and 1, found 2")
    write_nifti(first, volume.array[1:], GEOMETRY._replace(shape=(3, 12, 14)))
    says(r"kidney_instance-1_annotation-1.nii.gz is not on the grid of .*cyst.*: shape \(3, 12, 14\) and \(4, 12, 14\)")
    write_nifti(first, volume.array, GEOMETRY)
    nib.save(nib.load(first), first.with_name("kidney_instance-1_annotation-1.nii"))
    says("exists twice, as kidney_instance-1_annotation-1.nii too")
    first.with_name("kidney_instance-1_annotation-1.nii").unlink()
    for n in (2, 3):
        (folder / "segmentations" / f"tumor_instance-1_annotation-{n}.nii.gz").unlink()
    says("case_00007: 0 annotators drew every instance; two are needed")
    with pytest.raises(InputError, match="seeded by the number of the case"):
        annotators.samples(annotators.read_annotations(folder.rename(folder.with_name("case_x"))))
    (tmp_path / "case_00001").mkdir()
    with pytest.raises(MissingInput, match="segmentations: no KIND_instance-N_annotation-M.nii.gz there"):
        annotators.read_annotations(tmp_path / "case_00001")
