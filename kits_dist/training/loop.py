"""The training loop: what happens between the first step and the last."""

import contextlib
import os
from pathlib import Path

from kits_dist.config import Config
from kits_dist.data.store import Store
from kits_dist.distributed import gpu_memory, rendezvous
from kits_dist.distributed.preemption import StopRequest
from kits_dist.distributed.runtime import seed_step
from kits_dist.training import out_of_memory
from kits_dist.training.epoch_end import EpochEnd
from kits_dist.training.instruments import Instruments
from kits_dist.training.profiling import outside_steps
from kits_dist.training.progress import is_logged
from kits_dist.training.run_folder import how_to_resume
from kits_dist.training.setup import set_up
from kits_dist.training.step_log import StepLog
from kits_dist.utils import files
from kits_dist.utils.errors import JobFailed, Preempted


def run(config: Config, store: Store) -> None:
    """Train, and turn errors of the machine into advice. Raises InputError, JobFailed or Preempted."""
    is_main = os.environ.get("RANK", "0") == "0"
    lock = files.exclusive(Path(config.run), "run") if is_main else contextlib.nullcontext()
    with lock, StopRequest() as request:
        try:
            train(config, store, request)
        except (RuntimeError, MemoryError) as error:
            if gpu_memory.out_of_memory(error):
                raise JobFailed(out_of_memory.advice(config, error)) from error
            explanation = rendezvous.explain(error)
            if not explanation:
                raise
            raise JobFailed(f"{explanation} {how_to_resume(config)}") from error


def train(config: Config, store: Store, request: StopRequest) -> None:
    """Train until nothing is left to do. Raises Preempted if `request` stops it early, saved and ready to resume."""
    run = set_up(config, store, request)
    progress = run.start
    reason = run.finished(progress)
    if reason:
        run.accelerator.print(f"{config.run}: already finished ({reason}).")
        run.accelerator.end_training()
        return

    with Instruments(run) as instruments, EpochEnd(run, instruments.tracker) as epoch_end:
        step_log = StepLog(run, instruments)
        if run.on_gpu:
            epoch_end.rehearse()
            instruments.timer.resume()
        batches = iter(run.batches)
        run.train_step.model.train()
        while not reason:
            before = progress
            rate = run.learning_rate(before)
            seed_step(config.seed, before.step, run.ranks.rank)
            want_norm = is_logged(before.step, config)
            result = run.train_step(batches, rate, before.step, instruments.timer, want_norm)

            progress = before.advanced(run.global_batch)
            instruments.step_done(progress)
            due = run.due(before, progress, stop=request.agreed())

            step_log.after_step(progress, result, rate, due)
            with outside_steps():
                if due.validate:
                    progress, sentence = epoch_end(progress)
                    instruments.epoch_done(progress, sentence)
                elif due.save:
                    epoch_end.save(progress, best=False)
            if due.validate or due.save:
                instruments.timer.resume()

            reason = run.finished(progress)
            if due.stop and not reason:
                epoch_end.request_requeue()
                break

    instruments.finish(done=bool(reason))
    if not reason:
        raise Preempted(
            f"stopped as asked, saved at step {progress.step}. The same command with resume=auto continues."
        )
    run.accelerator.print(f"finished: {reason}; best epoch {progress.best_epoch + 1}; run: {config.run}")
