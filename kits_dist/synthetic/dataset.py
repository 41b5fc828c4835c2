"""Folders of phantoms, painted cases and variants: claim the folder, choose donors, write one case at a time.

Each `write_*` function makes one case from its arguments alone, so cases can be written in any order by any process.
"""

from pathlib import Path

from kits_dist.imaging.datasets import MARKER, VARIANT_RECORD, CaseFiles, find_cases, variant_id
from kits_dist.imaging.nifti import Geometry, kits_geometry, read_labels, write_nifti
from kits_dist.labels import KIDNEY
from kits_dist.synthetic.lesion_transplant import transplantable_lesions
from kits_dist.synthetic.phantom import PhantomCase, make_case, paint_case
from kits_dist.synthetic.shapes import Vec3
from kits_dist.synthetic.variants import AnnotatedCase, draw_donor, make_variant
from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.parallel import run_all
from kits_dist.utils.text import listed


def claim_folder(output: Path, mark: dict) -> None:
    """Write `mark`, what the cases are made with, into `output`.

    Raises InputError rather than overwriting cases that were not made with exactly this mark.
    """
    path = output / MARKER
    existing = files.read_json(path) if path.is_file() else None
    if existing != mark and any(output.glob("case_*")):
        what = f"phantoms made with {existing}" if existing else "cases that kits_dist.phantom did not make"
        raise InputError(f"output={output} holds {what}. Name another folder, or delete that one first.")
    files.make_folder(output, "output")
    files.write_json(path, mark)


def find_annotations(labels: str, limit: int) -> list[CaseFiles]:
    """Return the first `limit` patients with a label file. Raises InputError when there is none.

    Variants are left out: painted as cases of their own they could be trained on while their patient is tested.
    """
    cases = [case for case in find_cases(Path(labels)).cases if case.label and not case.made_from]
    if not cases:
        raise InputError(f"labels={labels}: no case there has a label file.")
    return cases[:limit]


def find_donors(cases: list[CaseFiles], labels: str, workers: int) -> dict[str, Path]:
    """Return {case id: label file} of the cases with a lesion that can be transplanted.

    Raises InputError for a case without kidney, which could not receive a lesion, and for fewer than two donors.
    """
    contents = {case.case_id: found for case, found in run_all(_contents, cases, "annotations", workers)}
    without_kidney = sorted(case_id for case_id, (has_kidney, _) in contents.items() if not has_kidney)
    if without_kidney:
        raise InputError(
            f"labels={labels}: no kidney is annotated in {listed(without_kidney)}, so no variant can be made of it. "
            "Repair or remove the case, or leave augment= out."
        )
    donors = {case.case_id: case.label for case in cases if case.label and contents[case.case_id][1]}
    if len(donors) < 2:
        raise InputError(
            f"labels={labels}: augment= moves lesions between patients, which takes 2 cases with a tumor or cyst that "
            f"can be moved; of {len(cases)} annotated cases {len(donors)} have one. Name a folder with more, or take "
            f"more than cases={len(cases)} of it."
        )
    return donors


def write_phantom(index: int, output: Path, size: tuple[int, int, int], spacing_mm: Vec3 | None, seed: int) -> None:
    """Write case `index` of the phantoms of `seed`."""
    case = make_case(seed, index, size, spacing_mm)
    _write(output / f"case_{index:05d}", case, kits_geometry(case.label.shape, case.spacing_mm))


def write_painted(annotation: CaseFiles, output: Path, seed: int) -> None:
    """Write an annotation with a CT painted around it."""
    assert annotation.label is not None  # find_annotations
    label = read_labels(annotation.label)
    if not label.array.any():
        raise InputError(f"{annotation.label}: the label is empty: where are the kidneys? Leave that case out.")
    case = paint_case(label.array, label.spacing_mm, seed, _number(annotation.case_id))
    _write(output / annotation.case_id, case, label.geometry)


def write_variant(item: tuple[CaseFiles, int], output: Path, donors: dict[str, Path], seed: int) -> int:
    """Write variant `number` of an annotation. Returns how many lesions of another patient it holds.

    item   (annotation, number)
    """
    annotation, number = item
    assert annotation.label is not None  # find_annotations
    label = read_labels(annotation.label)
    own = AnnotatedCase(annotation.case_id, label.array, label.spacing_mm)
    index = _number(own.case_id)

    donor_id, max_lesions = draw_donor(own.case_id, list(donors), seed, index, number)
    donor = None
    if donor_id:
        volume = read_labels(donors[donor_id])
        donor = AnnotatedCase(donor_id, volume.array, volume.spacing_mm)
    variant = make_variant(own, donor, max_lesions, seed, index, number)

    # In one step, because a CT without its record would pass for a patient.
    with files.new_folder(output / variant_id(own.case_id, number)) as folder:
        files.write_json(folder / VARIANT_RECORD, variant.record)
        _write(folder, variant.case, label.geometry)
    return len(variant.record["lesions"])


def _contents(annotation: CaseFiles) -> tuple[bool, bool]:
    """Return whether kidney is annotated, and whether there are lesions that can be transplanted."""
    assert annotation.label is not None  # find_annotations
    label = read_labels(annotation.label)
    return bool((label.array == KIDNEY).any()), bool(transplantable_lesions(label.array, label.spacing_mm))


def _write(folder: Path, case: PhantomCase, geometry: Geometry) -> None:
    write_nifti(folder / "aggregated_MAJ_seg.nii.gz", case.label, geometry)
    write_nifti(folder / "imaging.nii.gz", case.image, geometry)


def _number(case_id: str) -> int:
    return int("".join(c for c in case_id if c.isdigit()) or 0)
