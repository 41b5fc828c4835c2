"""KiTS-like cases without KiTS: `python -m kits_dist.phantom output=DIR cases=30 size=[32,128,128] seed=0`.

Real NIfTI files in KiTS21's layout and orientation, the same for the same seed. With labels=DIR a CT is painted onto
real annotations instead. Scores on them are never KiTS results; the folder carries a mark that travels into every
table.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli, files
from kits_dist.cli import MISSING
from kits_dist.data.phantom import make_case, paint_case
from kits_dist.data.sources import MARKER, CaseFiles, find_cases
from kits_dist.data.volume import kits_geometry, read_labels, write_nifti
from kits_dist.errors import InputError
from kits_dist.parallel import run_all


@dataclass(frozen=True)
class Args:
    output: str = MISSING  # folder to write
    cases: int = 30  # how many; with labels= at most this many
    size: tuple[int, int, int] = (32, 128, 128)  # (slices, rows, columns); not used with labels=
    spacing_mm: tuple[float, float, float] | None = (
        None  # (slice, row, column) distances; none varies them with the case
    )
    seed: int = 0  # same seed, same voxels
    labels: str = ""  # folder of annotated cases to paint CTs onto
    workers: int = 0  # processes; 0 takes one per core

    def __post_init__(self) -> None:
        if self.cases < 1:
            raise InputError(f"cases={self.cases} must be at least 1.")
        if min(self.size) < 8 or self.size[0] < 8 or min(self.size[1:]) < 64:
            raise InputError(f"size={list(self.size)}: at least 8 slices of 64x64. Example: size=[32,128,128]")
        if self.spacing_mm and min(self.spacing_mm) <= 0:
            raise InputError(f"spacing_mm={list(self.spacing_mm)}: each must be above 0.")


def main(args: Args) -> None:
    output = Path(args.output)
    data = "painted" if args.labels else "phantom"
    work = functools.partial(_write_painted if args.labels else _write_phantom, args=args)
    items = _annotations(args) if args.labels else range(args.cases)
    mark = {"data": data, "seed": args.seed, "cases": args.cases, "labels": Path(args.labels).name}
    mark |= {} if args.labels else {"size": list(args.size), "spacing_mm": args.spacing_mm and list(args.spacing_mm)}
    _claim(output, mark)
    written = sum(1 for _ in run_all(work, items, data, args.workers))
    print(f"{written} {data} cases in {output}")


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
    cases = [case for case in find_cases(Path(args.labels)).cases if case.label]
    if not cases:
        raise InputError(f"labels={args.labels}: no case there has a label file.")
    return cases[: args.cases]


def _write_phantom(index: int, args: Args) -> None:
    case = make_case(args.seed, index, args.size, args.spacing_mm)
    geometry = kits_geometry(case.label.shape, case.spacing_mm)
    folder = Path(args.output) / f"case_{index:05d}"
    write_nifti(folder / "aggregated_MAJ_seg.nii.gz", case.label, geometry)
    write_nifti(folder / "imaging.nii.gz", case.image, geometry)


def _write_painted(files_: CaseFiles, args: Args) -> None:
    label = read_labels(files_.label)
    number = int("".join(c for c in files_.case_id if c.isdigit()) or 0)
    case = paint_case(label.array, label.spacing_mm, args.seed, number)
    folder = Path(args.output) / files_.case_id
    write_nifti(folder / "aggregated_MAJ_seg.nii.gz", case.label, label.geometry)
    write_nifti(folder / "imaging.nii.gz", case.image, label.geometry)


if __name__ == "__main__":
    cli.run(main, Args)
