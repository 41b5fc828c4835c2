"""The losses of a run between two looks at them, and which slices were in the batch that spoilt one."""

from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from accelerate import Accelerator

from kits_dist.data.dataset import SliceDataset
from kits_dist.data.sampler import train_positions
from kits_dist.data.store import PLANE_NAMES
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils import files
from kits_dist.utils.errors import JobFailed

REPORT = "not_finite.json"  # in the run's folder


class NonFiniteGuard:
    """Losses of the steps since somebody looked, and what to say when one of them is not finite.

    They stay on the device until a log step, where one transfer fetches them for all ranks: so the first spoilt step is
    known exactly, and at no cost to the others.
    """

    def __init__(self, run: Path, dataset: SliceDataset, ranks: Ranks, batch_size: int, position: int, step: int):
        """position, step: where the loader of `feed` began."""
        self.run, self.dataset, self.ranks, self.batch_size = run, dataset, ranks, batch_size
        self._position, self._begun = position, step
        self._losses: list[torch.Tensor] = []
        self._step = step

    def saw(self, losses: torch.Tensor) -> None:
        """(accumulate,) losses of one step, on the device."""
        self._losses.append(losses)

    def mean(self, accelerator: Accelerator) -> float:
        """Over the steps since the last call, and all ranks; collective. Raises JobFailed when one is not finite."""
        stacked = torch.stack(self._losses)
        everyone = accelerator.gather(stacked[None]).cpu().numpy()  # (w, steps, accumulate)  # sync
        first, self._step, self._losses = self._step, self._step + len(self._losses), []
        spoilt = np.argwhere(~np.isfinite(everyone.transpose(1, 2, 0)))
        if len(spoilt):
            step, micro, rank = spoilt[0].tolist()
            batches = (first + step - self._begun) * everyone.shape[2] + micro
            self._fail(first + step, rank, batches, float(everyone[rank, step, micro]))
        return float(everyone.mean(dtype=np.float64))

    def _fail(self, step: int, rank: int, batches: int, loss: float) -> NoReturn:
        """batches: of each rank before this one, since the loader began."""
        # a batch is a pure function of its positions, whoever's it was
        positions = train_positions(batches, self.batch_size, rank, self.ranks.world, self._position)
        samples = self.dataset.order.at(positions)[1]
        table, rows = self.dataset.store.slices, self.dataset.rows[samples]
        named = [
            {"case": self.dataset.store.cases[case].case_id, "plane": PLANE_NAMES[plane], "slice": index}
            for case, plane, index in zip(
                *(column[rows].tolist() for column in (table.case, table.plane, table.index)), strict=True
            )
        ]
        if self.dataset.kidneys is not None:  # a slice with two kidneys is two samples
            named = [one | {"kidney": k} for one, k in zip(named, self.dataset.kidneys[samples].tolist(), strict=True)]
        report = self.run / REPORT
        if self.ranks.rank == 0:
            files.write_json(report, {"step": step + 1, "rank": rank, "loss": str(loss), "slices": named})
        raise JobFailed(
            f"the loss is {loss} at step {step + 1}, first on rank {rank}; {report} lists the slices of that batch. "
            f"Lower optim.lr, set optim.clip_norm=1, or use train.precision=fp32. The checkpoints in "
            f"{self.run}/checkpoint are from before."
        )
