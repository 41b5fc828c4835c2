"""The cases that are scored: those that a run was not trained on, or a choice of those in a folder of annotations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kits_dist.data.store import Store
from kits_dist.imaging.checks import INTENSITY, Finding
from kits_dist.imaging.datasets import find_cases
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.files import read_json
from kits_dist.utils.text import listed

if TYPE_CHECKING:
    from kits_dist.inference.predictor import Predictor

Split = Literal["test", "val"]


def held_out(predictor: Predictor, split: Split, store: str = "") -> tuple[Store, list[str]]:
    """Return the run's store (or `store`, where it has moved) and the case ids of `split`.

    Raises InputError for an empty split, another window, a plane that was not prepared, or cases that the run was
    trained on.
    """
    config = predictor.config
    opened = Store(store or config.data.store, key="store")
    case_ids = opened.splits.test if split == "test" else opened.splits.select(config.data.fold)[1]
    if not case_ids:
        raise InputError(f"split={split}: this store has no such cases (it holds {len(opened.cases)}).")

    if opened.window != predictor.window:
        raise InputError(
            f"the run was trained on HU {list(predictor.window)} but the store {opened.path} holds "
            f"{list(opened.window)}. Prepare a store with the run's window: window_hu=[...]"
        )
    wanted = {plane for member in predictor.members for plane in member.config.data.planes}
    absent = sorted(wanted - set(opened.planes))
    if absent:
        raise InputError(
            f"the run predicts {', '.join(absent)} slices, which the store {opened.path} was not prepared for. Prepare "
            "it with planes=[axial,coronal,sagittal]"
        )
    trained_on = [case for case in case_ids if opened.cases[opened.row[case]].voxels_sha256 in predictor.trained_on]
    if trained_on:
        raise InputError(
            f"split={split}: the run was trained on {listed(trained_on)}; such a score says nothing about new "
            "patients. Use split=test with the store that the run was trained on."
        )
    return opened, case_ids


def intensity_warnings(store: Store, case_ids: list[str]) -> list[Finding]:
    """Return what `prepare` recorded of cases that are not in HU: the store holds no more than levels of its window."""
    records = {case_id: store.path / "axial" / case_id / "case.json" for case_id in case_ids}
    findings = [
        Finding(*finding) for path in records.values() if path.is_file() for finding in read_json(path)["findings"]
    ]
    return [finding for finding in findings if finding.kind in INTENSITY]


def case_folders(folder: Path, key: str) -> dict[str, Path]:
    """Return {case: its folder} of a KiTS folder, the value of `key`. Raises MissingInput / InputError."""
    if not folder.is_dir():
        raise MissingInput(f"{key}={folder}: no such folder.")
    source = find_cases(folder)
    return {case.case_id: source.root / case.case_id for case in source.cases}


def select_cases(found: dict[str, Path], case_ids: list[str], folder: Path) -> dict[str, Path]:
    """Return these cases of `folder`. Raises InputError where one was not found there."""
    lacking = sorted(set(case_ids) - set(found))
    if lacking:
        raise InputError(f"{folder} has no {listed(lacking)}, which the split holds.")
    return {case: found[case] for case in case_ids}


def select_test_cases(found: dict[str, Path], store: str, folder: Path) -> dict[str, Path]:
    """Return the cases of `folder` that a store holds out for testing; all of them for an empty `store`."""
    if not store:
        return found
    case_ids = Store(store, key="store").splits.test
    if not case_ids:
        raise InputError(f"store={store} has no test cases. Leave store= out to score all cases.")
    return select_cases(found, case_ids, folder)
