"""What is done with the network between steps: validate it, judge, draw, save."""

import math
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from kits_dist.config import Config, OptimConfig
from kits_dist.data import augment_reference
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.samples import Samples, samples_to_show
from kits_dist.data.store import PLANE_NAMES, Normalization, Store
from kits_dist.figures.contours import PanelRow, contour_panel
from kits_dist.labels import regions_to_labels
from kits_dist.models.probabilities import region_probabilities
from kits_dist.training import checkpoint
from kits_dist.training.run_folder import REQUEUE, Progress, export_best
from kits_dist.training.tracker import Tracker
from kits_dist.training.train_step import TrainStep
from kits_dist.training.validation import Validation, broadcast_buffers, score
from kits_dist.utils import files
from kits_dist.utils.errors import JobFailed


def judge(progress: Progress, validation: Validation, epoch: int, config: OptimConfig) -> tuple[Progress, bool]:
    """Progress after a validation, and whether it was the best; the same on all ranks, from the same counts."""
    value = validation.loss if config.best_by == "loss" else -float(np.mean(list(validation.dice.values())))
    is_best = progress.best is None or value < progress.best
    if is_best:
        return progress._replace(best=value, best_epoch=epoch, stale=0), True
    return progress._replace(stale=progress.stale + 1), False


class EpochEnd:
    """Made by every rank, and `end_epoch`, `save` and `ask_for_more` are called by all of them."""

    def __init__(
        self,
        config: Config,
        store: Store,
        name: str,
        loader,
        dataset: SliceDataset,
        train_step: TrainStep,
        tracker: Tracker,
    ):
        """name: the run's, where it is written; loader, feed: of the validation slices."""
        self.config, self.store, self.name, self.loader, self.dataset = config, store, name, loader, dataset
        self.train_step, self.tracker, self.accelerator = train_step, tracker, train_step.accelerator
        self.rows = np.unique(store.slices.case[dataset.rows]).tolist()  # of cases that have samples

    def end_epoch(self, progress: Progress, epoch: int) -> tuple[Progress, str]:
        """Validate, judge, log and save. Returns what the run remembers, and a sentence for the user."""
        validation = self.validate()
        if not math.isfinite(validation.loss):
            raise JobFailed(
                f"the validation loss is {validation.loss} after step {progress.step}. Lower optim.lr, or use "
                f"train.precision=fp32. The checkpoints in {self.config.run}/checkpoint are from before."
            )
        progress, is_best = judge(progress, validation, epoch, self.config.optim)
        scores = {"val/loss": validation.loss}
        scores |= {f"val/dice_grid/{name}": value for name, value in validation.dice.items()}
        best_so_far = {f"best/{name}": value for name, value in scores.items()} if is_best else {}
        self.tracker.log(progress.step, scores | best_so_far)
        if self.config.log.images and self.accelerator.is_main_process:
            title = f"data: {self.store.meta['data']}"
            self.tracker.image(progress.step, "val/panel", partial(contour_panel, self.tiles(), title))
        self.save(progress, is_best)
        words = "  ".join(f"{name} {value:.3f}" for name, value in validation.dice.items())
        best = "  best" if is_best else ""
        return progress, f"epoch {epoch + 1}: val loss {validation.loss:.4f}  dice_grid {words}{best}"

    def validate(self) -> Validation:
        eval_model, loss_fn = self.train_step.eval_model, self.train_step.loss_fn
        return score(eval_model, loss_fn, self.loader, self.rows, len(self.dataset.rows), self.accelerator)

    def save(self, progress: Progress, best: bool) -> None:
        train_step = self.train_step
        average = train_step.average and train_step.average.model
        for model in filter(None, (train_step.plain_model, average)):
            broadcast_buffers(model, self.accelerator)
        self.refuse_spoilt(progress.step)
        if self.accelerator.is_main_process:
            checkpoint.save(
                Path(self.config.run) / "checkpoint",
                progress.step,
                train_step.plain_model,
                train_step.plain_optimizer,
                {"run": self.name, "progress": progress._asdict()} | train_step.state(),
                best=best,
                keep=self.config.train.keep,
                average=average,
            )
            if best:
                export_best(self.config, self.store, progress.step, train_step.eval_model)
        self.accelerator.wait_for_everyone()

    def refuse_spoilt(self, step: int) -> None:
        """The last loss was finite, but it is older than the last update. Raises JobFailed, on all ranks alike."""
        spoilt = torch.tensor(int(not self.train_step.is_finite()), device=self.accelerator.device)
        if int(self.accelerator.reduce(spoilt, "sum")):  # sync
            raise JobFailed(
                f"the weights are not finite after step {step}, which is not saved. Lower optim.lr, set "
                f"optim.clip_norm=1, or use train.precision=fp32. The checkpoints in {self.config.run}/checkpoint are "
                "from before."
            )

    def ask_for_more(self) -> None:
        """RUN/requeue: no exit code survives a launcher, so a scheduler looks for this file."""
        if self.accelerator.is_main_process:
            files.write_bytes(Path(self.config.run) / REQUEUE, b"start the same command again with resume=auto\n")
        self.accelerator.wait_for_everyone()

    def tiles(self) -> list[PanelRow]:
        """The same validation slices each time, with expected and predicted labels."""
        tiles = []
        for image, grey, label, caption in self.shown:
            with self.accelerator.autocast():
                seen = image[None].to(self.accelerator.device)
                inside = region_probabilities(self.train_step.eval_model, seen)[0] >= 0.5
            predicted = regions_to_labels(inside.cpu().numpy(), self.config.model.regions)
            tiles.append(PanelRow(grey, label, predicted, caption))
        return tiles

    @cached_property
    def shown(self) -> list[tuple[torch.Tensor, np.ndarray, np.ndarray, str]]:
        """(C, H, W) image, (H, W) uint8 grey and label, and caption of the slices that the panels show."""
        dataset, levels = self.dataset, self.store.window.levels
        host, found = (
            dataset.batch(samples_to_show(self.store, Samples(dataset.rows, dataset.kidneys), self.config.log.images)),
            [],
        )
        for i, (case, index, plane) in enumerate(host.identity):
            slab, truth = host.slabs[i][..., 0], host.labels[i][..., 0]
            image, label = augment_reference.apply(
                slab, truth, host.params, i, self.config.data.size_px, levels, dataset.norm
            )
            grey = _denormalized(image[dataset.data.context], dataset.norm, levels)
            caption = f"{self.store.cases[case].case_id} {PLANE_NAMES[plane]} {index}"
            found.append((torch.from_numpy(image), grey, label, caption))
        return found


def _denormalized(image: np.ndarray, norm: Normalization, levels: int) -> np.ndarray:
    """(H, W) normalised -> uint8 grey that fills 0..255."""
    return np.clip((image * norm.sd + norm.mean) * 255 / levels, 0, 255).astype(np.uint8)
