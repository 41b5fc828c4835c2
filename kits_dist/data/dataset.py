"""SliceDataset: positions in the stream of samples -> what a backend needs on the host, before any pixel is touched."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import augment_params, augment_reference
from kits_dist.data.augment_params import AugmentParams, OutputGrid
from kits_dist.data.sampler import TrainOrder
from kits_dist.data.samples import Samples, build_groups
from kits_dist.data.slice_cache import GpuSlices, MappedSlices, Place, mapped_slices
from kits_dist.data.store import PLANE_NAMES, Normalization, SliceGeometry, Store


class HostBatch(NamedTuple):
    """B samples: their slices, which nothing has changed yet, and the parameters drawn for them.

    Slices of mapped files are lists of views, because they differ in size from case to case; slices in GPU memory are
    one tensor, padded with 0 at the bottom and on the right.
    """

    slabs: Any  # B times (F, H, W, 1) uint8, F = 1 + 2 * context: a list of arrays, or one array or tensor
    labels: Any  # B times (H, W, 1) uint8, likewise
    params: AugmentParams
    identity: np.ndarray  # (B, 3) int32: case, slice index, plane


class SliceDataset:
    """The samples of one split; `batch(positions)` is a pure function of (store, config, seed, positions)."""

    def __init__(
        self,
        store: Store,
        samples: Samples,
        data: DataConfig,
        *,
        augment: AugmentConfig | None,
        seed: int,
        norm: Normalization,
        slice_source: MappedSlices | GpuSlices | None = None,
    ):
        """Set up the order of samples.

        augment        None: samples in their given order, unaugmented (validation)
        norm           mean and sd of the training voxels
        slice_source   where slices are read from; None: the store's mapped files
        """
        self.store = store
        self.data = data
        self.augment = augment
        self.seed = seed
        self.norm = norm
        self.rows, self.kidneys = samples
        self.slice_source = slice_source or mapped_slices(store, data)
        self.order = TrainOrder(build_groups(store, samples, data), seed) if augment else None
        self.grid = OutputGrid(data.size_px, data.pixel_mm)
        self.frames = 1 + 2 * data.context
        self._keys = samples.keys(len(store.slices.case))

    def planned(self, plan: "BatchPlan", step: int) -> HostBatch:
        """Return the batch of a step; the operating system reads the slices of the next one from the disk meanwhile."""
        now, following = (n if plan.num_batches is None else n % plan.num_batches for n in (step, step + 1))
        host = self.batch(plan.positions(now))
        self.slice_source.will_need(self._places(self._at(plan.positions(following))[1]))
        return host

    def batch(self, positions: np.ndarray) -> HostBatch:
        """Return the samples at these (B,) positions of the stream.

        Raises JobFailed where a file of the store was cut or removed since the store was opened.
        """
        rounds, samples = self._at(positions)
        places = self._places(samples)
        self.slice_source.check({stack for stack, _ in places})
        geometries = [self._geometry(sample, *stack) for sample, (stack, _) in zip(samples, places, strict=True)]
        params = self._params(rounds, samples, geometries)
        slabs, labels = self.slice_source.take(places)
        rows, table = self.rows[samples], self.store.slices
        return HostBatch(
            slabs=slabs,
            labels=labels,
            params=params,
            identity=np.stack([table.case[rows], table.index[rows], table.plane[rows]], axis=1).astype(np.int32),
        )

    def _at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the (B,) rounds and (B,) samples at these positions of the stream."""
        return self.order.at(positions) if self.order else (np.zeros_like(positions), positions)

    def _places(self, samples: np.ndarray) -> list[Place]:
        """Return the stack and the slice in it of each sample."""
        table, rows = self.store.slices, self.rows[samples]
        columns = (column[rows].tolist() for column in (table.case, table.plane, table.index))
        return [((case, PLANE_NAMES[plane]), index) for case, plane, index in zip(*columns, strict=True)]

    def _geometry(self, sample: int, case: int, plane: str) -> SliceGeometry:
        if self.kidneys is None:
            return self.store.cases[case].slice_geometry(plane)
        kidney = self.store.cases[case].kidneys[self.kidneys[sample]]
        return self.store.cases[case].kidney_geometry(kidney, self.data.box_margin_mm)

    def _params(self, rounds: np.ndarray, samples: np.ndarray, geometries: list[SliceGeometry]) -> AugmentParams:
        if self.augment is None:
            return augment_params.centered(self.grid, geometries)
        u = augment_params.uniforms(self.seed, rounds, self._keys[samples])
        offsets = augment_reference.noise_offsets(self.noise_size)
        return augment_params.draw(self.augment, self.grid, geometries, self.store.window, u, offsets)

    @property
    def noise_size(self) -> int:
        """Normals that one sample takes."""
        return self.frames * self.data.size_px[0] * self.data.size_px[1]

    @property
    def has_noise(self) -> bool:
        """Whether any sample may draw noise."""
        return self.augment is not None and self.augment.noise_p > 0


class BatchPlan(NamedTuple):
    """Which positions of the stream this rank takes at each step."""

    positions: Callable[[int], np.ndarray]  # step -> (B,) positions
    num_batches: int | None  # of one pass; None: endless
