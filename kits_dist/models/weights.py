"""Weights in files: tensors as safetensors, and the one file that prediction reads.

RUN/model.safetensors holds the best weights, and in its metadata all that prediction needs to know beside them.
"""

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput


def export(path: Path, model: nn.Module, about: dict) -> None:
    """Weights for prediction, in one file that says what they expect (`about`: configuration, window, mean and sd)."""
    weights = model.state_dict()
    write_tensors(path, weights, {"kits_dist": json.dumps(about | {"weights_sha256": _digest(weights)})})


def read_export(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(weights, about) of an exported file. Raises MissingInput or InputError."""
    if not path.is_file():
        raise MissingInput(
            f"{path}: no such file. It is written at a run's first validation; is this the run's folder?"
        )
    weights = read_tensors(path)
    try:
        with safe_open(path, "pt") as opened:
            about = json.loads((opened.metadata() or {})["kits_dist"])
        expected = about.pop("weights_sha256")
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not weights exported by kits_dist (no {error}).") from error
    if _digest(weights) != expected:
        raise InputError(f"{path} is damaged (its weights' sha256 differs from what was written). Copy it again.")
    return weights, about


def _digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names and values, whatever their order in memory."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def load_weights(model: nn.Module, state: dict[str, Tensor], origin: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{origin}: weights of another model: {str(error).splitlines()[1].strip()}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file, or not readable ({error}).") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    # by our own writer: safetensors' `save_file` reports a full disk as an error of the format
    content = safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()}, metadata)
    files.write_bytes(path, content)
