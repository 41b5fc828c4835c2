"""KiTS-like cases without KiTS: `python -m kits_dist.phantom output=DIR cases=30 size=[32,128,128] seed=0`.

Writes real NIfTI files in KiTS21's layout and orientation, the same for the same seed. With labels=DIR a CT is painted
around real annotations instead, and augment=N adds N synthetic variants of each: deformed, with other tissue, some with
lesions of another patient. Scores on them are never KiTS results; a mark in the folder travels into every table.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.utils.errors import InputError
from kits_dist.utils.parallel import run_all


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

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
    """Processes; 0 takes one per core, as far as the memory goes."""

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
    """Write phantoms, or annotations with a CT painted around them and their variants."""
    from kits_dist.synthetic.dataset import claim_folder, write_phantom  # SciPy takes half a second to import

    output = Path(args.output)
    if args.labels:
        _paint(args, output)
        return
    spacing_mm = list(args.spacing_mm) if args.spacing_mm else None
    claim_folder(output, _mark("phantom", args) | {"size": list(args.size), "spacing_mm": spacing_mm})
    write = functools.partial(write_phantom, output=output, size=args.size, spacing_mm=args.spacing_mm, seed=args.seed)
    written = list(run_all(write, range(args.cases), "phantom", args.workers))
    print(f"{len(written)} phantom cases in {output}")


def _paint(args: Args, output: Path) -> None:
    from kits_dist.synthetic.dataset import claim_folder, find_annotations, find_donors, write_painted, write_variant

    cases = find_annotations(args.labels, args.cases)
    donors = find_donors(cases, args.labels, args.workers) if args.augment else {}
    claim_folder(output, _mark("painted", args) | ({"augment": args.augment} if args.augment else {}))
    write = functools.partial(write_painted, output=output, seed=args.seed)
    written = list(run_all(write, cases, "painted", args.workers))
    print(f"{len(written)} painted cases in {output}")

    if args.augment:
        write = functools.partial(write_variant, output=output, donors=donors, seed=args.seed)
        items = [(case, number) for case in cases for number in range(1, args.augment + 1)]
        lesions = [count for _, count in run_all(write, items, "variants", args.workers)]
        with_lesions = sum(count > 0 for count in lesions)
        print(f"{len(items)} variants in addition, {with_lesions} with lesions of another patient")


def _mark(data: str, args: Args) -> dict:
    """Return what the folder's cases are made with; the same arguments may write them again."""
    return {"data": data, "seed": args.seed, "cases": args.cases, "labels": Path(args.labels).name}


if __name__ == "__main__":
    cli.run(main, Args)
