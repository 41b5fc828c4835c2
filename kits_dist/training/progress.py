"""How far a run is, what is due after a step, and when nothing is left to do: pure functions, no disk, no clock."""

from typing import NamedTuple

import numpy as np

from kits_dist.config import Config, OptimConfig
from kits_dist.training.validation import Validation


class Progress(NamedTuple):
    """All that a run must remember besides weights and optimizer: batches are a pure function of `position`."""

    position: int = 0  # samples consumed by all ranks together
    step: int = 0  # optimizer steps taken, the x of every curve; grows whatever the number of ranks
    best: float | None = None  # validation loss, or minus mean Dice; None before the first validation
    best_epoch: int = -1
    stale: int = 0  # validations since the best

    def advanced(self, samples: int) -> "Progress":
        """Return the progress after one optimizer step on `samples` samples."""
        return self._replace(position=self.position + samples, step=self.step + 1)


class Due(NamedTuple):
    """What has to be done after a step."""

    log: bool
    validate: bool  # an epoch ended; this saves, too
    save: bool
    stop: bool  # a rank was asked to stop

    @property
    def anything(self) -> bool:
        """Whether the host has to wait for the device at all."""
        return self.log or self.validate or self.save


def is_logged(step: int, config: Config) -> bool:
    """Return whether the optimizer step number `step`, from 0, is logged."""
    return step % config.log.every_steps == 0


def due_after(before: Progress, now: Progress, num_samples: int, config: Config, stop: bool) -> Due:
    """Return what is due between `before` and `now`, which are one optimizer step apart.

    num_samples   training samples per epoch
    stop          whether all ranks agreed to stop
    """
    every = config.train.save_every_steps
    return Due(
        log=is_logged(before.step, config),
        validate=now.position // num_samples > before.position // num_samples,
        save=stop or (every > 0 and now.step % every == 0),
        stop=stop,
    )


def finished(progress: Progress, num_samples: int, config: OptimConfig) -> str:
    """Return why nothing is left to do, or "". Derived, not stored: a run may be resumed with more epochs."""
    if config.patience and progress.stale >= config.patience:
        return f"no improvement in {progress.stale} epochs"
    if progress.position >= config.epochs * num_samples:
        return f"{config.epochs} epochs done"
    return ""


def after_validation(
    progress: Progress, validation: Validation, epoch: int, config: OptimConfig
) -> tuple[Progress, bool]:
    """Return the progress after a validation, and whether it was the best so far.

    All ranks come to the same result, because `validation` holds the counts of all of them.
    """
    value = validation.loss if config.best_by == "loss" else -float(np.mean(list(validation.dice.values())))
    if progress.best is None or value < progress.best:
        return progress._replace(best=value, best_epoch=epoch, stale=0), True
    return progress._replace(stale=progress.stale + 1), False
