"""Save and resume a run: tensors in safetensors, the rest in JSON, so that nothing that can run code is ever loaded.

RUN/checkpoint/step_00001234/{model.safetensors, optimizer.safetensors, state.json}, and average.safetensors where
weights are averaged. SHA256SUMS, in the format of sha256sum(1), covers all files, so a damaged checkpoint is refused.
`last` and `best` are links to such folders for people; on a disk without links they are files that hold the name, and
after a copy that follows links they may be folders. Nothing is read through them: the step in the name and `best` in
state.json say the same.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kits_dist.models.weights import load_weights, read_tensors, write_tensors
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed

_SUMS = "SHA256SUMS"
_MODEL = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_AVERAGE = "average.safetensors"
_STATE = "state.json"
_NEEDED = {_MODEL, _OPTIMIZER, _STATE}  # what every checkpoint has
_NOT_THERE = (
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
)  # any other OSError says nothing about a checkpoint


class Contents(NamedTuple):
    """What a checkpoint is written from."""

    step: int
    best: bool
    tensors: dict[str, dict[str, Tensor]]  # by file
    state: bytes  # of state.json

    @property
    def weights(self) -> dict[str, Tensor]:
        """Of the network that is validated and exported."""
        return self.tensors.get(_AVERAGE, self.tensors[_MODEL])


class Checkpoint(NamedTuple):
    """A complete checkpoint on disk; its tensors are read by `restore`."""

    folder: Path
    state: dict  # what the trainer put there: progress, scaler, ...
    best: bool  # the best so far at the time it was written
    optimizer: dict  # what is no tensor in the optimizer's state


def contents_of(
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    *,
    best: bool,
    average: nn.Module | None = None,
) -> Contents:
    """Return what the checkpoint of `step` holds. Its tensors are those in use, not copies.

    best    the best so far
    state   the rest of what the trainer keeps, for JSON
    """
    moments, groups = _flatten(optimizer.state_dict())
    tensors = {_MODEL: model.state_dict(), _OPTIMIZER: moments}
    if average:
        tensors[_AVERAGE] = average.state_dict()
    return Contents(step, best, tensors, files.as_json({"best": best, "optimizer": groups, "state": state}))


def save(root: Path, contents: Contents, *, keep: int) -> None:
    """Write a folder, point `last` (and `best`) at it, delete all but the newest `keep` and the best."""
    folder = root / f"step_{contents.step:08d}"
    with files.new_folder(folder) as fresh:
        sums = {name: write_tensors(fresh / name, tensors) for name, tensors in contents.tensors.items()}
        sums[_STATE] = files.write_hashed(fresh / _STATE, [contents.state])
        lines = [f"{sums[name]}  {name}\n" for name in sorted(sums)]
        files.write_bytes(fresh / _SUMS, "".join(lines).encode())
    link(root, folder)

    steps = _steps(root)
    kept = [*steps[:keep], best_folder(root)]
    for path in steps:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def link(root: Path, last: Path) -> None:
    """Point `last` at this checkpoint, and `best` at the best one."""
    _point(root / "last", last)
    best = best_folder(root)
    if best:
        _point(root / "best", best)


def set_aside(root: Path, found: Checkpoint) -> None:
    """Rename checkpoints newer than `found` to refused_STEP.

    They are damaged or another run's, but may be the only copy, so they are not deleted.
    """
    for folder in _steps(root):
        if folder.name <= found.folder.name:
            return
        _set_aside(folder)


def _set_aside(folder: Path) -> None:
    aside, number = folder.with_name(f"refused_{folder.name}"), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"refused_{folder.name}_{number}")
    os.rename(folder, aside)


def find(root: Path, run: str = "") -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is complete and this run's, and a sentence for each newer one that is not.

    run   name of the run; empty accepts any run

    Raises JobFailed for a checkpoint that exists but cannot be read now: it may be whole.
    """
    refused = []
    for folder in _steps(root):
        try:
            return _verified(folder, run), refused
        except InputError as error:
            refused.append(str(error))
    return None, refused


def best_folder(root: Path) -> Path | None:
    """Return the newest checkpoint that was the best when it was written, if any. Verifies nothing."""
    for folder in _steps(root):
        with contextlib.suppress(InputError):
            if files.read_json(folder / _STATE).get("best"):
                return folder
    return None


def at(folder: Path, run: str = "") -> Checkpoint | None:
    """Return the checkpoint of a folder or link; None when it is missing, damaged or another run's."""
    try:
        return _verified(folder, run)
    except InputError:
        return None


def restore_weights(found: Checkpoint, model: nn.Module, averaged: bool = False) -> None:
    """Load weights into the unwrapped model, in place. Raises InputError when they are of another model."""
    path = found.folder / (_AVERAGE if averaged else _MODEL)
    load_weights(model, read_tensors(path), path)


def restore(
    found: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> None:
    """Load into the unwrapped model, its optimizer and its average, in place.

    Raises InputError when they are of another model.
    """
    restore_weights(found, model)
    if average:
        restore_weights(found, average, averaged=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = read_tensors(found.folder / _OPTIMIZER)
    try:
        optimizer.load_state_dict(_unflatten(tensors, found.optimizer, parameters))
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{found.folder / 'optimizer.safetensors'}: of another optimizer ({error}).") from error


def _verified(folder: Path, run: str) -> Checkpoint:
    """Raise InputError when a file is missing or damaged or another run's, JobFailed when the disk does not answer."""
    try:
        lines = (folder / _SUMS).read_text().splitlines()
        sums = {name: digest for digest, name in map(str.split, lines)}
        absent = sorted(_NEEDED - sums.keys())
        if absent:
            raise InputError(f"{folder} is not a complete checkpoint (no sha256 of {', '.join(absent)}).")
        for name, expected in sums.items():
            if files.sha256(folder / name) != expected:
                raise InputError(f"{folder / name} is damaged (its sha256 differs from what was written).")
        content = json.loads((folder / _STATE).read_text())
        if run and content["state"].get("run", "") not in ("", run):
            raise InputError(f"{folder} is another run's.")
        return Checkpoint(folder, content["state"], content["best"], content["optimizer"])
    except InputError:
        raise
    except (*_NOT_THERE, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} is not a complete checkpoint ({error}).") from error
    except OSError as error:
        raise JobFailed(f"{folder} cannot be read now ({error}). Nothing was changed; try again.") from error


def _steps(root: Path) -> list[Path]:
    """Return the checkpoint folders, the newest first."""
    return sorted(root.glob("step_" + 8 * "[0-9]"), reverse=True)


def _point(link: Path, target: Path) -> None:
    """Let `link` name a checkpoint: a symbolic link, or a file with its name on disks without links (CIFS, exFAT)."""
    if link.is_dir() and not link.is_symlink():  # a copy tool followed the link
        _remove_copy(link)
    temporary = files.temporary_path(link)
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except OSError:
        files.write_bytes(link, f"{target.name}\n".encode())
        return
    os.replace(temporary, link)
    files.sync_folder(link.parent)


def _remove_copy(folder: Path) -> None:
    """Delete a second copy of a checkpoint; one that is the only copy is set aside."""
    sums = (folder / _SUMS).read_bytes() if (folder / _SUMS).is_file() else b""
    originals = [step / _SUMS for step in _steps(folder.parent)]
    if sums and any(path.is_file() and path.read_bytes() == sums for path in originals):
        shutil.rmtree(folder)
    else:
        _set_aside(folder)


def _flatten(state: dict) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors of an optimizer's state dict by `parameter.name`, and the rest for JSON."""
    tensors, plain = {}, {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{name}"] = value
            else:
                plain[f"{parameter}.{name}"] = value
    return tensors, {"plain": plain, "param_groups": state["param_groups"]}


def _unflatten(tensors: dict[str, Tensor], groups: dict, parameters: list[Tensor]) -> dict:
    state: dict[int, dict] = {}
    for key, value in {**tensors, **groups["plain"]}.items():
        index, name = key.split(".", 1)
        if isinstance(value, Tensor) and value.shape == parameters[int(index)].shape:
            # same strides as the parameter, or fused kernels would pair the wrong elements (channels_last)
            value = torch.empty_like(parameters[int(index)], dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups["param_groups"]}
