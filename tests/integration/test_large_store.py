"""A store of 10,000 cases opens and feeds in seconds, and a rank's memory does not grow with it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import store as store_module
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.samples import Samples, select_rows
from kits_dist.data.slice_cache import GpuSlices
from kits_dist.data.store import FORMAT, TABLES, Store, array_path, case_to_json, file_entry
from kits_dist.utils.errors import InputError
from tests.helpers import fork_server
from tests.helpers.small_run import SMALL

DEPTH, SIDE = 200, 64


def index_of(small: Store, cases: int, path: Path) -> None:
    """A store whose tables name `cases` cases of DEPTH slices; their arrays are holes that take no disk."""
    one = small.cases[0]._replace(shape=(DEPTH, SIDE, SIDE))
    path.mkdir()
    header = {"descr": "|u1", "fortran_order": False, "shape": one.shape}
    named, files = [], {}
    for number in range(cases):
        case = one._replace(case_id=f"case_{number:05d}")
        named.append(case_to_json(case))
        for kind in ("image", "label"):
            array = array_path(path, "axial", case.case_id, kind)
            array.parent.mkdir(parents=True, exist_ok=True)
            with open(array, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                length = file.truncate(file.tell() + DEPTH * SIDE * SIDE)
            files[array.relative_to(path).as_posix()] = {"bytes": length, "sha256": "0" * 64}
    (path / "cases.json").write_text(json.dumps(named))
    which, voxels = np.divmod(np.arange(cases * DEPTH), DEPTH), np.zeros(cases * DEPTH, np.int32)
    inside = ((which[1] > 80) & (which[1] < 120)).astype(np.int32)
    np.savez(
        path / "slices.npz", plane=voxels.astype(np.int8), case=which[0], index=which[1], kidney=inside, tumor=voxels,
        cyst=voxels,
    )  # fmt: skip
    ids = [row["case_id"] for row in named]
    (path / "splits.json").write_text(json.dumps({"seed": 0, "test": ids[:5], "folds": [ids[5:10], ids[10:]]}))
    files |= {name: file_entry(path / name) for name in TABLES}
    meta = small.meta | {"format": FORMAT, "planes": ["axial"], "files": files}
    (path / "store.json").write_text(json.dumps(meta))


def dataset_of(path: Path, **data) -> SliceDataset:
    store = Store(path)
    config = DataConfig(store=str(path), batch_size=16, size_px=(64, 64), **data)
    rows = select_rows(store, store.splits.select(0)[0], config.slices, config.margin, config.planes)
    return SliceDataset(store, Samples(rows), config, augment=AugmentConfig(), seed=0, norm=store.normalization(0))


@pytest.fixture(scope="module")
def large(store, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("large") / "store"
    index_of(store, 2000, path)
    return path


def test_rows_groups_and_ranges_of_many_cases_are_what_a_loop_finds(large):
    dataset = dataset_of(large, slices="kidney", margin=7, sampler="case")
    table = dataset.store.slices
    assert len(dataset.rows) == 1990 * (39 + 2 * 7) and table.index[dataset.rows].min() == 81 - 7
    assert len(dataset.order.groups) == 1990 and all(len(group.members) == 53 for group in dataset.order.groups)
    assert all(len(set(table.case[dataset.rows][group.members])) == 1 for group in dataset.order.groups[::97])
    assert GpuSlices.bytes_needed(dataset.store, dataset.rows, 0) == 1990 * 53 * 2 * SIDE * SIDE
    assert len(np.unique(table.stack)) == 2000
    host = dataset.batch(np.arange(32))
    assert len(host.slabs) == 32 and host.slabs[0].shape == (1, SIDE, SIDE, 1)


def test_many_cases_need_many_open_files(large, monkeypatch):
    """np.load keeps each mapped file open; where the limit may be raised nobody notices, else it is said."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = len(os.listdir("/proc/self/fd")) + 40
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, limits[1]))
        dataset_of(large).batch(np.arange(0, 100 * DEPTH, DEPTH))
        monkeypatch.setattr(store_module, "_allow_open", lambda count: None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, limits[1]))
        opened = Store(large)
        with pytest.raises(InputError, match=r"too many open files, \d+ of this store alone.*ulimit -n 5024"):
            list(map(opened.image, range(100)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.slow
def test_ten_thousand_cases_start_in_seconds_and_cost_a_rank_little_memory(store, tmp_path):
    """Only the tables grow: 10,000 cases are two million slices, whose pixels would be 16 GB.

    `pytest -s -m slow tests/integration/test_large_store.py` prints the numbers.
    """
    found = {}
    for cases in (100, 10_000):
        index_of(store, cases, tmp_path / str(cases))
        words = [f"data.store={tmp_path / str(cases)}", f"run={tmp_path / 'run'}-{cases}", *SMALL]
        said = fork_server.run("tests.helpers.launched.first_batch", *words, "data.fold=0", "data.sampler=case")
        found[cases] = json.loads(said.splitlines()[-1])
        print(f"{cases} cases: {found[cases]}")
    assert "first batch" in found[10_000]["seconds"]
    assert found[10_000]["anonymous_mb"] - found[100]["anonymous_mb"] < 200, found
