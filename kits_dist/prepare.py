"""CT volumes -> slice store: `python -m kits_dist.prepare source=DIR store=DIR`.

Parallel over cases and restartable: a finished case is not done again, a half-written one is never seen.
A bad case is named, the others are finished, and the exit code is 1; mend it or leave it out with skip=[case_00117].
Several folders: source=[kits19,kits23]
"""

import functools
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kits_dist import __version__, cli
from kits_dist.cli import MISSING
from kits_dist.data import store
from kits_dist.data.intensity import Window, body_box
from kits_dist.data.kidneys import find_kidneys
from kits_dist.data.splits import Traits, make_splits
from kits_dist.imaging.checks import Finding, check_case, find_duplicates, format_findings, unusable_finding
from kits_dist.imaging.datasets import CaseFiles, CaseList, LabelChoice, find_all_cases
from kits_dist.labels import PLAIN, REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.parallel import run_all
from kits_dist.utils.text import listed

LABELS = {"kidney": PLAIN["kidney"][0], "tumor": REGIONS["tumor"][0], "cyst": PLAIN["cyst"][0]}


@dataclass(frozen=True)
class Args:
    source: str = MISSING
    """Folder of cases: KiTS19, KiTS21, KiTS23 or nnU-Net raw layout; several: [A,B]."""
    store: str = MISSING
    """Folder to write."""
    labels: LabelChoice = "majority"
    """Which of KiTS21's aggregated labels: majority, and, or."""
    window_hu: tuple[float, float] = (0.0, 200.0)
    """HU kept; lossless up to 255 HU of width."""
    planes: tuple[str, ...] = ("axial",)
    """Axial, and where wanted coronal, sagittal: each holds all voxels once more."""
    seed: int = 0
    """Of the test set and the folds."""
    skip: tuple[str, ...] = ()
    """Case ids to leave out."""
    workers: int = 0
    """Processes, each holding one case in memory; 0 takes one per core."""

    def __post_init__(self) -> None:
        if not self.window_hu[1] - self.window_hu[0] >= 1:
            raise InputError(
                f"window_hu={list(self.window_hu)}: low must be below high, by 1 HU or more. Example: window_hu=[0,200]"
            )
        if self.window_hu[1] - self.window_hu[0] > 1e5:
            raise InputError(f"window_hu={list(self.window_hu)}: wider than any CT. Example: window_hu=[0,200]")
        if self.seed < 0 or self.workers < 0:
            raise InputError(f"seed={self.seed} and workers={self.workers} must be 0 or more.")
        if self.planes != tuple(p for p in store.PLANES if p in self.planes) or "axial" not in self.planes:
            known = ",".join(store.PLANES)
            raise InputError(
                f"planes={list(self.planes)}: name axial, which evaluation reads, and others in the order [{known}]."
            )


def main(args: Args) -> None:
    source = find_all_cases(args.source, args.labels)
    chosen = [case for case in source.cases if case.case_id not in args.skip]
    unknown = set(args.skip) - {case.case_id for case in source.cases}
    if unknown or all(case.made_from for case in chosen):
        raise InputError(
            f"skip={sorted(args.skip)}: " + (f"no such case: {sorted(unknown)}" if unknown else "no patient is left.")
        )
    with files.exclusive(Path(args.store), "store"):
        _write_store(Path(args.store), chosen, args, source)


def _write_store(root: Path, chosen: list[CaseFiles], args: Args, source: CaseList) -> None:
    for plane in args.planes:
        (root / plane).mkdir(exist_ok=True)
    # Without store.json the folder is no store: nobody trains on a set of cases that is changing.
    (root / "store.json").unlink(missing_ok=True)
    print(f"{len(chosen)} cases, {source.description} -> {root}")
    for note in source.notes:
        print(f"note     {note}")

    work = functools.partial(_prepare_case, root=root, window=Window(*args.window_hu), planes=args.planes)
    results = {case.case_id: result for case, result in run_all(work, chosen, "prepare", args.workers)}
    failed = {case_id: result for case_id, result in results.items() if isinstance(result, InputError)}
    if failed:
        print("\n".join(format_findings(unusable_finding(case_id, error) for case_id, error in failed.items())))
        raise JobFailed(
            f"{len(failed)} of {len(chosen)} cases could not be prepared: {', '.join(sorted(failed))}. The others are "
            f"finished and kept. Mend these and run again, or leave them out: skip=[{','.join(sorted(failed))}]"
        )
    kept = Counter(results.values())["kept"]
    print(f"{len(results) - kept} cases written, {kept} already there")
    _finish(root, [case.case_id for case in chosen], args, source)


def _prepare_case(case: CaseFiles, root: Path, window: Window, planes: tuple[str, ...]) -> str | InputError:
    """Write STORE/PLANE/CASE/{image,label,slices}.npy of each plane, each folder in one step, and last case.json beside
    the axial ones. Returns what was done."""
    try:
        source = _source_files(case)
        done = root / "axial" / case.case_id / "case.json"
        if _is_done(done, root, source, window, planes):
            return "kept"
        image, label, facts, findings = check_case(case)
        levels = window.to_levels(image.array)
        histogram = sum(np.bincount(one.ravel(), minlength=256) for one in levels)  # a slice at a time: it counts int64
        values = np.arange(256)
        written: dict[str, dict] = {}
        for plane in planes:
            written |= _write_plane(root, plane, case.case_id, levels, label.array)
        about = store.Case(
            case_id=case.case_id,
            shape=levels.shape,
            spacing_mm=image.spacing_mm,
            body={plane: body_box(levels.transpose(store.PLANES[plane])) for plane in planes},
            voxels={name: int((label.array == value).sum()) for name, value in LABELS.items()},
            levels={
                "count": levels.size,
                "sum": int((histogram * values).sum()),
                "sum_sq": int((histogram * values**2).sum()),
            },
            geometry=image.geometry,
            source=source,
            voxels_sha256=facts.voxels_sha256,
            kidneys=tuple(find_kidneys(label.array, image.spacing_mm)),
        )
        record = {
            "format": store.FORMAT,
            "window_hu": list(window),
            "planes": list(planes),
            "rounded": bool(image.array.dtype.kind == "f"),
            "case": store.case_to_json(about),
            "findings": findings,
            "files": written,
        }
        files.write_json(done, record)
        return "written"
    except InputError as error:
        return error


def _write_plane(root: Path, plane: str, case_id: str, levels: np.ndarray, label: np.ndarray) -> dict[str, dict]:
    """Both volumes (D, H, W), cut along `plane`, and the voxels of each label per slice. Returns the files' entries."""
    stack, labels = (volume.transpose(store.PLANES[plane]) for volume in (levels, label))
    counts = np.stack([(labels == value).sum(axis=(1, 2)) for value in LABELS.values()])
    folder = root / plane / case_id
    with files.new_folder(folder) as fresh:
        files.write_array(fresh / "image.npy", stack)
        files.write_array(fresh / "label.npy", labels)
        files.write_array(fresh / "slices.npy", counts.astype(np.int32))
        names = ("image.npy", "label.npy", "slices.npy")
        return {f"{plane}/{case_id}/{name}": store.file_entry(fresh / name) for name in names}


def _source_files(case: CaseFiles) -> dict[str, str]:
    paths = {kind: path for kind, path in (("image", case.image), ("label", case.label)) if path and path.is_file()}
    try:
        sums = {f"{kind}_sha256": files.sha256(path) for kind, path in paths.items()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    return {kind: f"{path.parent.name}/{path.name}" for kind, path in paths.items()} | sums


def _is_done(done: Path, root: Path, source: dict[str, str], window: Window, planes: tuple[str, ...]) -> bool:
    """Whether this very source was prepared with this window and planes, and its files are still the ones written."""
    try:
        record = json.loads(done.read_text())
        whole = all(store.file_entry(root / name) == entry for name, entry in record["files"].items())
        same = (record["format"], record["window_hu"], record["planes"], record["case"]["source"])
        return whole and "findings" in record and same == (store.FORMAT, list(window), list(planes), source)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _finish(root: Path, case_ids: list[str], args: Args, source: CaseList) -> None:
    """Everything that needs all cases; store.json last, because it is what makes the folder a store."""
    records = [json.loads((root / "axial" / case_id / "case.json").read_text()) for case_id in case_ids]
    cases = [store.case_from_json(record["case"]) for record in records]
    warnings = [f for record in records for one in record["findings"] if (f := Finding(*one)).severity == "warning"]
    warnings += find_duplicates({case.case_id: case.voxels_sha256 for case in cases})
    for line in format_findings(warnings):
        print(line)
    made_from = {case.case_id: case.made_from for case in source.cases}
    traits = [
        Traits(c.case_id, c.tumor_ml, c.spacing_mm[0], c.voxels["cyst"] > 0, c.voxels_sha256, made_from[c.case_id])
        for c in cases
    ]
    splits = make_splits(traits, args.seed)
    by_id = {case.case_id: case for case in cases}
    if idle := [name for name, parents in splits.variants.items() if not by_id.keys() >= set(parents)]:
        print(f"note     {listed(idle)}: not trained on, because a case that they were made from is not here")
    stacks = [(plane, row) for plane in args.planes for row in range(len(cases))]
    counts = [np.load(root / plane / case_ids[row] / "slices.npy") for plane, row in stacks]
    lengths = [c.shape[1] for c in counts]
    columns = {
        "plane": np.repeat(np.array([store.PLANE_NAMES.index(plane) for plane, _ in stacks], np.int8), lengths),
        "case": np.repeat(np.array([row for _, row in stacks], np.int32), lengths),
        "index": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
    } | dict(zip(LABELS, np.concatenate(counts, axis=1), strict=True))
    np.savez(buffer := io.BytesIO(), **columns)
    files.write_bytes(root / "slices.npz", buffer.getvalue())
    files.write_json(root / "cases.json", [record["case"] for record in records])
    files.write_json(root / "splits.json", splits._asdict())
    folds = [*range(len(splits.folds)), "all"] if len(splits.folds) > 1 else ["all"]
    files.write_json(
        root / "store.json",
        {
            "format": store.FORMAT,
            "data": source.data,
            "window_hu": list(args.window_hu),
            "step_hu": Window(*args.window_hu).step_hu,
            "planes": list(args.planes),
            "source_layout": source.layout,
            "labels": source.labels,
            "rounded_cases": [r["case"]["case_id"] for r in records if r["rounded"]],
            "normalization": {
                str(fold): store.normalization_of([by_id[case] for case in splits.select(fold)[0]])._asdict()
                for fold in folds
            },
            "files": {name: entry for record in records for name, entry in record["files"].items()}
            | {name: store.file_entry(root / name) for name in store.TABLES},
            "versions": {"kits_dist": __version__, "numpy": np.__version__},
        },
    )
    total = sum(lengths)
    size = sum(entry["bytes"] for record in records for entry in record["files"].values())
    print(
        f"{len(cases)} cases, {total} slices, {size / 1e9:.2f} GB; test {len(splits.test)} cases, "
        f"folds {[len(fold) for fold in splits.folds]}"
        + (f"; {len(splits.variants)} variants, trained on where their patients are" if splits.variants else "")
    )


if __name__ == "__main__":
    cli.run(main, Args)
