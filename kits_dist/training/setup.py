"""Everything before the first step, in the order it happens: runtime, model, data, resume, introduction."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from kits_dist.config import Config
from kits_dist.data.backends import real_backend
from kits_dist.data.batch import Batch
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.loaders import PeekableLoader, build_train_loader, build_val_loader
from kits_dist.data.store import Store
from kits_dist.distributed import rendezvous
from kits_dist.distributed.preemption import StopRequest
from kits_dist.distributed.ranks import Ranks
from kits_dist.distributed.runtime import Runtime, start
from kits_dist.models import build_model
from kits_dist.training.introduction import Facts, facts_of, introduction
from kits_dist.training.lr_schedule import lr_at
from kits_dist.training.mfu import images_per_s_at_peak
from kits_dist.training.nan_guard import NonFiniteGuard
from kits_dist.training.progress import Due, Progress, due_after, finished
from kits_dist.training.run_folder import OpenedRun, open_run, repair, settings_to_agree_on, write_description
from kits_dist.training.train_step import TrainStep, place_model
from kits_dist.utils import files
from kits_dist.utils.environment import environment


@dataclass(frozen=True)
class Run:
    """A training that is ready for its next step. Loaders and runtime belong to this rank."""

    config: Config
    store: Store
    runtime: Runtime
    train_step: TrainStep
    batches: Iterable[Batch]  # endless, from `start.position` on
    dataset: SliceDataset  # training slices
    val_loader: PeekableLoader
    val_dataset: SliceDataset
    nan_guard: NonFiniteGuard
    start: Progress  # where training begins or resumes
    images_per_s_at_peak: float | None  # of one process at its device's peak; rank 0 only, None where not known
    facts: Facts  # for TensorBoard; rank 0 only
    name: str  # by which checkpoints know their run; rank 0 only

    @property
    def accelerator(self) -> Accelerator:
        """Accelerate's view of this process."""
        return self.runtime.accelerator

    @property
    def ranks(self) -> Ranks:
        """Place of this process among all of the launch."""
        return self.runtime.ranks

    @property
    def on_gpu(self) -> bool:
        """Whether this process trains on a GPU."""
        return self.runtime.device.type == "cuda"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.run)

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step of all ranks together."""
        return global_batch(self.config, self.ranks)

    @property
    def num_samples(self) -> int:
        """Training samples per epoch."""
        return len(self.dataset.rows)

    def epoch_before(self, progress: Progress) -> int:
        """Return the epoch, from 0, of the step that led to `progress`."""
        return (progress.position - self.global_batch) // self.num_samples

    def learning_rate(self, progress: Progress) -> float:
        """Return the rate of the next step. Steps that fp16's scaler is known to have skipped do not count."""
        skipped = self.train_step.skipped
        taken = progress.step - skipped
        seen = progress.position // self.global_batch - skipped
        return lr_at(
            taken, seen, total_steps(self.config, self.dataset, self.ranks), self.config.optim, self.ranks.world
        )

    def due(self, before: Progress, now: Progress, stop: bool) -> Due:
        """Return what is due between two adjacent steps; `stop`: all ranks agreed to stop."""
        return due_after(before, now, self.num_samples, self.config, stop)

    def finished(self, progress: Progress) -> str:
        """Return why nothing is left to do, or ""."""
        return finished(progress, self.num_samples, self.config.optim)


def global_batch(config: Config, ranks: Ranks) -> int:
    """Return the samples per optimizer step of all ranks together."""
    return config.data.batch_size * ranks.world * config.optim.accumulate


def total_steps(config: Config, dataset: SliceDataset, ranks: Ranks) -> int:
    """Return the optimizer steps of the whole run, the last one rounded up."""
    return -(-config.optim.epochs * len(dataset.rows) // global_batch(config, ranks))


def set_up(config: Config, store: Store, request: StopRequest) -> Run:
    """Join the other ranks and build or resume the run of `config`. Every rank calls it.

    Raises InputError for a configuration, store, run folder or launcher that cannot work, JobFailed for a missing rank.
    """
    train_cases, val_cases = store.splits.select(config.data.fold)
    opened = open_run(config, store)
    resumed = opened.checkpoint is not None

    runtime = start(config.train, config.optim.accumulate, Path(config.run), config.seed)
    request.listen(runtime.ranks.world, config.train.timeout_s)
    backend = real_backend(config.data.backend, runtime.device)
    rendezvous.refuse_differences(settings_to_agree_on(config, store, opened.progress, runtime.precision.mode, backend))

    train_step, peak = _build_train_step(config, runtime, pretrained=not resumed)

    frames = 1 + 2 * config.data.context
    batches, dataset = build_train_loader(
        store,
        config.data,
        config.augment,
        config.seed,
        runtime.ranks,
        device=runtime.device,
        dtype=runtime.image_dtype,
        start=opened.progress.position,
        step_bytes=partial(train_step.step_bytes, config.data.batch_size, frames, config.data.size_px),
    )
    val_loader, val_dataset = build_val_loader(
        store, config.data, val_cases, runtime.ranks, device=runtime.device, dtype=runtime.image_dtype
    )

    if opened.checkpoint:
        train_step.restore(opened.checkpoint, config.optim.weight_decay)
    train_step.wrap(config.train)
    runtime.accelerator.wait_for_everyone()  # no rank may write before every rank has read

    facts, name = {}, ""
    if runtime.accelerator.is_main_process:
        facts, name = _describe(config, store, runtime, opened, dataset, train_step, len(train_cases), len(val_cases))
    nan_guard = NonFiniteGuard(
        Path(config.run),
        dataset,
        runtime.ranks,
        config.data.batch_size,
        opened.progress.position,
        opened.progress.step,
    )
    return Run(
        config=config,
        store=store,
        runtime=runtime,
        train_step=train_step,
        batches=batches,
        dataset=dataset,
        val_loader=val_loader,
        val_dataset=val_dataset,
        nan_guard=nan_guard,
        start=opened.progress,
        images_per_s_at_peak=peak,
        facts=facts,
        name=name,
    )


def _build_train_step(config: Config, runtime: Runtime, pretrained: bool) -> tuple[TrainStep, float | None]:
    """Return the step, not wrapped yet, and rank 0's images/s at the peak of its device."""
    accelerator = runtime.accelerator
    frames = 1 + 2 * config.data.context
    with accelerator.main_process_first():  # one process downloads pretrained weights, the others find them
        model = build_model(config.model, frames, pretrained=pretrained)

    peak = None
    if accelerator.is_main_process:
        mode = runtime.precision.mode
        peak = images_per_s_at_peak(model, frames, config.data.size_px, runtime.device, mode)

    placed = place_model(model, config.train, runtime.device)
    return TrainStep(placed, config.model.regions, config.optim, accelerator), peak


def _describe(
    config: Config,
    store: Store,
    runtime: Runtime,
    opened: OpenedRun,
    dataset: SliceDataset,
    train_step: TrainStep,
    num_train_cases: int,
    num_val_cases: int,
) -> tuple[Facts, str]:
    """Write what the run is into its folder, print it, and return its facts and name. Rank 0 only."""
    about = environment()
    facts = facts_of(about, runtime, config, dataset, num_val_cases, total_steps(config, dataset, runtime.ranks))

    name = write_description(config, store, about)
    if config.data.sampler != "natural":
        assert dataset.order is not None  # training slices have one
        files.write_json(Path(config.run) / "sampler.json", dataset.order.shares())
    if opened.checkpoint:
        repair(config, store, name, opened.checkpoint, train_step.plain_model)

    for line in introduction(facts, runtime, config, dataset, num_train_cases):
        print(line)
    notes = [*opened.notes, *_other_batch(config, runtime.ranks, opened)]
    print(*notes, sep="\n", end="\n" if notes else "")
    return facts, name


def _other_batch(config: Config, ranks: Ranks, opened: OpenedRun) -> Iterator[str]:
    """Yield that a run goes on with another batch, as on another number of processes, and how to keep the former one.

    Checkpoints of an earlier version do not say theirs.
    """
    now = global_batch(config, ranks)
    before = opened.checkpoint.state.get("global_batch", now) if opened.checkpoint else now
    if before == now:
        return
    of_one = ranks.world * config.data.batch_size
    if before % of_one == 0:
        advice = f"optim.accumulate={before // of_one} keeps it"
    elif before % ranks.world == 0:
        advice = f"data.batch_size={before // ranks.world} optim.accumulate=1 keeps it"
    else:
        advice = f"{ranks.world} processes cannot keep it"
    yield f"global batch {now}, was {before}: {advice}"
