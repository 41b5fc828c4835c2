"""The slices that benchmarks read: a store that was named, or one of phantoms, and the loaders on it."""

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kits_dist import phantom, prepare
from kits_dist.config import AugmentConfig, DataConfig, as_plain
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks

POSTER = AugmentConfig()  # the poster's augmentation
STILL = AugmentConfig(rotate_p=0, flip=0, scale_p=0, crop=0, noise_p=0)


@contextlib.contextmanager
def open_store(store: str, cases: int, size: tuple[int, int, int]) -> Iterator[Store]:
    """Open the store named, or one of phantoms of (slices, rows, columns) in a folder that is removed afterwards."""
    if store:
        yield Store(store)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield make_store(Path(folder), cases, size)


def make_store(folder: Path, cases: int, size: tuple[int, int, int], planes: tuple[str, ...] = ("axial",)) -> Store:
    """Write phantoms to FOLDER/raw and prepare them into FOLDER/store."""
    workers = 1 if cases * math.prod(size) < 2e6 else 0  # starting a process costs more than a small case
    raw, path = folder / "raw", folder / "store"
    phantom.main(phantom.Args(output=str(raw), cases=cases, size=size, workers=workers))
    prepare.main(prepare.Args(source=str(raw), store=str(path), planes=planes, workers=workers))
    return Store(path)


def dataset_of(store: Store, data: DataConfig, changes: AugmentConfig = POSTER) -> SliceDataset:
    """Return the training slices with their draws, as host arrays that no backend has changed."""
    return build_train_loader(store, replace(data, backend="opencv", residency="mmap"), changes, 0, Ranks())[1]


def plain(config: Any) -> dict[str, Any]:
    """Return a configuration for a line, without its folders."""
    return {key: value for key, value in as_plain(config).items() if key != "store"}


def described(store: Store, dataset: SliceDataset) -> dict[str, Any]:
    """Return what a line says about the slices that were read, which are in the page cache."""
    slice_px = list(store.cases[0].shape[1:])
    return {"data": store.meta["data"], "slices": len(dataset.rows), "slice_px": slice_px, "cache": "warm"}
