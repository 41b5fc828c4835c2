"""Write a slice store: one case at a time, each restartable, then the tables that need all cases. See `store`."""

import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kits_dist import __version__
from kits_dist.data import store
from kits_dist.data.intensity import Window, body_box
from kits_dist.data.kidneys import find_kidneys
from kits_dist.data.splits import SplitRule, Splits, Traits, make_splits
from kits_dist.imaging.checks import Finding, check_case, find_duplicates
from kits_dist.imaging.datasets import CaseFiles, CaseList
from kits_dist.labels import LABELS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError

FOREGROUND = {name: value for name, value in LABELS.items() if value}


def write_case(
    case: CaseFiles, root: Path, window: Window, planes: tuple[str, ...]
) -> Literal["written", "kept"] | InputError:
    """Write the arrays of a case, and last axial/CASE/case.json; keep them where they are already there.

    Every folder is written in one step, so that a case that was interrupted is never taken for a finished one.

    Returns an InputError, rather than raising it, where the case cannot be used: the others are still prepared.
    """
    try:
        source = _hash_sources(case)
        record_path = root / "axial" / case.case_id / "case.json"
        if _is_done(record_path, root, source, window, planes):
            return "kept"

        image, label, facts, findings = check_case(case)
        levels = window.to_levels(image.array)
        written: dict[str, dict] = {}
        for plane in planes:
            written |= _write_plane(root, plane, case.case_id, levels, label.array)

        row = store.Case(
            case_id=case.case_id,
            shape=image.array.shape,
            spacing_mm=image.spacing_mm,
            body={plane: body_box(levels.transpose(store.PLANES[plane])) for plane in planes},
            voxels={name: int((label.array == value).sum()) for name, value in FOREGROUND.items()},
            levels=level_sums(levels),
            geometry=image.geometry,
            source=source,
            voxels_sha256=facts.voxels_sha256,
            kidneys=tuple(find_kidneys(label.array, image.spacing_mm)),
        )
        files.write_json(
            record_path,
            {
                "format": store.FORMAT,
                "window_hu": list(window),
                "planes": list(planes),
                "rounded": image.array.dtype.kind == "f",
                "case": store.case_to_json(row),
                "findings": findings,
                "files": written,
            },
        )
        return "written"
    except InputError as error:
        return error


def level_sums(levels: np.ndarray) -> dict[str, float]:
    """Return count, sum and sum_sq of (D, H, W) uint8 levels, as `Case.levels`."""
    # A slice at a time: np.bincount converts its input to int64.
    histogram = sum(np.bincount(one.ravel(), minlength=256) for one in levels)
    values = np.arange(256)
    sums = {"sum": int((histogram * values).sum()), "sum_sq": int((histogram * values**2).sum())}
    return {"count": levels.size, **sums}


def _hash_sources(case: CaseFiles) -> dict[str, str]:
    """Return names and sha256 of the files of a case, as case.json records them."""
    paths = {kind: path for kind, path in (("image", case.image), ("label", case.label)) if path and path.is_file()}
    try:
        sums = {f"{kind}_sha256": files.sha256(path) for kind, path in paths.items()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    return {kind: f"{path.parent.name}/{path.name}" for kind, path in paths.items()} | sums


def _is_done(record_path: Path, root: Path, source: dict[str, str], window: Window, planes: tuple[str, ...]) -> bool:
    """Whether this source was prepared with this window and planes, and its files are still the ones written."""
    try:
        record = json.loads(record_path.read_text())
        intact = all(store.file_entry(root / name) == entry for name, entry in record["files"].items())
        found = (record["format"], record["window_hu"], record["planes"], record["case"]["source"])
        return intact and "findings" in record and found == (store.FORMAT, list(window), list(planes), source)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_plane(root: Path, plane: str, case_id: str, levels: np.ndarray, label: np.ndarray) -> dict[str, dict]:
    """Write both (D, H, W) volumes as slices along `plane`, and the voxels of each label per slice.

    Returns {path relative to root: file entry}.
    """
    axes = store.PLANES[plane]
    slices = label.transpose(axes)
    counts = np.stack([(slices == value).sum(axis=(1, 2)) for value in FOREGROUND.values()])
    arrays = {"image": levels.transpose(axes), "label": slices, "slices": counts.astype(np.int32)}
    with files.new_folder(root / plane / case_id) as folder:
        for kind, array in arrays.items():
            files.write_array(folder / f"{kind}.npy", array)
        return {f"{plane}/{case_id}/{kind}.npy": store.file_entry(folder / f"{kind}.npy") for kind in arrays}


def write_tables(
    root: Path,
    case_ids: list[str],
    source: CaseList,
    window: Window,
    planes: tuple[str, ...],
    seed: int,
    rule: SplitRule,
) -> list[Finding]:
    """Write what needs all cases, and return the warnings. store.json is last: without it the folder is no store."""
    records = [json.loads((root / "axial" / case_id / "case.json").read_text()) for case_id in case_ids]
    cases = [store.case_from_json(record["case"]) for record in records]
    splits = _deal(cases, source, seed, rule)

    buffer = io.BytesIO()
    np.savez(buffer, **_slice_columns(root, case_ids, planes))
    files.write_bytes(root / "slices.npz", buffer.getvalue())
    files.write_json(root / "cases.json", [record["case"] for record in records])
    files.write_json(root / "splits.json", splits._asdict())
    arrays = {name: entry for record in records for name, entry in record["files"].items()}
    files.write_json(
        root / "store.json",
        {
            "format": store.FORMAT,
            "data": source.data,
            "window_hu": list(window),
            "step_hu": window.step_hu,
            "planes": list(planes),
            "source_layout": source.layout,
            "labels": source.labels,
            "rounded_cases": [record["case"]["case_id"] for record in records if record["rounded"]],
            "normalization": normalizations(cases, splits),
            "files": arrays | {name: store.file_entry(root / name) for name in store.TABLES},
            "versions": {"kits_dist": __version__, "numpy": np.__version__},
        },
    )
    findings = [Finding(*finding) for record in records for finding in record["findings"]]
    warnings = [finding for finding in findings if finding.severity == "warning"]
    return warnings + find_duplicates({case.case_id: case.voxels_sha256 for case in cases})


def _deal(cases: list[store.Case], source: CaseList, seed: int, rule: SplitRule) -> Splits:
    files_of = {case.case_id: case for case in source.cases}
    patients = _patients({case.case_id: (files_of[case.case_id].patient, case.voxels_sha256) for case in cases})
    traits = [
        Traits(
            case.case_id,
            tumor_ml=case.tumor_ml,
            slice_mm=case.spacing_mm[0],
            cyst=case.voxels["cyst"] > 0,
            patient=patients[case.case_id],
            made_from=files_of[case.case_id].made_from,
        )
        for case in cases
    ]
    return make_splits(traits, seed, rule)


def _patients(names: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Return {case: patient}, where cases with the name or the voxels of one patient in common are that patient's.

    names   {case: (patient, or "" where that is not known; sha256 of the voxels)}
    """
    patients: dict[str, str] = {}  # {name or hash: patient}
    for case_id, shared in names.items():
        known = sorted({patients[name] for name in shared if name in patients})
        patient = known[0] if known else case_id
        for name in filter(None, shared):
            patients[name] = patient
        if len(known) > 1:  # they turn out to be one
            patients = {name: patient if other in known else other for name, other in patients.items()}
    return {case_id: patients[shared[1]] for case_id, shared in names.items()}


def _slice_columns(root: Path, case_ids: list[str], planes: tuple[str, ...]) -> dict[str, Any]:
    """Return the columns of slices.npz, plane after plane and case after case."""
    stacks = [(plane, row) for plane in planes for row in range(len(case_ids))]
    counts = [np.load(store.array_path(root, plane, case_ids[row], "slices")) for plane, row in stacks]
    lengths = [count.shape[1] for count in counts]
    return {
        "plane": np.repeat(np.array([store.PLANE_NAMES.index(plane) for plane, _ in stacks], np.int8), lengths),
        "case": np.repeat(np.array([row for _, row in stacks], np.int32), lengths),
        "index": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        **dict(zip(FOREGROUND, np.concatenate(counts, axis=1), strict=True)),
    }


def normalizations(cases: list[store.Case], splits: Splits) -> dict[str, dict[str, float]]:
    """Return {fold: mean and sd of its training cases}; one fold alone leaves no case to train on."""
    by_id = {case.case_id: case for case in cases}
    folds = [*range(len(splits.folds)), "all"] if len(splits.folds) > 1 else ["all"]
    return {
        str(fold): store.normalization_of([by_id[case_id] for case_id in splits.select(fold)[0]])._asdict()
        for fold in folds
    }
