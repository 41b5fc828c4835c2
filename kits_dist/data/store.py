"""The slice store: what `store_writer` writes and every loader maps. Its layout is explained in README.md.

STORE/store.json      format, window, kind of data, which labels, sha256 of every array file, normalization per fold
STORE/cases.json      per case: geometry, body box, kidney boxes, voxels per label, sha256 of source files and voxels
STORE/splits.json     test set and folds
STORE/slices.npz      columns over all slices of all cases and planes: plane, case, index, kidney, tumor, cyst (voxels)
STORE/axial/CASE/     image.npy, label.npy  uint8 (N, H, W), slices contiguous; always present, for evaluation
STORE/coronal/CASE/   the same voxels as coronal slices, where `prepare planes=` names them; also sagittal/
"""

import errno
import hashlib
import itertools
import json
import os
import resource
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kits_dist.data.intensity import Box, Window
from kits_dist.data.kidneys import Kidney
from kits_dist.data.splits import Splits
from kits_dist.imaging.nifti import Geometry
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput

FORMAT = 4
TABLES = ("cases.json", "slices.npz")  # hashed in store.json; splits.json is not, because users may edit it
# Axes of a volume (D, H, W) that become (slice, row, column). Slices run cranial to caudal, anterior to posterior,
# right to left; the upper edge is anterior (axial) or cranial.
PLANES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
PLANE_NAMES = list(PLANES)  # index: the plane's number in tables and batches


class SliceGeometry(NamedTuple):
    """The slices of a case along one plane, and the box that the network's window is placed on."""

    plane: str
    shape: tuple[int, int, int]  # (slices, rows, columns)
    spacing_mm: tuple[float, float, float]  # between slices, rows, columns
    box: Box  # in rows and columns: of the body, or of a kidney with its margin
    box_must_fit: bool = False  # the window must hold the whole box


class Case(NamedTuple):
    """What the store records of a case, in addition to its voxels."""

    case_id: str
    shape: tuple[int, int, int]  # (D, H, W)
    spacing_mm: tuple[float, float, float]  # (d, h, w)
    body: dict[str, Box]  # per plane
    voxels: dict[str, int]  # per label: kidney, tumor, cyst
    levels: dict[str, float]  # count, sum, sum_sq of the image's levels, for mean and sd of a fold
    geometry: Geometry  # of the source file
    source: dict[str, str]  # image and label as `case_id/file`, and their sha256
    voxels_sha256: str = ""  # of the HU, independent of the file's compression and orientation; "" outside a store
    kidneys: tuple[Kidney, ...] = ()  # of the annotation

    def slice_geometry(self, plane: str) -> SliceGeometry:
        """Return the geometry of the whole slices along `plane`."""
        a, b, c = PLANES[plane]
        return SliceGeometry(
            plane,
            shape=(self.shape[a], self.shape[b], self.shape[c]),
            spacing_mm=(self.spacing_mm[a], self.spacing_mm[b], self.spacing_mm[c]),
            box=self.body[plane],
        )

    def kidney_geometry(self, kidney: Kidney, margin_mm: float) -> SliceGeometry:
        """Return the geometry of axial slices whose window must hold the kidney with a margin."""
        _, rows, columns = kidney.around(margin_mm, self.spacing_mm, self.shape)
        box = Box(rows.start, rows.stop, columns.start, columns.stop)
        return SliceGeometry("axial", self.shape, self.spacing_mm, box, box_must_fit=True)

    @property
    def tumor_ml(self) -> float:
        """Annotated tumor volume."""
        return self.voxels["tumor"] * float(np.prod(self.spacing_mm)) / 1000


class SliceTable(NamedTuple):
    """Columns over all S slices of a store, sorted by plane, case and slice."""

    plane: np.ndarray  # (S,) int8: number in PLANES
    case: np.ndarray  # (S,) int32: row in cases.json
    index: np.ndarray  # (S,) int32: slice of that case
    kidney: np.ndarray  # (S,) int32 voxels
    tumor: np.ndarray
    cyst: np.ndarray

    @property
    def foreground(self) -> np.ndarray:
        """(S,) int32 labeled voxels."""
        return self.kidney + self.tumor + self.cyst

    @property
    def stack(self) -> np.ndarray:
        """(S,) int64 number of each (plane, case), increasing with both."""
        return self.plane.astype(np.int64) * (int(self.case.max(initial=0)) + 1) + self.case


class Normalization(NamedTuple):
    """Mean and sd, in levels, of the training voxels of one fold."""

    mean: float
    sd: float


class Store:
    """An opened store. Arrays are mapped, not read: only the slices used are loaded."""

    def __init__(self, path: str | Path, key: str = "data.store"):
        """Open the store at `path`; `key` is the argument that named it, for messages.

        Raises MissingInput or InputError where it is no store, has another format, or a file is missing or cut.
        """
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            raise MissingInput(
                f"{key}={path}: no store.json there. Name the store's folder, or make one: python -m "
                f"kits_dist.prepare source=DIR store={path}"
            )
        self.meta: Any = _load(self.path / "store.json")
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
            table = self.path / name
            if not table.is_file() or file_entry(table) != self.meta["files"][name]:
                raise InputError(
                    f"{table} is missing or not the one that prepare wrote. Run prepare again; finished cases are kept."
                )

    def _check_splits(self) -> None:
        """Refuse a splits.json, edited by a user perhaps, that names a case twice: its scores would be leaked."""
        counts = Counter(itertools.chain(self.splits.test, *self.splits.folds, self.splits.variants))
        path = self.path / "splits.json"
        for case, count in sorted(counts.items()):
            if case not in self.row:
                raise InputError(f"{path} names {case}, which is no case of this store.")
            if count > 1:
                raise InputError(f"{path} names {case} {count} times: test set, one fold or variants, once.")

    @property
    def window(self) -> Window:
        """The HU window of the stored levels."""
        return Window(*self.meta["window_hu"])

    @cached_property
    def slices(self) -> SliceTable:
        """The table of all slices."""
        with np.load(self.path / "slices.npz") as columns:
            return SliceTable(**{name: columns[name] for name in SliceTable._fields})

    def fingerprint(self) -> str:
        """Return the sha256 over all that batches and splits depend on: hashes of arrays, window, splits."""
        content = (self.path / "store.json").read_bytes() + (self.path / "splits.json").read_bytes()
        return hashlib.sha256(content).hexdigest()

    def normalization(self, fold: int | str, mask: str = "none") -> Normalization:
        """Return mean and sd of the fold's training cases, by splits.json as it is now: users may edit it.

        mask   as data.mask; "kidney": of the voxels of kidneys and masses alone, in up to 2,000 of their slices

        Raises InputError where the training cases have no such voxels.
        """
        rows = [self.row[case] for case in self.splits.select(fold)[0]]
        if mask == "none":
            return normalization_of([self.cases[row] for row in rows])
        if fold not in self._kidney_normalizations:
            self._kidney_normalizations[fold] = self._kidney_normalization(rows)
        return self._kidney_normalizations[fold]

    @cached_property
    def _kidney_normalizations(self) -> dict[int | str, Normalization]:
        """By fold: reading the slices takes seconds, and the export of each best network asks again."""
        return {}

    def _kidney_normalization(self, cases: list[int]) -> Normalization:
        table = self.slices
        chosen = np.flatnonzero((table.plane == 0) & (table.foreground > 0) & np.isin(table.case, cases))
        if not len(chosen):
            raise InputError("data.mask=kidney: the training cases have no voxel of a kidney. Use data.mask=none")
        counts = np.zeros(256, np.int64)  # of the levels
        for row in chosen[:: -(-len(chosen) // 2000)]:
            case, index = int(table.case[row]), int(table.index[row])
            counts += np.bincount(self.image(case)[index][self.label(case)[index] > 0], minlength=256)
        levels = np.arange(256)
        mean = float(counts @ levels / counts.sum())
        return Normalization(mean, max(float(counts @ (levels - mean) ** 2 / counts.sum()) ** 0.5, 1.0))

    @property
    def planes(self) -> list[str]:
        """The planes that were prepared."""
        return self.meta["planes"]

    def image(self, case: int, plane: str = "axial") -> np.ndarray:
        """Return (slices, rows, columns) uint8 levels, mapped read-only."""
        return self._map(case, plane, "image")

    def label(self, case: int, plane: str = "axial") -> np.ndarray:
        """Return (slices, rows, columns) uint8 labels, mapped read-only."""
        return self._map(case, plane, "label")

    def check_files(self, stacks: Iterable[tuple[int, str]] | None = None) -> None:
        """Raise InputError where the size of an array file is not the one that was written.

        stacks   (case, plane) to check, a microsecond per file; None: all

        Reading past the end of a cut file that is mapped kills the process by SIGBUS, without an exception.
        """
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
        """{(case, plane): [(path, bytes) of its array files]}. Text and integers: every batch reads them."""
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
                if error.errno in (errno.ENODEV, errno.EINVAL, errno.ENOTSUP):
                    raise InputError(
                        f"{path}: its disk cannot map files into memory ({error.strerror}). Copy the store to another."
                    ) from error
                if error.errno != errno.EMFILE:
                    raise
                raise InputError(
                    f"{path}: too many open files, {len(self._maps)} of this store alone. Raise the limit: ulimit -n "
                    f"{2 * len(self._sizes) + 1024}, or ask the administrator for it."
                ) from error
            self._maps[case, plane, kind] = mapped.view(np.ndarray)  # slicing np.memmap takes three times as long
        return self._maps[case, plane, kind]


def _allow_open(count: int) -> None:
    """Let this process open `count` more files, as far as the system allows.

    np.load keeps each mapped file open, and the usual limit of 1,024 is reached with 500 cases.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def array_path(store: Path, plane: str, case_id: str, kind: str) -> Path:
    """Return the path of an array file; kind: image, label or slices."""
    return store / plane / case_id / f"{kind}.npy"


def case_to_json(case: Case) -> dict:
    """Return the row of cases.json."""
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
    """Return the case of a row of cases.json."""
    geometry = Geometry(tuple(row["geometry"]["shape"]), np.array(row["geometry"]["affine"], float))
    return Case(
        **{key: row[key] for key in ("case_id", "voxels", "levels", "source", "voxels_sha256")},
        shape=tuple(row["shape"]),
        spacing_mm=tuple(row["spacing_mm"]),
        body={plane: Box(*box) for plane, box in row["body"].items()},
        geometry=geometry,
        kidneys=tuple(_kidney_from_json(kidney) for kidney in row["kidneys"]),
    )


def _kidney_from_json(row: dict[str, Any]) -> Kidney:
    fields: dict[str, Any] = {name: tuple(tuple(pair) for pair in ranges) for name, ranges in row.items()}
    return Kidney(**fields)


def normalization_of(cases: list[Case]) -> Normalization:
    """Return mean and sd over all voxels of `cases`, computed from the sums of each case."""
    count, total, squares = (sum(case.levels[name] for case in cases) for name in ("count", "sum", "sum_sq"))
    mean = total / count
    return Normalization(mean, max((squares / count - mean**2) ** 0.5, 1.0))


def file_entry(path: Path) -> dict[str, int | str]:
    """Return size and sha256, by which store.json and case.json recognize a file."""
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def _load(path: Path) -> Any:
    try:
        return json.loads(files.read_text(path))
    except FileNotFoundError as error:
        raise MissingInput(f"{path} is missing. Run prepare again; finished cases are kept.") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Run prepare again; finished cases are kept.") from error
