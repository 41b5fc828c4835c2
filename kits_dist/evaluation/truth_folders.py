"""Folders of cases with their annotations, and the choice of cases to score among them."""

from pathlib import Path

from kits_dist.data.store import Store
from kits_dist.imaging.datasets import MARKER, data_kind, find_cases
from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed


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


def data_of(folder: Path) -> str:
    """Return the kind of data that the folder is marked with, else unknown: label maps may come from anywhere."""
    return data_kind(folder) if (folder / MARKER).is_file() else "unknown"
