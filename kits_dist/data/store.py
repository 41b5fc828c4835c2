"""The slice store: what `prepare` writes and every loader maps. Layout and reasons: README, "The slice store".

STORE/store.json      format, window, data kind, which labels, sha256 of every array file, normalisation per fold
STORE/cases.json      per case: geometry, body box, kidneys' boxes, voxels per label, sha256 of source files and voxels
STORE/splits.json     test set and folds
STORE/slices.npz      columns over all slices of all cases and planes: plane, case, index, kidney, tumor, cyst (voxels)
STORE/axial/CASE/     image.npy, label.npy  uint8 (N, H, W), slices contiguous; always there, evaluation reads it
STORE/coronal/CASE/   the same voxels as coronal slices, where `prepare planes=` asked for them; also sagittal/
"""

import errno
import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.data.intensity import Box, Window
from kits_dist.data.kidneys import Kidney
from kits_dist.data.splits import Splits
from kits_dist.imaging.nifti import Geometry
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput

FORMAT = 4
TABLES = ("cases.json", "slices.npz")  # hashed in store.json; splits.json is not, a person may write another
# Axes of a volume (D, H, W) that become (slice, row, column). Slices run cranial to caudal, anterior to posterior,
# right to left; the upper edge is anterior (axial) or cranial.
PLANES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
PLANE_NAMES = list(PLANES)  # by the number that tables and batches hold


class View(NamedTuple):
    """A case cut along one plane: what framing needs to know of it."""

    plane: str
    shape: tuple[int, int, int]  # (slices, rows, columns)
    spacing_mm: tuple[float, float, float]  # between slices, rows, columns
    body: Box  # in rows and columns: what the window is centred on
    whole: bool = False  # the window must hold all of that box


class Case(NamedTuple):
    case_id: str
    shape: tuple[int, int, int]  # (D, H, W)
    spacing_mm: tuple[float, float, float]  # (d, h, w)
    body: dict[str, Box]  # per plane
    voxels: dict[str, int]  # per label: kidney, tumor, cyst
    levels: dict[str, float]  # count, sum, sum_sq of the image's levels: what fold means and sds are made of
    geometry: Geometry  # of the source file
    source: dict[str, str]  # image and label as `case_id/file`, and their sha256
    voxels_sha256: str = ""  # of the HU, however compressed or ordered in the file; "" for a scan that is in no store
    kidneys: tuple[Kidney, ...] = ()  # of the annotation

    def view(self, plane: str) -> View:
        axes = PLANES[plane]
        shape, spacing_mm = (tuple(of[axis] for axis in axes) for of in (self.shape, self.spacing_mm))
        return View(plane, shape, spacing_mm, self.body[plane])

    def kidney_view(self, kidney: Kidney, margin_mm: float) -> View:
        """Axial slices, seen through a window that holds the kidney with a margin."""
        _, rows, columns = kidney.around(margin_mm, self.spacing_mm, self.shape)
        box = Box(rows.start, rows.stop, columns.start, columns.stop)
        return View("axial", self.shape, self.spacing_mm, box, whole=True)

    @property
    def tumor_ml(self) -> float:
        return self.voxels["tumor"] * float(np.prod(self.spacing_mm)) / 1000


class SliceTable(NamedTuple):
    plane: np.ndarray  # (S,) int8: number in PLANES
    case: np.ndarray  # (S,) int32: row in cases.json
    index: np.ndarray  # (S,) int32: slice of that case
    kidney: np.ndarray  # (S,) int32 voxels
    tumor: np.ndarray
    cyst: np.ndarray

    @property
    def foreground(self) -> np.ndarray:
        return self.kidney + self.tumor + self.cyst

    @property
    def stack(self) -> np.ndarray:
        """(S,) int64 a number for each (plane, case), growing with both."""
        return self.plane.astype(np.int64) * (int(self.case.max(initial=0)) + 1) + self.case


class Normalization(NamedTuple):
    """Mean and sd, in levels, of the training voxels of one fold."""

    mean: float
    sd: float


class Store:
    """An opened store. Arrays are mapped, not read: what is touched is what is loaded.

    Raises MissingInput / InputError when it is not a store, of another format, or a file is missing or cut short.
    """

    def __init__(self, path: str | Path, key: str = "data.store"):
        """key: the argument that named `path`, for messages."""
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            raise MissingInput(
                f"{key}={path}: no store.json there. Name the store's folder, or make one: python -m "
                f"kits_dist.prepare source=DIR store={path}"
            )
        self.meta = _load(self.path / "store.json")
        found = self.meta.get("format") if isinstance(self.meta, dict) else None
        if found != FORMAT:
            raise InputError(
                f"{key}={path} has format {found}, this version reads {FORMAT}. Prepare it again into a new folder."
            )
        self._maps: dict[tuple[int, str, str], np.ndarray] = {}
        try:
            self._check_tables()
            self.cases = [case_from_json(row) for row in _load(self.path / "cases.json")]
            self.row = {case.case_id: i for i, case in enumerate(self.cases)}
            self.splits = Splits(**_load(self.path / "splits.json"))
            self._check_splits()
            self.check_files()
            _allow_open(2 * len(self._sizes))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"{key}={path} is damaged ({type(error).__name__}: {error}). Run prepare again; finished cases are kept"
            ) from error

    def _check_tables(self) -> None:
        for name in TABLES:
            table, expected = self.path / name, self.meta["files"][name]
            if not table.is_file() or file_entry(table) != expected:
                raise InputError(
                    f"{table} is missing or not the one that prepare wrote. Run prepare again; finished cases are kept."
                )

    def _check_splits(self) -> None:
        """A person may write another splits.json; one that leaks would give scores that mean nothing."""
        named = Counter(itertools.chain(self.splits.test, *self.splits.folds, self.splits.variants))
        where = self.path / "splits.json"
        if unknown := sorted(set(named) - set(self.row)):
            raise InputError(f"{where} names {unknown[0]}, which is no case of this store.")
        if twice := [case for case, count in named.items() if count > 1]:
            raise InputError(f"{where} names {twice[0]} {named[twice[0]]} times: test set, one fold or variants, once.")

    @property
    def window(self) -> Window:
        return Window(*self.meta["window_hu"])

    @cached_property
    def slices(self) -> SliceTable:
        with np.load(self.path / "slices.npz") as columns:
            return SliceTable(**{name: columns[name] for name in SliceTable._fields})

    def fingerprint(self) -> str:
        """sha256 over what decides a batch and who is held out: arrays' hashes, window, normalisation, splits."""
        content = (self.path / "store.json").read_bytes() + (self.path / "splits.json").read_bytes()
        return hashlib.sha256(content).hexdigest()

    def normalization(self, fold: int | str) -> Normalization:
        """Of the fold's training cases as splits.json deals them now. store.json tells of those that prepare dealt."""
        return normalization_of([self.cases[self.row[case]] for case in self.splits.select(fold)[0]])

    @property
    def planes(self) -> list[str]:
        return self.meta["planes"]

    def image(self, case: int, plane: str = "axial") -> np.ndarray:
        """(slices, rows, columns) uint8 levels, mapped read-only."""
        return self._map(case, plane, "image")

    def label(self, case: int, plane: str = "axial") -> np.ndarray:
        """(slices, rows, columns) uint8 labels, mapped read-only."""
        return self._map(case, plane, "label")

    def check_files(self, stacks: Iterable[tuple[int, str]] | None = None) -> None:
        """Compare array files' sizes with what was written: reading past the end of a cut map kills a process by
        SIGBUS, with no exception. stacks: (case, plane) to look at, a microsecond a file; default: all."""
        for stack in self._sizes if stacks is None else stacks:
            for path, expected in self._sizes[stack]:
                try:
                    size = os.stat(path).st_size
                except FileNotFoundError:
                    size = None
                if size != expected:
                    found = "is missing" if size is None else f"has {size} bytes instead of {expected}"
                    raise InputError(
                        f"{path} {found}. Delete {os.path.dirname(path)} and run prepare again; other cases are kept."
                    )

    @cached_property
    def _sizes(self) -> dict[tuple[int, str], list[tuple[str, int]]]:
        """{(case, plane): (path, bytes) of its array files}. Text and integers, because every batch asks."""
        sizes: dict[tuple[int, str], list[tuple[str, int]]] = {}
        for row, case in enumerate(self.cases):
            for plane in self.planes:
                paths = [array_path(self.path, plane, case.case_id, kind) for kind in ("image", "label")]
                entries = [self.meta["files"][path.relative_to(self.path).as_posix()] for path in paths]
                sizes[row, plane] = [(str(p), entry["bytes"]) for p, entry in zip(paths, entries, strict=True)]
        return sizes

    def _map(self, case: int, plane: str, kind: str) -> np.ndarray:
        if (case, plane, kind) not in self._maps:
            path = array_path(self.path, plane, self.cases[case].case_id, kind)
            try:
                mapped = np.load(path, mmap_mode="r")
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                raise InputError(
                    f"{path}: too many open files, {len(self._maps)} of this store alone. Raise the limit: ulimit -n "
                    f"{2 * len(self._sizes) + 1024}, or ask the administrator for it."
                ) from error
            self._maps[case, plane, kind] = mapped.view(np.ndarray)  # a slice of it takes a third of the time
        return self._maps[case, plane, kind]


def _allow_open(count: int) -> None:
    """Let this process hold `count` more files open, as far as the system allows: np.load keeps each mapped file
    open, and the usual limit is 1,024, which 500 cases reach."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def array_path(store: Path, plane: str, case_id: str, kind: str) -> Path:
    return store / plane / case_id / f"{kind}.npy"


def case_to_json(case: Case) -> dict:
    row = case._asdict() | {"shape": list(case.shape), "spacing_mm": list(case.spacing_mm)}
    row["body"] = {plane: list(box) for plane, box in case.body.items()}
    row["kidneys"] = [kidney._asdict() for kidney in case.kidneys]
    row["geometry"] = {
        "shape": list(case.geometry.shape),
        "affine": np.asarray(case.geometry.affine).tolist(),
        "axis_codes": case.geometry.axis_codes,
    }
    return row


def case_from_json(row: dict) -> Case:
    geometry = Geometry(tuple(row["geometry"]["shape"]), np.array(row["geometry"]["affine"], float))
    return Case(
        **{key: row[key] for key in ("case_id", "voxels", "levels", "source", "voxels_sha256")},
        shape=tuple(row["shape"]),
        spacing_mm=tuple(row["spacing_mm"]),
        body={plane: Box(*box) for plane, box in row["body"].items()},
        geometry=geometry,
        kidneys=tuple(Kidney(*(_ranges(one[name]) for name in Kidney._fields)) for one in row["kidneys"]),
    )


def _ranges(pairs: list[list[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((first, last) for first, last in pairs)


def normalization_of(cases: list[Case]) -> Normalization:
    """Mean and sd over all voxels of `cases`, from per-case sums."""
    count, total, squares = (sum(case.levels[name] for case in cases) for name in ("count", "sum", "sum_sq"))
    mean = total / count
    return Normalization(mean, max((squares / count - mean**2) ** 0.5, 1.0))


def file_entry(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def _load(path: Path) -> dict | list:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInput(f"{path} is missing. Run prepare again; finished cases are kept.") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Run prepare again; finished cases are kept.") from error
