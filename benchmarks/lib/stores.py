"""The slices that benchmarks read: a store that was named, or one of phantoms, and the loaders on it."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kits_dist import phantom, prepare
from kits_dist.config import AugmentConfig, DataConfig, as_plain
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.intensity import Window, body_box
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.splits import SplitRule
from kits_dist.data.store import Store, array_path, case_to_json, file_entry
from kits_dist.data.store_writer import level_sums, normalizations
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils import files
from kits_dist.utils.errors import InputError

AUGMENTED = AugmentConfig()  # our default augmentation
STILL = AugmentConfig(rotate_p=0, flip=0, scale_p=0, crop=0, noise_p=0)


@contextlib.contextmanager
def open_store(store: str, cases: int, size: tuple[int, int, int]) -> Iterator[Store]:
    """Open the store named, or one of phantoms of (slices, rows, columns) in a folder that is removed afterwards."""
    if store:
        yield Store(store)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield make_store(Path(folder), cases, size)


def make_store(
    folder: Path,
    cases: int,
    size: tuple[int, int, int],
    planes: tuple[str, ...] = ("axial",),
    splits: SplitRule = "stratified",
) -> Store:
    """Write phantoms to FOLDER/raw and prepare them into FOLDER/store."""
    workers = 1 if cases * math.prod(size) < 2e6 else 0  # starting a process costs more than a small case
    raw, path = folder / "raw", folder / "store"
    phantom.main(phantom.Args(output=str(raw), cases=cases, size=size, workers=workers))
    prepare.main(prepare.Args(source=str(raw), store=str(path), planes=planes, splits=splits, workers=workers))
    return Store(path)


def rewindowed(store: Store, window: Window, path: Path) -> Store:
    """Return the axial store that `prepare` would make of the same cases with a narrower HU window; made once.

    Nothing is lost: the levels of both are whole HU. Raises InputError where `store` does not hold the window's HU.
    """
    wide = store.window
    if not (wide.low <= window.low and window.high <= wide.high and wide.step_hu == 1):
        raise InputError(f"{store.path} has the window {list(wide)}: [{window.low:g}, {window.high:g}] is not in it.")
    if (path / "store.json").is_file():
        return Store(path)
    cases, changed = [], {}
    for row, case in enumerate(store.cases):
        levels = window.to_levels(store.image(row).astype(np.int16) + np.int16(wide.low))
        with files.new_folder(path / "axial" / case.case_id) as folder:
            for kind in ("label", "slices"):
                shutil.copyfile(array_path(store.path, "axial", case.case_id, kind), folder / f"{kind}.npy")
            files.write_array(folder / "image.npy", levels)
            changed[f"axial/{case.case_id}/image.npy"] = file_entry(folder / "image.npy")
        cases.append(case._replace(body={"axial": body_box(levels)}, levels=level_sums(levels)))
    for name in ("slices.npz", "splits.json"):
        shutil.copyfile(store.path / name, path / name)
    files.write_json(path / "cases.json", [case_to_json(case) for case in cases])
    changed["cases.json"] = file_entry(path / "cases.json")
    meta = {"window_hu": list(window), "step_hu": window.step_hu, "files": store.meta["files"] | changed}
    meta["normalization"] = normalizations(cases, store.splits)
    files.write_json(path / "store.json", store.meta | meta)  # last: without it the folder is no store
    return Store(path)


def dataset_of(store: Store, data: DataConfig, changes: AugmentConfig = AUGMENTED) -> SliceDataset:
    """Return the training slices with their draws, as host arrays that no backend has changed."""
    return build_train_loader(store, replace(data, backend="opencv", residency="mmap"), changes, 0, Ranks())[1]


def plain(config: Any) -> dict[str, Any]:
    """Return a configuration for a line, without its folders."""
    return {key: value for key, value in as_plain(config).items() if key != "store"}


def described(store: Store, dataset: SliceDataset) -> dict[str, Any]:
    """Return what a line says about the slices that were read, which are in the page cache."""
    slice_px = list(store.cases[0].shape[1:])
    return {"data": store.meta["data"], "slices": len(dataset.rows), "slice_px": slice_px, "cache": "warm"}
