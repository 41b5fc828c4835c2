"""Report steps one step late, so that the host never waits for a device that has nothing else to do.

At a log step the losses of all ranks, the norm of the gradient and the count of skipped steps are copied to host memory
in the background, and read when the next step has been queued. Only validation and saving read them at once.
"""

from typing import NamedTuple

from kits_dist.training.host_copy import HostCopy
from kits_dist.training.instruments import Instruments
from kits_dist.training.progress import Due, Progress
from kits_dist.training.setup import Run
from kits_dist.training.step_timer import Marks
from kits_dist.training.train_step import StepResult


class _Pending(NamedTuple):
    """What was queued after a step."""

    progress: Progress  # after that step
    rate: float
    copy: HostCopy
    marks: Marks | None  # of the steps since the last log step; None: this is none


class StepLog:
    """Losses, gradient norm and step times of a run. Every rank has one and calls it alike."""

    def __init__(self, run: Run, instruments: Instruments):
        self._run, self._instruments = run, instruments
        self._pending: _Pending | None = None

    def after_step(self, progress: Progress, result: StepResult, rate: float, due: Due) -> None:
        """Call after each step, before anything is validated or saved.

        progress   after that step
        rate       its learning rate

        Raises JobFailed where a loss was not finite: at the latest before the network that it led to is saved.
        """
        self._run.nan_guard.record(result.losses)
        self._read()
        if due.anything:
            losses = self._run.nan_guard.gathered(self._run.accelerator)
            norm = losses.new_zeros(()) if result.grad_norm is None else result.grad_norm
            copy = HostCopy(losses, norm, self._run.train_step.skipped_on_device)
            marks = self._instruments.timer.cut() if due.log else None
            self._pending = _Pending(progress, rate, copy, marks)
        if due.validate or due.save:
            self._read()

    def _read(self) -> None:
        if self._pending is None:
            return
        progress, rate, copy, marks = self._pending
        self._pending = None
        losses, norm, skipped = copy.wait()
        mean_loss = self._run.nan_guard.mean_loss(losses.numpy())
        self._run.train_step.skipped = int(skipped)
        if marks:
            self._instruments.log(progress, mean_loss, rate, float(norm), marks)
