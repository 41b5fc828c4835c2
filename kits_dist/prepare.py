"""CT volumes -> slice store: `python -m kits_dist.prepare source=DIR store=DIR`.

Cases are prepared in parallel, and a restart keeps the finished ones. An unusable case is named, the others are
finished, and the exit code is 1: fix that case or leave it out with skip=[case_00117].
Several folders: source=[kits19,kits23]
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.data.intensity import Window
from kits_dist.data.splits import SplitRule, follows_case_numbers
from kits_dist.data.store import PLANES, Store
from kits_dist.data.store_writer import write_case, write_tables
from kits_dist.imaging.checks import format_findings, unusable_finding
from kits_dist.imaging.datasets import CaseFiles, CaseList, LabelChoice, find_all_cases
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.parallel import run_all
from kits_dist.utils.text import listed


@dataclass(frozen=True)
class Args:
    """Arguments of `python -m kits_dist.prepare`."""

    source: str = MISSING
    """Folder of cases: KiTS19, KiTS21, KiTS23 or nnU-Net raw layout; several: [A,B]."""
    store: str = MISSING
    """Folder to write."""
    labels: LabelChoice = "majority"
    """Which of KiTS21's aggregated labels: majority, and, or."""
    window_hu: tuple[float, float] = (0.0, 200.0)
    """HU kept; lossless up to 255 HU of width."""
    planes: tuple[str, ...] = ("axial",)
    """Axial, and optionally coronal, sagittal: each stores all voxels once more."""
    splits: SplitRule = "stratified"
    """Test set and folds: `stratified`, by the seed; `poster`, by case number, for data.fold=0: it trains on 0..239 and
    validates on 240..269, and 270..299 are the test set. Of other data: the first 80 %, the next and the last 10 %."""
    seed: int = 0
    """Random seed of the test set and the folds."""
    skip: tuple[str, ...] = ()
    """Case ids to leave out."""
    workers: int = 0
    """Processes, each holding one case in memory; 0 takes one per core, as far as the memory goes."""

    def __post_init__(self) -> None:
        if not self.window_hu[1] - self.window_hu[0] >= 1:
            raise InputError(
                f"window_hu={list(self.window_hu)}: low must be below high, by 1 HU or more. Example: window_hu=[0,200]"
            )
        if self.window_hu[1] - self.window_hu[0] > 1e5:
            raise InputError(f"window_hu={list(self.window_hu)}: wider than any CT. Example: window_hu=[0,200]")
        if self.seed < 0 or self.workers < 0:
            raise InputError(f"seed={self.seed} and workers={self.workers} must be 0 or more.")
        if self.planes != tuple(p for p in PLANES if p in self.planes) or "axial" not in self.planes:
            known = ",".join(PLANES)
            raise InputError(
                f"planes={list(self.planes)}: name axial, which evaluation reads, and others in the order [{known}]."
            )


def main(args: Args) -> None:
    """Prepare the cases of args.source.

    Raises JobFailed where a case could not be prepared.
    """
    source = find_all_cases(args.source, args.labels)
    unknown = set(args.skip) - {case.case_id for case in source.cases}
    if unknown:
        raise InputError(f"skip={sorted(args.skip)}: no such case: {sorted(unknown)}")
    cases = [case for case in source.cases if case.case_id not in args.skip]
    if all(case.made_from for case in cases):
        raise InputError(f"skip={sorted(args.skip)}: no patient is left.")

    root = Path(args.store)
    with files.exclusive(root, "store"):
        print(f"{len(cases)} cases, {source.description} -> {root}")
        for note in source.notes:
            print(f"note     {note}")
        files.check_names(root, [case.case_id for case in cases], "store")
        _write_cases(root, cases, args)
        _finish(root, cases, source, args)


def _write_cases(root: Path, cases: list[CaseFiles], args: Args) -> None:
    # Without store.json the folder is no store: no training starts on cases that are changing.
    (root / "store.json").unlink(missing_ok=True)
    for plane in args.planes:
        (root / plane).mkdir(exist_ok=True)

    work = partial(write_case, root=root, window=Window(*args.window_hu), planes=args.planes)
    results = {case.case_id: result for case, result in run_all(work, cases, "prepare", args.workers)}
    failed = {case_id: result for case_id, result in sorted(results.items()) if isinstance(result, InputError)}
    if failed:
        print("\n".join(format_findings(unusable_finding(case_id, error) for case_id, error in failed.items())))
        raise JobFailed(
            f"{len(failed)} of {len(cases)} cases could not be prepared: {', '.join(failed)}. The others are "
            f"finished and kept. Fix these and run again, or leave them out: skip=[{','.join(failed)}]"
        )
    count = Counter(results.values())
    print(f"{count['written']} cases written, {count['kept']} already there")


def _finish(root: Path, cases: list[CaseFiles], source: CaseList, args: Args) -> None:
    case_ids = [case.case_id for case in cases]
    warnings = write_tables(root, case_ids, source, Window(*args.window_hu), args.planes, args.seed, args.splits)
    for line in format_findings(warnings):
        print(line)

    store = Store(root, key="store")
    if args.splits == "poster" and not follows_case_numbers(case_ids):
        print(
            "note     splits=poster: these are not KiTS21's case numbers; the parts are tenths in the order of the ids"
        )
    variants = store.splits.variants
    unused = [variant for variant, parents in variants.items() if not set(parents) <= set(case_ids)]
    if unused:
        print(f"note     {listed(unused)}: not trained on, because a case that they were made from is not here")
    size = sum(entry["bytes"] for entry in store.meta["files"].values())
    print(
        f"{len(cases)} cases, {len(store.slices.case)} slices, {size / 1e9:.2f} GB; "
        f"test {len(store.splits.test)} cases, folds {[len(fold) for fold in store.splits.folds]}"
        + (f"; {len(variants)} variants, trained on where their patients are" if variants else "")
    )


if __name__ == "__main__":
    cli.run(main, Args)
