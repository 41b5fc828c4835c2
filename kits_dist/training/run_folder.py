"""The folder of one run: what it holds, where the run stands, and that no other run is ever mixed into it."""

import copy
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from kits_dist.config import Config, as_plain, save_config
from kits_dist.data.store import Store
from kits_dist.models import weights
from kits_dist.training import checkpoint
from kits_dist.training.progress import Progress
from kits_dist.training.run_check import check_run, read_description
from kits_dist.utils import files
from kits_dist.utils.errors import InputError

REQUEUE = "requeue"  # file left by a run that was asked to stop


class OpenedRun(NamedTuple):
    """Where a run starts or resumes."""

    progress: Progress
    checkpoint: checkpoint.Checkpoint | None  # None: nothing to resume
    notes: list[str]  # for the user


def open_run(config: Config, store: Store) -> OpenedRun:
    """Return where the run of `config` stands. Reads only.

    Raises InputError for a folder that `check_run` refuses, and for a run none of whose checkpoints can be used:
    starting over there would lose what may be repairable.
    """
    run = Path(config.run)
    if not check_run(config, store):
        return OpenedRun(Progress(), None, ["nothing to resume, a new run"] if config.resume == "auto" else [])

    found, refused = checkpoint.find(run / "checkpoint", read_description(run)["run"])
    if refused and not found:
        raise InputError(
            f"run={run}: none of its {len(refused)} checkpoints can be used ({refused[0]}) Repair or move away "
            f"{run / 'checkpoint'}; without it the same command starts from the beginning."
        )
    notes = [f"not used: {sentence}" for sentence in refused]
    if not found:
        return OpenedRun(Progress(), None, [*notes, "no checkpoint yet, starting from the beginning"])
    notes.append(f"continuing from {found.folder.name}")
    try:
        return OpenedRun(Progress(**found.state["progress"]), found, notes)
    except (TypeError, KeyError) as error:
        raise InputError(f"{found.folder} was written by another version of kits_dist ({error}).") from error


def settings_to_agree_on(
    config: Config, store: Store, progress: Progress, precision: str, backend: str
) -> dict[str, Any]:
    """Return {name: value} of what all ranks must have in common; folder names may differ between machines.

    precision   mode of this process, which its launcher or its GPU may have chosen
    backend     that makes its batches, which data.backend=auto may have chosen
    """
    plain = as_plain(config)
    groups = ("data", "augment", "model", "optim", "train", "log")
    keys = {f"{group}.{key}": value for group in groups for key, value in plain[group].items()}
    for name in ("data.store", "data.threads"):
        del keys[name]
    return keys | {
        "seed": config.seed,
        "resume": config.resume,
        "the checkpoint in run": progress.step,
        "the content of data.store": store.fingerprint()[:12],
        "the precision": precision,
        "the data backend": backend,
    }


def how_to_resume(config: Config) -> str:
    """Return the sentence that ends the message of a run that was cut off."""
    found, _ = checkpoint.find(Path(config.run) / "checkpoint")
    if found:
        return f"The last checkpoint is {found.folder}; the same command with resume=auto continues from there."
    return f"{config.run} holds no checkpoint yet; the same command with resume=auto starts again."


def write_description(config: Config, store: Store, environment: dict) -> str:
    """Write config.yaml and environment.json of a run that starts or resumes.

    Returns the run's name, which is stored in its checkpoints, so that those of another run are not taken for its own.
    """
    run = Path(config.run)
    name = read_description(run)["run"] or uuid.uuid4().hex
    (run / REQUEUE).unlink(missing_ok=True)
    save_config(_with_absolute_store(config), run / "config.yaml")
    files.write_json(
        run / "environment.json",
        environment | {"data": store.meta["data"], "store_sha256": store.fingerprint(), "run": name},
    )
    return name


def export_best(config: Config, store: Store, step: int, state: dict[str, Tensor]) -> None:
    """Write model.safetensors: the weights, a state dict, and all that prediction needs to know about them."""
    trained_on = store.splits.select(config.data.fold)[0]
    about = {
        "config": as_plain(_with_absolute_store(config)),
        "window_hu": list(store.window),
        "normalization": store.normalization(config.data.fold, config.data.mask)._asdict(),
        "data": store.meta["data"],
        "trained_on_voxels": [store.cases[store.row[case_id]].voxels_sha256 for case_id in trained_on],
        "step": step,
    }
    weights.export(Path(config.run) / "model.safetensors", state, about)


def _with_absolute_store(config: Config) -> Config:
    """So that the store is found from any working directory."""
    return replace(config, data=replace(config.data, store=str(Path(config.data.store).absolute())))


def repair(config: Config, store: Store, name: str, found: checkpoint.Checkpoint, model: nn.Module) -> None:
    """Complete what a kill between checkpoint, link and export, or a copy of the folder, left undone.

    Renames checkpoints that were refused, points `last` and `best` at their checkpoints again, and writes
    model.safetensors again where it is missing or older than the best.

    name    of the run
    found   checkpoint from which the run resumes
    model   a network of the run; its weights are not changed
    """
    run = Path(config.run)
    checkpoint.set_aside(run / "checkpoint", found)
    checkpoint.link(run / "checkpoint", found.folder)
    folder = checkpoint.best_folder(run / "checkpoint")
    best = checkpoint.at(folder, name) if folder else None
    if best is None:
        return
    try:
        exported = weights.read_export(run / "model.safetensors")[1]["step"]
    except (InputError, KeyError):
        exported = None
    if exported != best.state["progress"]["step"]:
        best_model = copy.deepcopy(model)
        checkpoint.restore_weights(best, best_model, averaged=config.optim.ema > 0)
        export_best(config, store, best.state["progress"]["step"], best_model.state_dict())
