"""Backend dali: batches from NVIDIA DALI, whose graph is in `dali_graph`.

`SliceDataset` chooses slices and draws parameters in a thread of its own, DALI applies them. The graph is endless and
keyed by step, so its queues do not drain at the end of an epoch.
"""

import itertools
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from kits_dist.data import augment_reference
from kits_dist.data.backends.dali_graph import LAYOUTS, NOISE_BANK, build_graph
from kits_dist.data.backends.stacking import StackedBatch, Stacker
from kits_dist.data.batch import Batch
from kits_dist.data.dataset import BatchPlan, SliceDataset
from kits_dist.data.prefetcher import Prefetcher


class DaliLoader:
    """Iterate `Batch` on `device`: endlessly for a training plan; for a validation plan each `iter` is one pass."""

    def __init__(self, dataset: SliceDataset, plan: BatchPlan, device: torch.device, dtype: torch.dtype, threads: int):
        """Build the graph. Raises MissingPackage where DALI is not installed."""
        self.dataset = dataset
        self.plan = plan
        self._on_gpu = device.type == "cuda"
        depth = dataset.data.prefetch
        self._host_batches = Prefetcher(self._host_batch, depth, device=device)
        # no_copy: DALI reads our arrays until a batch is done, so they must outlive its queue: the batches in it, the
        # one it is asked for, and those whose work on the GPU may not have ended when it is.
        self._alive: deque[StackedBatch] = deque()
        self._max_alive = depth + 4
        self._identities: deque[np.ndarray] = deque()  # of the batches in DALI's queue, which keeps their order
        self._stacker = Stacker(pinned=self._on_gpu)
        self._last_step = -1  # of the batch at the end of _alive
        self._taken = 0  # batches taken out of the pipeline
        self._pipeline = build_graph(dataset, self._slices, self._params, device, dtype, threads)
        if dataset.has_noise:  # given once, and kept: DALI reads this very memory
            self._noise_bank = augment_reference.noise_bank(dataset.noise_size)
            self._pipeline.feed_input(NOISE_BANK, [self._noise_bank] * dataset.data.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.plan.num_batches is not None:
            while self._taken % self.plan.num_batches:  # the rest of a pass that was left early
                self._run()
                self._identities.popleft()
                self._wait()

        in_use: deque = deque()  # outputs whose kernels may still be running, with the event that ends their use
        try:
            for _ in itertools.count() if self.plan.num_batches is None else range(self.plan.num_batches):
                outputs = self._run()
                image, label = (torch.from_dlpack(output.as_tensor()) for output in outputs)
                identity = torch.from_numpy(self._identities.popleft()).to(image.device, non_blocking=True)
                yield Batch(image, label, *identity.unbind(1))

                if self._on_gpu:
                    # The caller has queued its work on the batch. When that is done, DALI may reuse the memory: wait
                    # for the work of two steps ago, so that the GPU still has a whole step queued.
                    done = torch.cuda.Event()
                    done.record()
                    in_use.append((outputs, done))
                    if len(in_use) > 2:
                        in_use.popleft()[1].synchronize()  # sync: with the step before the last
        finally:
            self._wait()  # a pass ends or is left, and `outputs` are released

    def _run(self) -> tuple:
        self._taken += 1
        try:
            return self._pipeline.run(torch.cuda.current_stream() if self._on_gpu else None)
        except BaseException:
            self._host_batches.close()  # after an error no further batch is made
            raise

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()  # sync

    def _host_batch(self, step: int) -> StackedBatch:
        return self._stacker.stack(self.dataset.planned(self.plan, step))

    def _current(self, info) -> StackedBatch:
        """Return the batch of one iteration; both sources below ask for it."""
        if self._last_step != info.iteration:
            self._last_step = info.iteration
            self._alive.append(next(self._host_batches))
            self._identities.append(self._alive[-1].host.identity)
            if len(self._alive) > self._max_alive:
                self._stacker.give_back(self._alive.popleft())
        return self._alive[-1]

    def _slices(self, info) -> tuple:
        batch = self._current(info)
        slices = batch.host.slabs, batch.host.labels
        if batch.memory is None or not self._on_gpu:
            return slices
        # DALI would copy an array that it does not know to be page-locked into memory of its own first
        from nvidia.dali.tensors import TensorListCPU

        return tuple(TensorListCPU(a, layout, is_pinned=True) for a, layout in zip(slices, LAYOUTS, strict=True))

    def _params(self, info) -> tuple:
        batch = self._current(info)
        params = batch.host.params
        values = params.matrix, batch.numbers, params.noise_offset
        return values[: 1 + bool(self.dataset.augment) + self.dataset.has_noise]
