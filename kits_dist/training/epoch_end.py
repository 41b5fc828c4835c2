"""What happens to the network between steps: validate, log, draw, save."""

import math
import sys
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import torch

from kits_dist.data import augment_reference
from kits_dist.data.samples import Samples, samples_to_show
from kits_dist.data.store import PLANE_NAMES, Normalization
from kits_dist.distributed.runtime import reduce_sum
from kits_dist.figures.contours import PanelRow, contour_panel
from kits_dist.labels import regions_to_labels
from kits_dist.models.probabilities import region_probabilities
from kits_dist.training import checkpoint
from kits_dist.training.checkpoint_writer import CheckpointWriter
from kits_dist.training.progress import Progress, after_validation
from kits_dist.training.run_folder import REQUEUE, export_best
from kits_dist.training.setup import Run
from kits_dist.training.tracker import Tracker
from kits_dist.training.validation import Validation, broadcast_buffers, rehearse, validate
from kits_dist.utils import files
from kits_dist.utils.errors import JobFailed


class EpochEnd:
    """Called at the end of each epoch. Every rank creates one, and all ranks call each method together.

    A context manager: what was begun to be written is finished when it ends.
    """

    def __init__(self, run: Run, tracker: Tracker):
        self.run, self.tracker = run, tracker
        self.train_step, self.accelerator = run.train_step, run.accelerator
        self._writer = CheckpointWriter(run.runtime.device)  # used on rank 0
        # rows of the store's cases that have validation slices
        self.case_rows = np.unique(run.store.slices.case[run.val_dataset.rows]).tolist()

    def __enter__(self) -> "EpochEnd":
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is None:
            self._on_rank_0(self._writer.join)
            return
        try:  # the ranks may no longer agree on anything
            self._writer.join()
        except Exception as lost:
            print(f"the checkpoint of step {self._writer.step} was not written: {lost}", file=sys.stderr)

    def __call__(self, progress: Progress) -> tuple[Progress, str]:
        """Validate, log, draw and save the epoch that ended with the last step.

        Returns the progress with the best score brought up to date, and a sentence for the user. Raises JobFailed for a
        validation loss that is not finite.
        """
        epoch = self.run.epoch_before(progress)
        validation = self.validate()
        if not math.isfinite(validation.loss):
            raise JobFailed(
                f"the validation loss is {validation.loss} after step {progress.step}. Lower optim.lr, or use "
                f"train.precision=fp32. The checkpoints in {self.run.folder}/checkpoint are from before."
            )

        progress, is_best = after_validation(progress, validation, epoch, self.run.config.optim)
        scores = {"val/loss": validation.loss}
        scores |= {f"val/dice_grid/{name}": value for name, value in validation.dice.items()}
        best_so_far = {f"best/{name}": value for name, value in scores.items()} if is_best else {}
        self.tracker.log(progress.step, scores | best_so_far)

        if self.run.config.log.images and self.accelerator.is_main_process:
            title = f"data: {self.run.store.meta['data']}"
            self.tracker.image(progress.step, "val/panel", partial(contour_panel, self._panel_rows(), title))
        self.save(progress, is_best)

        dice = "  ".join(f"{name} {value:.3f}" for name, value in validation.dice.items())
        best = "  best" if is_best else ""
        return progress, f"epoch {epoch + 1}: val loss {validation.loss:.4f}  dice_grid {dice}{best}"

    def validate(self) -> Validation:
        """Score the network that would be saved on every validation slice, once over all ranks."""
        return validate(
            self.train_step.eval_model,
            self.train_step.loss_fn,
            self.run.val_loader,
            self.case_rows,
            len(self.run.val_dataset.rows),
            self.accelerator,
        )

    def rehearse(self) -> None:
        """Score one validation batch before training begins, so that memory runs out now and not after an epoch."""
        step = self.train_step
        rehearse(step.eval_model, step.loss_fn, self.run.val_loader, self.accelerator)

    def save(self, progress: Progress, best: bool) -> None:
        """Begin to write a checkpoint, and RUN/model.safetensors if it is the best; training goes on meanwhile.

        Raises JobFailed for non-finite weights, and what ended the save before.
        """
        step = self.train_step
        average = step.average.model if step.average else None
        for model in filter(None, (step.plain_model, average)):
            broadcast_buffers(model, self.accelerator)
        self._refuse_non_finite(progress.step)

        def begin() -> None:
            self._writer.join()  # of the save before, whose copy is overwritten
            about = {"run": self.run.name, "global_batch": self.run.global_batch, "progress": progress._asdict()}
            state = about | step.state()
            contents = checkpoint.contents_of(
                progress.step, step.plain_model, step.plain_optimizer, state, best=best, average=average
            )
            self._writer.start(contents, self._write)

        self._on_rank_0(begin)

    def request_requeue(self) -> None:
        """Write RUN/requeue: no exit code survives a launcher, so a scheduler looks for this file."""
        self._on_rank_0(self._write_requeue)

    def _write(self, contents: checkpoint.Contents) -> None:
        """Write a copy of the state, while training changes the state itself."""
        checkpoint.save(self.run.folder / "checkpoint", contents, keep=self.run.config.train.keep)
        if contents.best:
            export_best(self.run.config, self.run.store, contents.step, contents.weights)

    def _write_requeue(self) -> None:
        self._writer.join()
        files.write_bytes(self.run.folder / REQUEUE, b"start the same command again with resume=auto\n")

    def _on_rank_0(self, work: Callable[[], None]) -> None:
        """Run `work` on rank 0 while the others wait. If it fails, all ranks raise, so that none waits for ever."""
        failure = None
        if self.accelerator.is_main_process:
            try:
                work()
            except Exception as error:
                failure = error
        failed = torch.tensor(int(failure is not None), device=self.accelerator.device)
        any_failed = int(reduce_sum(self.accelerator, failed))  # sync
        if failure:
            raise failure
        if any_failed:
            raise JobFailed("rank 0 could not write to the run folder; its message says why.")

    def _refuse_non_finite(self, step: int) -> None:
        """Raise JobFailed, on all ranks alike. The last loss was finite, but it is older than the last update."""
        non_finite = torch.tensor(int(not self.train_step.is_finite()), device=self.accelerator.device)
        if int(reduce_sum(self.accelerator, non_finite)):  # sync
            raise JobFailed(
                f"the weights are not finite after step {step}, which is not saved. Lower optim.lr, set "
                f"optim.clip_norm=1, or use train.precision=fp32. The checkpoints in {self.run.folder}/checkpoint are "
                "from before."
            )

    def _panel_rows(self) -> list[PanelRow]:
        """Return the same validation slices each time, with expected and predicted labels."""
        rows = []
        for image, gray, label, caption in self._panel_slices:
            with self.accelerator.autocast():
                network_input = image[None].to(self.accelerator.device)
                inside = region_probabilities(self.train_step.eval_model, network_input)[0] >= 0.5
            predicted = regions_to_labels(inside.cpu().numpy(), self.run.config.model.regions)
            rows.append(PanelRow(gray, label, predicted, caption))
        return rows

    @cached_property
    def _panel_slices(self) -> list[tuple[torch.Tensor, np.ndarray, np.ndarray, str]]:
        """(C, H, W) float32 image, (H, W) uint8 gray and labels, and caption of each slice of the panel."""
        store, dataset = self.run.store, self.run.val_dataset
        levels = store.window.levels
        positions = samples_to_show(store, Samples(dataset.rows, dataset.kidneys), self.run.config.log.images)
        host = dataset.batch(positions)

        found = []
        for i, (case, index, plane) in enumerate(host.identity):
            slab, truth = host.slabs[i][..., 0], host.labels[i][..., 0]
            image, label = augment_reference.apply(
                slab, truth, host.params, i, self.run.config.data.size_px, levels, dataset.norm
            )
            gray = _denormalized(image[dataset.data.context], dataset.norm, levels)
            caption = f"{store.cases[case].case_id} {PLANE_NAMES[plane]} {index}"
            found.append((torch.from_numpy(image), gray, label, caption))
        return found


def _denormalized(image: np.ndarray, norm: Normalization, levels: int) -> np.ndarray:
    """(H, W) normalized -> uint8 gray that fills 0..255."""
    return np.clip((image * norm.sd + norm.mean) * 255 / levels, 0, 255).astype(np.uint8)
