"""Tiny data sets for all tests, generated here: nothing is downloaded."""

from pathlib import Path

import numpy as np
import pytest

from kits_dist import prepare
from kits_dist.data.store import Store
from kits_dist.imaging.nifti import kits_geometry, write_nifti

# slices of several sizes, odd and non-square ones included
SHAPES = [(5, 64, 80), (4, 63, 65), (6, 64, 64), (3, 96, 70), (7, 64, 64), (4, 71, 64)]


def write_case(root: Path, number: int, shape: tuple[int, int, int], spacing_mm=(3.0, 0.8, 0.8), seed: int = 0) -> None:
    """Write a body disc with a kidney, a tumor and (even numbers) a cyst: enough for everything but learning."""
    generator = np.random.default_rng([seed, number])
    _, h, w = shape
    y, x = np.mgrid[:h, :w]
    image = np.full(shape, -1000.0, np.float32)
    label = np.zeros(shape, np.uint8)
    body = ((y - h / 2) / (0.4 * h)) ** 2 + ((x - w / 2) / (0.42 * w)) ** 2 < 1
    image[:, body] = 60
    for value, (row, column, radius, hu) in {
        1: (0.5, 0.3, 0.14, 150),
        2: (0.45, 0.38, 0.06, 70),
        3: (0.6, 0.25, 0.04, 15),
    }.items():
        if value == 3 and number % 2:
            continue
        inside = (y - row * h) ** 2 + (x - column * w) ** 2 < (radius * min(h, w)) ** 2
        label[1:, inside] = value  # the most cranial slice is empty
        image[1:, inside] = hu
    image += generator.normal(0, 12, shape).astype(np.float32)
    geometry = kits_geometry(shape, spacing_mm)
    folder = root / f"case_{number:05d}"
    write_nifti(folder / "imaging.nii.gz", np.rint(image).astype(np.int16), geometry)
    write_nifti(folder / "aggregated_MAJ_seg.nii.gz", label, geometry)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, and keep the tests of a file in one worker, which makes its fixtures once.

    A test marked `spread` shares no expensive fixture with others and may run in any worker of pytest-xdist.
    """
    minutes: dict[Path, float] = {}
    for item in items:
        if item.get_closest_marker("spread") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(item.config.rootpath))))
        for mark in item.iter_markers("slow"):
            minutes[item.path] = max(mark.kwargs.get("minutes", 0), minutes.get(item.path, 0))
    items.sort(key=lambda item: -minutes.get(item.path, 0))


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    """Six cases of different sizes in the KiTS21 layout. Read-only: a test that changes files makes a copy."""
    root = tmp_path_factory.mktemp("raw")
    for number, shape in enumerate(SHAPES):
        write_case(root, number, shape)
    return root


@pytest.fixture(scope="session")
def store(raw, tmp_path_factory) -> Store:
    path = tmp_path_factory.mktemp("store") / "store"
    prepare.main(prepare.Args(source=str(raw), store=str(path), workers=1))
    return Store(path)
