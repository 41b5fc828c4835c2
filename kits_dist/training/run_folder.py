"""One run's folder: what it holds, where it stands, and that no other run is ever mixed into it."""

import copy
import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from kits_dist import cli
from kits_dist.config import Config, as_plain, save_config
from kits_dist.data.store import Store
from kits_dist.distributed import launcher
from kits_dist.models import weights as model_weights
from kits_dist.training import checkpoint
from kits_dist.utils import files
from kits_dist.utils.errors import InputError

REQUEUE = "requeue"  # left by a run that was asked to stop


class Progress(NamedTuple):
    """All that a run must remember beside weights and optimiser: batches are a pure function of `position`."""

    position: int = 0  # samples consumed by all ranks together
    step: int = 0  # optimiser steps taken, the x of every curve; grows whatever the number of ranks
    best: float | None = None  # validation loss, or minus mean Dice; none before the first validation
    best_epoch: int = -1
    stale: int = 0  # validations since the best


class Opened(NamedTuple):
    progress: Progress
    checkpoint: checkpoint.Checkpoint | None  # None: nothing to continue from
    notes: list[str]  # for the user


# What may differ when a run goes on: where things lie, how fast they go, how long it trains.
_FREE = {
    "data": {"store", "threads", "prefetch", "batch_size", "residency"},
    "model": {"encoder_weights"},
    "optim": {
        "lr",
        "scale_lr",
        "weight_decay",
        "epochs",
        "patience",
        "accumulate",
        "schedule",
        "warmup_steps",
        "clip_norm",
    },
}


def open_run(config: Config, store: Store) -> Opened:
    """Where the run of `config` stands; reads only.

    Raises InputError for a folder that holds a run when resume=none, that was made with another configuration or store,
    or whose checkpoints are all refused: to begin again there would lose what may be mended.
    """
    launcher.refuse_restarts_without_resume(config.resume)
    run = Path(config.run)
    written = run / "config.yaml"
    if (run / "store.json").exists():
        raise InputError(f"run={run} is a slice store. Name another folder.")
    if not written.exists():
        if found := [name for name in ("checkpoint", "log.jsonl", "model.safetensors") if (run / name).exists()]:
            raise InputError(
                f"run={run} holds {found[0]} but no config.yaml, so its run is not known. Name another folder."
            )
        return Opened(Progress(), None, ["nothing to resume, a new run"] if config.resume == "auto" else [])
    if config.resume == "none":
        raise InputError(f"run={run} already holds a run. Continue it with resume=auto, or name another folder.")
    if changed := _changes(as_plain(cli.load(Config, [f"config={written}"])), as_plain(config)):
        raise InputError(f"run={run} was made with another configuration ({'; '.join(changed)}). Name another folder.")
    about = _about(run)
    trained_on = about["store_sha256"]
    if trained_on is None and (run / "checkpoint").exists() or trained_on not in (None, store.fingerprint()):
        raise InputError(
            f"data.store={config.data.store} is not the store that run={run} was trained on: its cases, window or "
            f"splits differ, and test cases could be trained on. Use that store, or name another run folder."
        )
    found, refused = checkpoint.find(run / "checkpoint", about["run"])
    if refused and not found:
        raise InputError(
            f"run={run}: none of its {len(refused)} checkpoints can be used ({refused[0]}) Mend or move away "
            f"{run / 'checkpoint'}; without it the same command begins again."
        )
    notes = [f"not used: {sentence}" for sentence in refused]
    notes.append(f"continuing from {found.folder.name}" if found else "no checkpoint yet, starting from the beginning")
    try:
        return Opened(Progress(**found.state["progress"]) if found else Progress(), found, notes)
    except (TypeError, KeyError) as error:
        raise InputError(f"{found.folder} was written by another version of kits_dist ({error}).") from error


def same_everywhere(config: Config, store: Store, progress: Progress, precision: str) -> dict[str, Any]:
    """What the processes of a run must agree on, by its name, however the machines' folders are called.

    precision: the mode of this process, which its launcher or its GPU may have chosen
    """
    plain = as_plain(config)
    groups = ("data", "augment", "model", "optim", "train", "log")
    keys = {f"{group}.{key}": value for group in groups for key, value in plain[group].items()}
    keys |= {"seed": config.seed, "resume": config.resume}
    found = {"the checkpoint in run": progress.step, "the content of data.store": store.fingerprint()[:12]}
    found |= {"the precision": precision}
    return {key: value for key, value in keys.items() if key not in ("data.store", "data.threads")} | found


def where_to_go_on(config: Config) -> str:
    """For the message of a run that was cut off."""
    found, _ = checkpoint.find(Path(config.run) / "checkpoint")
    if found:
        return f"The last checkpoint is {found.folder}; the same command with resume=auto goes on from there."
    return f"{config.run} holds no checkpoint yet; the same command with resume=auto starts again."


def write_about(config: Config, store: Store, environment: dict) -> str:
    """config.yaml and environment.json of a run that begins or goes on.

    Returns the run's name, by which its checkpoints are told from those of others, whatever its folder is called.
    """
    run = Path(config.run)
    name = _about(run)["run"] or uuid.uuid4().hex
    (run / REQUEUE).unlink(missing_ok=True)
    save_config(_placed(config), run / "config.yaml")
    files.write_json(
        run / "environment.json",
        environment | {"data": store.meta["data"], "store_sha256": store.fingerprint(), "run": name},
    )
    return name


def export_best(config: Config, store: Store, step: int, model: nn.Module) -> None:
    """model.safetensors: the weights and all that prediction needs to know beside them."""
    trained_on = store.splits.select(config.data.fold)[0]
    about = {
        "config": as_plain(_placed(config)),
        "window_hu": list(store.window),
        "normalization": store.normalization(config.data.fold)._asdict(),
        "data": store.meta["data"],
        "trained_on_voxels": [store.cases[store.row[case_id]].voxels_sha256 for case_id in trained_on],
        "step": step,
    }
    model_weights.export(Path(config.run) / "model.safetensors", model, about)


def _placed(config: Config) -> Config:
    """As it is saved: the store is found from any working directory."""
    return replace(config, data=replace(config.data, store=str(Path(config.data.store).absolute())))


def mend(config: Config, store: Store, name: str, found: checkpoint.Checkpoint, model: nn.Module) -> None:
    """Set refused checkpoints aside; point `best` at what the run goes on from, if it is that, and write
    model.safetensors again, where a kill came between checkpoint, link and export, or the last was lost.

    name    of the run
    model   one of the run's, whose weights are left alone
    """
    run = Path(config.run)
    checkpoint.set_aside(run / "checkpoint", found)
    checkpoint.link(run / "checkpoint", found.folder, found.best)
    best = checkpoint.at(run / "checkpoint" / "best", name)
    if best is None:
        return
    try:
        exported = model_weights.read_export(run / "model.safetensors")[1]["step"]
    except (InputError, KeyError):
        exported = None
    if exported != best.state["progress"]["step"]:
        weights = copy.deepcopy(model)
        checkpoint.restore_weights(best, weights, averaged=config.optim.ema > 0)
        export_best(config, store, best.state["progress"]["step"], weights)


def _about(run: Path) -> dict:
    """environment.json; no `run` and no `store_sha256` before it was written. Raises InputError when it is damaged."""
    path = run / "environment.json"
    try:
        about = json.loads(path.read_text())
        return {"run": "", **about, "store_sha256": about["store_sha256"]}
    except FileNotFoundError:
        return {"run": "", "store_sha256": None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): the store that the run was trained on is not known. Name another folder."
        ) from error


def _changes(before: dict, now: dict) -> list[str]:
    changed = [
        f"{group}.{key}: {before[group][key]} there, {value} asked"
        for group in ("data", "augment", "model", "optim")
        for key, value in now[group].items()
        if key not in _FREE.get(group, ()) and before[group][key] != value
    ]
    if before["seed"] != now["seed"]:
        changed.append(f"seed: {before['seed']} there, {now['seed']} asked")
    return changed
