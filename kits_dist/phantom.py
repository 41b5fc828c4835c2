"""KiTS-like cases without KiTS: `python -m kits_dist.phantom output=DIR cases=30 size=[32,128,128] seed=0`.

Real NIfTI files in KiTS21's layout and orientation, the same for the same seed. With labels=DIR a CT is painted onto
real annotations instead, and augment=N adds N synthetic variants of each: deformed, with other tissue, some with
lesions of another patient. Scores on them are never KiTS results; the folder carries a mark that travels into every
table.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.imaging.datasets import MARKER, VARIANT_RECORD, CaseFiles, find_cases, variant_id
from kits_dist.imaging.nifti import Geometry, Volume, kits_geometry, read_labels, write_nifti
from kits_dist.labels import KIDNEY
from kits_dist.synthetic.lesion_transplant import transplantable_lesions
from kits_dist.synthetic.phantom import PhantomCase, make_case, paint_case
from kits_dist.synthetic.variants import AnnotatedCase, draw_donor, make_variant
from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.parallel import run_all
from kits_dist.utils.text import listed


@dataclass(frozen=True)
class Args:
    output: str = MISSING
    """Folder to write."""
    cases: int = 30
    """How many; with labels= at most this many."""
    size: tuple[int, int, int] = (32, 128, 128)
    """(slices, rows, columns); not used with labels=."""
    spacing_mm: tuple[float, float, float] | None = None
    """(slice, row, column) distances; none varies them with the case."""
    seed: int = 0
    """Same seed, same voxels."""
    labels: str = ""
    """Folder of annotated cases to paint CTs onto."""
    augment: int = 0
    """With labels=: synthetic variants of each case, which train where their patients do."""
    workers: int = 0
    """Processes; 0 takes one per core."""

    def __post_init__(self) -> None:
        if self.cases < 1:
            raise InputError(f"cases={self.cases} must be at least 1.")
        if min(self.size) < 8 or self.size[0] < 8 or min(self.size[1:]) < 64:
            raise InputError(f"size={list(self.size)}: at least 8 slices of 64x64. Example: size=[32,128,128]")
        if self.spacing_mm and min(self.spacing_mm) <= 0:
            raise InputError(f"spacing_mm={list(self.spacing_mm)}: each must be above 0.")
        if self.seed < 0:
            raise InputError(f"seed={self.seed} must be 0 or more.")
        if self.augment < 0:
            raise InputError(f"augment={self.augment} must be 0 (none) or more.")
        if self.augment and not self.labels:
            raise InputError(
                f"augment={self.augment} makes variants of annotated cases: name their folder, labels=DIR. For more "
                f"phantoms without: cases={self.cases * (1 + self.augment)}"
            )


def main(args: Args) -> None:
    output = Path(args.output)
    data = "painted" if args.labels else "phantom"
    mark = {"data": data, "seed": args.seed, "cases": args.cases, "labels": Path(args.labels).name}
    mark |= {} if args.labels else {"size": list(args.size), "spacing_mm": args.spacing_mm and list(args.spacing_mm)}
    mark |= {"augment": args.augment} if args.augment else {}
    cases = _annotations(args) if args.labels else []
    donors = _donors(cases, args) if args.augment else {}
    _claim(output, mark)
    work = functools.partial(_write_painted if args.labels else _write_phantom, args=args)
    written = sum(1 for _ in run_all(work, cases or range(args.cases), data, args.workers))
    print(f"{written} {data} cases in {output}")
    if args.augment:
        work = functools.partial(_write_variant, donors=donors, args=args)
        numbered = [(case, number) for case in cases for number in range(1, args.augment + 1)]
        with_lesions = sum(lesions > 0 for _, lesions in run_all(work, numbered, "variants", args.workers))
        print(f"{len(numbered)} variants beside them, {with_lesions} with lesions of another patient")


def _claim(output: Path, mark: dict) -> None:
    """Make the folder ours. Raises InputError rather than writing over cases that are not these very ones."""
    written = output / MARKER
    try:
        there = json.loads(written.read_text()) if written.is_file() else None
    except ValueError as error:
        raise InputError(f"{written} is damaged ({error}). Name another folder.") from error
    if there != mark and any(output.glob("case_*")):
        what = f"phantoms made with {there}" if there else "cases that kits_dist.phantom did not make"
        raise InputError(f"output={output} holds {what}. Name another folder, or delete that one first.")
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(written, mark)


def _annotations(args: Args) -> list[CaseFiles]:
    """Patients only: a variant painted as a case of its own could be trained on while its patient is tested."""
    cases = [case for case in find_cases(Path(args.labels)).cases if case.label and not case.made_from]
    if not cases:
        raise InputError(f"labels={args.labels}: no case there has a label file.")
    return cases[: args.cases]


def _donors(cases: list[CaseFiles], args: Args) -> dict[str, Path]:
    """{case id: label file} of those with a lesion that can be moved.

    Raises InputError for a case without kidney, which no lesion could grow on, or when a case has no other to take
    lesions from.
    """
    found = {case.case_id: result for case, result in run_all(_look, cases, "annotations", args.workers)}
    if bare := sorted(case_id for case_id, (kidney, _) in found.items() if not kidney):
        raise InputError(
            f"labels={args.labels}: no kidney is annotated in {listed(bare)}, so nothing can be varied there. Mend or "
            "remove them, or leave augment= out."
        )
    donors = {case.case_id: case.label for case in cases if found[case.case_id][1]}
    if len(donors) < 2:
        raise InputError(
            f"augment={args.augment} moves lesions between patients; of {len(cases)} annotated cases in "
            f"{args.labels} {len(donors)} have a tumor or cyst that can be moved, and 2 are needed. Name a folder with "
            f"more, or take more than cases={args.cases} of it."
        )
    return donors


def _look(case: CaseFiles) -> tuple[bool, bool]:
    """Whether its annotation holds kidney, and lesions that can be moved."""
    label = read_labels(case.label)
    return bool((label.array == KIDNEY).any()), bool(transplantable_lesions(label.array, label.spacing_mm))


def _write_phantom(index: int, args: Args) -> None:
    case = make_case(args.seed, index, args.size, args.spacing_mm)
    _write(Path(args.output) / f"case_{index:05d}", case, kits_geometry(case.label.shape, case.spacing_mm))


def _write_painted(files_: CaseFiles, args: Args) -> None:
    label = read_labels(files_.label)
    case = paint_case(label.array, label.spacing_mm, args.seed, _number(files_.case_id))
    _write(Path(args.output) / files_.case_id, case, label.geometry)


def _write_variant(item: tuple[CaseFiles, int], donors: dict[str, Path], args: Args) -> int:
    """Returns how many lesions of another patient it holds."""
    (case_id, _, path, *_), number = item
    index = _number(case_id)
    label = read_labels(path)
    donor, wanted = draw_donor(case_id, list(donors), args.seed, index, number)
    theirs = _annotated(donor, read_labels(donors[donor])) if donor else None
    variant = make_variant(_annotated(case_id, label), theirs, wanted, args.seed, index, number)
    with files.new_folder(Path(args.output) / variant_id(case_id, number)) as folder:  # never a CT without its record
        files.write_json(folder / VARIANT_RECORD, variant.record)
        _write(folder, variant.case, label.geometry)
    return len(variant.record["lesions"])


def _annotated(case_id: str, label: Volume) -> AnnotatedCase:
    return AnnotatedCase(case_id, label.array, label.spacing_mm)


def _write(folder: Path, case: PhantomCase, geometry: Geometry) -> None:
    write_nifti(folder / "aggregated_MAJ_seg.nii.gz", case.label, geometry)
    write_nifti(folder / "imaging.nii.gz", case.image, geometry)


def _number(case_id: str) -> int:
    return int("".join(c for c in case_id if c.isdigit()) or 0)


if __name__ == "__main__":
    cli.run(main, Args)
