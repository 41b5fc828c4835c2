"""Whether a folder may be used for a run: what config.yaml and environment.json in it say, read without torch."""

import json
from pathlib import Path

from kits_dist import cli
from kits_dist.config import Config, as_plain
from kits_dist.data.store import Store
from kits_dist.distributed import launcher
from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.text import utf8

# Keys that may differ when a run is resumed: where things are stored, how fast training goes, how long it takes.
_MAY_CHANGE = {
    "data": {"store", "threads", "prefetch", "batch_size", "backend", "residency"},
    "augment": set(),
    "model": {"encoder_weights"},
    "optim": {"lr", "scale_lr", "weight_decay", "epochs", "patience", "accumulate", "schedule"}
    | {"warmup_steps", "clip_norm"},
}


def check_run(config: Config, store: Store) -> bool:
    """Return whether the folder holds this run already, which resume=auto continues. Reads only.

    Raises InputError for a folder that holds a run when resume=none, or one that was made with another configuration or
    store.
    """
    launcher.refuse_restarts_without_resume(config.resume)
    run = Path(config.run)
    saved_config = run / "config.yaml"
    if utf8(str(run.absolute())) != str(run.absolute()):
        raise InputError(f"run={run}: this path is not UTF-8, and TensorBoard cannot write there. Rename the folder.")
    if (run / "store.json").exists():
        raise InputError(f"run={run} is a slice store. Name another folder.")
    if not saved_config.exists():
        found = [name for name in ("checkpoint", "log.jsonl", "model.safetensors") if (run / name).exists()]
        if found:
            raise InputError(
                f"run={run} holds {found[0]} but no config.yaml, so its run is not known. Name another folder."
            )
        return False
    if config.resume == "none":
        raise InputError(f"run={run} already holds a run. Continue it with resume=auto, or name another folder.")
    changed = _changes(as_plain(cli.load(Config, [f"config={saved_config}"])), as_plain(config))
    if changed:
        raise InputError(f"run={run} was made with another configuration ({'; '.join(changed)}). Name another folder.")
    _refuse_other_store(config, store, read_description(run)["store_sha256"])
    return True


def _refuse_other_store(config: Config, store: Store, trained_on: str | None) -> None:
    """trained_on: fingerprint of the store when the run started; None before it was written."""
    has_checkpoints = (Path(config.run) / "checkpoint").exists()
    if (trained_on is None and has_checkpoints) or trained_on not in (None, store.fingerprint()):
        raise InputError(
            f"data.store={config.data.store} is not the store that run={config.run} was trained on: its cases, window "
            f"or splits differ, and test cases could be trained on. Use that store, or name another run folder."
        )


def read_description(run: Path) -> dict:
    """Return environment.json; empty `run` and `store_sha256` before it is written. Raises InputError if damaged."""
    path = run / "environment.json"
    try:
        about = json.loads(files.read_text(path))
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
        for group, may_change in _MAY_CHANGE.items()
        for key, value in now[group].items()
        if key not in may_change and before[group][key] != value
    ]
    if before["seed"] != now["seed"]:
        changed.append(f"seed: {before['seed']} there, {now['seed']} asked")
    return changed
