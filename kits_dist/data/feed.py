"""Positions in the stream -> what a backend needs on the host: mapped views of slices and drawn parameters."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import augment
from kits_dist.data.pixels import Mapped, Resident, stacks_of
from kits_dist.data.sampler import Group, TrainOrder
from kits_dist.data.store import PLANES, Normalization, Store
from kits_dist.errors import InputError


class HostBatch(NamedTuple):
    """B samples before any pixel is touched. Slices differ in size from case to case."""

    slabs: list  # B times (F, H, W, 1) uint8, F = 1 + 2 * context; arrays, or tensors in a GPU's memory
    labels: list  # B times (H, W, 1) uint8
    params: augment.Params
    normals: list[np.ndarray]  # B times (F, h, w) float32 of the noise bank; empty where no noise was drawn
    identity: np.ndarray  # (B, 3) int32: case, slice index, plane


class Feed:
    """The samples of one split: `batch(positions)` is a pure function of (store, config, seed, positions).

    Raises JobFailed when a file of the store was cut or removed meanwhile.
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        data: DataConfig,
        changes: AugmentConfig | None,
        seed: int,
        norm: Normalization,
        pixels: Mapped | Resident | None = None,
    ):
        """rows: (n,) rows of store.slices. changes: None takes rows in order, unaugmented (validation). pixels: where
        the slices lie; None: in the store's mapped files."""
        self.store, self.rows, self.data, self.changes, self.seed, self.norm = store, rows, data, changes, seed, norm
        self.pixels = pixels or Mapped(store, data.context)
        self.order = TrainOrder(_groups(store, rows, data), seed) if changes else None
        self.framing = augment.Framing(data.size_px, data.pixel_mm)
        self._views = {(i, p): case.view(p) for i, case in enumerate(store.cases) for p in store.planes}
        self.frames = 1 + 2 * data.context
        self.noise_need = self.frames * data.size_px[0] * data.size_px[1]

    def batch(self, positions: np.ndarray) -> HostBatch:
        rounds, samples = self.order.at(positions) if self.order else (np.zeros_like(positions), positions)
        rows = self.rows[samples]
        table = self.store.slices
        case, index, plane = table.case[rows], table.index[rows], table.plane[rows]
        stacks = [(c, _PLANE_NAMES[p]) for c, p in zip(case.tolist(), plane.tolist(), strict=True)]
        self.pixels.check(set(stacks))
        views = [self._views[stack] for stack in stacks]
        if self.changes:
            u = augment.uniforms(self.seed, rounds, rows)
            offsets = augment.bank_offsets(self.noise_need)
            params = augment.draw(self.changes, self.framing, views, self.store.window, u, offsets)
        else:
            params = augment.centred(self.framing, views)
        slabs = [self.pixels.slab(stack, i) for stack, i in zip(stacks, index.tolist(), strict=True)]
        labels = [self.pixels.label(stack, i) for stack, i in zip(stacks, index.tolist(), strict=True)]
        identity = np.stack([case, index, plane], axis=1).astype(np.int32)
        return HostBatch(slabs, labels, params, self._normals(params), identity)

    def _normals(self, params: augment.Params) -> list[np.ndarray]:
        """Views of the bank: contiguous because the bank is 1-D. Only noisy samples carry any to the device."""
        if not (params.noise_sd > 0).any():
            return [_NO_NORMALS] * len(params.noise_sd)
        bank, shape = augment.noise_bank(self.noise_need), (self.frames, *self.data.size_px)
        return [
            bank[offset : offset + self.noise_need].reshape(shape) if sd > 0 else _NO_NORMALS
            for sd, offset in zip(params.noise_sd, params.noise_offset, strict=True)
        ]


_PLANE_NAMES = list(PLANES)
_NO_NORMALS = np.empty((0, 0, 0), np.float32)


class Plan(NamedTuple):
    """Which positions this rank takes at each step."""

    positions: Callable[[int], np.ndarray]
    num_batches: int | None  # None: endless


def _groups(store: Store, rows: np.ndarray, data: DataConfig) -> list[Group]:
    """Samples (numbers in `rows`) by what data.sampler asks for. Raises InputError when there are no such slices."""
    everyone, table = np.arange(len(rows)), store.slices
    if data.sampler == "natural":
        return [Group("all", everyone, 1.0)]
    if data.sampler == "case":  # a tenth of KiTS's cases own a third of its slices, because they are thin
        cases, sizes = np.unique(table.case[rows], return_counts=True)
        mine = np.split(np.argsort(table.case[rows], kind="stable"), np.cumsum(sizes)[:-1])
        return [Group(store.cases[c].case_id, one, 1 / len(cases)) for c, one in zip(cases, mine, strict=True)]
    holds = (getattr(table, data.sampler) > 0)[rows]
    if holds.all() or not holds.any():
        raise InputError(
            f"data.sampler={data.sampler}: {holds.sum()} training slices hold it and {(~holds).sum()} do not; both are "
            "needed. Use data.sampler=natural"
        )
    return [
        Group(f"with {data.sampler}", everyone[holds], data.share),
        Group("others", everyone[~holds], 1 - data.share),
    ]


def select_rows(store: Store, case_ids: list[str], slices: str, margin: int, planes: Sequence[str]) -> np.ndarray:
    """Rows of store.slices of these cases and planes: all, or those within `margin` slices of any foreground.

    Raises InputError for a plane that was not prepared.
    """
    if absent := [plane for plane in planes if plane not in store.planes]:
        raise InputError(
            f"data.planes={list(planes)}: the store {store.path} holds {store.planes}. Prepare it again with planes="
            f"[{','.join(p for p in PLANES if p in (*store.planes, *absent))}]"
        )
    table = store.slices
    chosen = np.isin(table.plane, [_PLANE_NAMES.index(plane) for plane in planes])
    chosen &= np.isin(table.case, [store.row[case] for case in case_ids])
    if slices == "kidney":
        chosen &= _near(table.foreground > 0, stacks_of(table), margin)
    return np.flatnonzero(chosen)


def _near(holds: np.ndarray, stacks: np.ndarray, margin: int) -> np.ndarray:
    """(n,) bool: rows within `margin` of one that `holds`, in the same stack. The rows of a stack lie together."""
    here = np.arange(len(holds))
    before = np.maximum.accumulate(np.where(holds, here, -1))
    after = np.minimum.accumulate(np.where(holds, here, len(here))[::-1])[::-1]
    near = np.zeros(len(holds), bool)
    for other, exists in ((before, before >= 0), (after, after < len(here))):
        other = np.where(exists, other, 0)
        near |= exists & (stacks[other] == stacks) & (abs(here - other) <= margin)
    return near
