"""Positions in the stream -> what a backend needs on the host: mapped views of slices and drawn parameters."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import augment_params, augment_reference
from kits_dist.data.sampler import TrainOrder
from kits_dist.data.samples import Samples, groups_of
from kits_dist.data.slice_cache import GpuSlices, MappedSlices
from kits_dist.data.store import PLANE_NAMES, Normalization, Store, View


class HostBatch(NamedTuple):
    """B samples before any pixel is touched. Slices differ in size from case to case."""

    slabs: list  # B times (F, H, W, 1) uint8, F = 1 + 2 * context; arrays, or tensors in a GPU's memory
    labels: list  # B times (H, W, 1) uint8
    params: augment_params.Params
    normals: list[np.ndarray]  # B times (F, h, w) float32 of the noise bank; empty where no noise was drawn
    identity: np.ndarray  # (B, 3) int32: case, slice index, plane


class SliceDataset:
    """The samples of one split: `batch(positions)` is a pure function of (store, config, seed, positions).

    Raises JobFailed when a file of the store was cut or removed meanwhile.
    """

    def __init__(
        self,
        store: Store,
        samples: Samples,
        data: DataConfig,
        changes: AugmentConfig | None,
        seed: int,
        norm: Normalization,
        pixels: MappedSlices | GpuSlices | None = None,
    ):
        """changes: None takes samples in order, unaugmented (validation). pixels: where
        the slices lie; None: in the store's mapped files."""
        self.store, self.data, self.changes, self.seed, self.norm = store, data, changes, seed, norm
        self.rows, self.kidneys = samples
        self._keys = samples.keys(len(store.slices.case))
        self.pixels = pixels or MappedSlices(store, data.context)
        self.order = TrainOrder(groups_of(store, samples, data), seed) if changes else None
        self.framing = augment_params.Framing(data.size_px, data.pixel_mm)
        self._views = self._all_views()
        self.frames = 1 + 2 * data.context
        self.noise_need = self.frames * data.size_px[0] * data.size_px[1]

    def batch(self, positions: np.ndarray) -> HostBatch:
        rounds, samples = self.order.at(positions) if self.order else (np.zeros_like(positions), positions)
        rows = self.rows[samples]
        table = self.store.slices
        case, index, plane = table.case[rows], table.index[rows], table.plane[rows]
        stacks = [(c, PLANE_NAMES[p]) for c, p in zip(case.tolist(), plane.tolist(), strict=True)]
        self.pixels.check(set(stacks))
        of_kidney = stacks if self.kidneys is None else zip(case.tolist(), self.kidneys[samples].tolist(), strict=True)
        views = [self._views[one] for one in of_kidney]
        if self.changes:
            u = augment_params.uniforms(self.seed, rounds, self._keys[samples])
            offsets = augment_reference.bank_offsets(self.noise_need)
            params = augment_params.draw(self.changes, self.framing, views, self.store.window, u, offsets)
        else:
            params = augment_params.centred(self.framing, views)
        slabs = [self.pixels.slab(stack, i) for stack, i in zip(stacks, index.tolist(), strict=True)]
        labels = [self.pixels.label(stack, i) for stack, i in zip(stacks, index.tolist(), strict=True)]
        identity = np.stack([case, index, plane], axis=1).astype(np.int32)
        return HostBatch(slabs, labels, params, self._normals(params), identity)

    def _all_views(self) -> dict[tuple, View]:
        """By (case, plane), or by (case, number of its kidney)."""
        cases = enumerate(self.store.cases)
        if self.kidneys is None:
            return {(i, plane): case.view(plane) for i, case in cases for plane in self.store.planes}
        margin = self.data.box_margin_mm
        return {(i, k): case.kidney_view(one, margin) for i, case in cases for k, one in enumerate(case.kidneys)}

    def _normals(self, params: augment_params.Params) -> list[np.ndarray]:
        """Views of the bank: contiguous because the bank is 1-D. Only noisy samples carry any to the device."""
        if not (params.noise_sd > 0).any():
            return [_NO_NORMALS] * len(params.noise_sd)
        bank, shape = augment_reference.noise_bank(self.noise_need), (self.frames, *self.data.size_px)
        return [
            bank[offset : offset + self.noise_need].reshape(shape) if sd > 0 else _NO_NORMALS
            for sd, offset in zip(params.noise_sd, params.noise_offset, strict=True)
        ]


_NO_NORMALS = np.empty((0, 0, 0), np.float32)


class Plan(NamedTuple):
    """Which positions this rank takes at each step."""

    positions: Callable[[int], np.ndarray]
    num_batches: int | None  # None: endless
