"""Stop a run at the first loss that is not finite, and name the step, the rank and the slices of that batch."""

from pathlib import Path
from typing import NoReturn, cast

import numpy as np
import torch
from accelerate import Accelerator

from kits_dist.data.dataset import SliceDataset
from kits_dist.data.sampler import train_positions
from kits_dist.data.store import PLANE_NAMES
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils import files
from kits_dist.utils.errors import JobFailed

REPORT = "not_finite.json"  # in the run folder


class NonFiniteGuard:
    """Losses since the last log step. They stay on the device until those of all ranks are fetched at once.

    So the first non-finite step is known exactly, and no step waits for its own loss.
    """

    def __init__(self, run: Path, dataset: SliceDataset, ranks: Ranks, batch_size: int, position: int, step: int):
        """position, step: where the loader of `dataset` started."""
        self.run, self.dataset, self.ranks, self.batch_size = run, dataset, ranks, batch_size
        self._start_position, self._start_step = position, step
        self._losses: list[torch.Tensor] = []
        self._step = step  # of the first loss that `mean_loss` has not seen

    def record(self, losses: torch.Tensor) -> None:
        """Keep the (accumulate,) losses of one step, on the device."""
        self._losses.append(losses)

    def gathered(self, accelerator: Accelerator) -> torch.Tensor:
        """Return the (ranks, steps, accumulate) losses since the last call, on the device. All ranks call it."""
        recorded = torch.stack(self._losses)
        self._losses = []
        return cast(torch.Tensor, accelerator.gather(recorded[None]))

    def mean_loss(self, losses: np.ndarray) -> float:
        """Return the mean of what `gathered` returned. Raises JobFailed on all ranks alike if one is not finite."""
        first_step = self._step
        self._step += losses.shape[1]
        non_finite = np.argwhere(~np.isfinite(losses.transpose(1, 2, 0)))  # by step, then batch, then rank
        if len(non_finite):
            step, micro, rank = non_finite[0].tolist()
            batches = (first_step + step - self._start_step) * losses.shape[2] + micro
            self._fail(first_step + step, rank, batches, float(losses[rank, step, micro]))
        return float(losses.mean(dtype=np.float64))

    def _fail(self, step: int, rank: int, batches: int, loss: float) -> NoReturn:
        """batches: how many each rank had consumed since the loader started."""
        # a batch is a pure function of its positions, so any rank can name the slices of another
        positions = train_positions(batches, self.batch_size, rank, self.ranks.world, self._start_position)
        assert self.dataset.order is not None  # training slices have one
        samples = self.dataset.order.at(positions)[1]
        table, rows = self.dataset.store.slices, self.dataset.rows[samples]
        slices = []
        for row, sample in zip(rows.tolist(), samples.tolist(), strict=True):
            case_id = self.dataset.store.cases[table.case[row]].case_id
            entry = {"case": case_id, "plane": PLANE_NAMES[table.plane[row]], "slice": int(table.index[row])}
            if self.dataset.kidneys is not None:  # a slice with two kidneys is two samples
                entry["kidney"] = int(self.dataset.kidneys[sample])
            slices.append(entry)

        report = self.run / REPORT
        if self.ranks.rank == 0:
            files.write_json(report, {"step": step + 1, "rank": rank, "loss": str(loss), "slices": slices})
        raise JobFailed(
            f"the loss is {loss} at step {step + 1}, first on rank {rank}; {report} lists the slices of that batch. "
            f"Lower optim.lr, set optim.clip_norm=1, or use train.precision=fp32. The checkpoints in "
            f"{self.run}/checkpoint are from before."
        )
