"""Read and write weights as safetensors files, which cannot run code when they are loaded.

RUN/model.safetensors is the export of a run's best weights. Its metadata holds, under the key `kits_dist`, all that
prediction needs besides the tensors, as JSON: the configuration, the HU window, mean and sd of the training voxels, the
optimizer step, the kind of data, the sha256 of each training CT's voxels, and the sha256 of the weights themselves.
`training.run_folder` writes it; `inference.region_models` reads it. Checkpoints use the plain tensor functions.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn

from kits_dist.utils import files
from kits_dist.utils.errors import InputError

_DTYPES = {  # names in the file
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def export(path: Path, weights: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write the state dict of a network for prediction, with what it expects of its input in `metadata`."""
    write_tensors(path, weights, {"kits_dist": json.dumps(metadata | {"weights_sha256": _sha256(weights)})})


def read_export(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the (weights, metadata) of an exported file.

    Raises MissingInput where there is none, InputError for a damaged file or one that `export` did not write.
    """
    files.require_export(path)
    weights = read_tensors(path)
    try:
        metadata = json.loads(_header(path).get("__metadata__", {})["kits_dist"])
        expected = metadata.pop("weights_sha256")
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not weights exported by kits_dist (no {error}).") from error
    if _sha256(weights) != expected:
        raise InputError(f"{path} is damaged (its weights' sha256 differs from what was written). Copy it again.")
    return weights, metadata


def load_weights(model: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Load a state dict into `model`. Raises InputError naming `source`, the file it is from, where it does not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{source}: weights of another model: {str(error).splitlines()[1].strip()}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU. Raises InputError where it is damaged or not readable."""
    try:
        try:
            return load_file(path)
        except (SafetensorError, OSError):  # perhaps a path that is not UTF-8, or a disk that cannot map files
            return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file, or not readable ({error}).") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write a safetensors file in one step. Returns its SHA-256. Raises OSError where the disk is full."""
    # with our own writer: safetensors' `save_file` reports a full disk as an error of the format, and holds Python's
    # lock, which a training that goes on meanwhile needs
    return files.write_hashed(path, _safetensors(tensors, metadata))


def _header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: its length in 8 bytes, then JSON."""
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def _safetensors(tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file (its README defines the format), the same as the library's."""
    ranks = list(_DTYPES)  # the library's order, so that each tensor is aligned
    names = sorted(tensors, key=lambda name: (ranks.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        dtype, shape = _DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield _content(tensors[name])


def _sha256(tensors: dict[str, Tensor]) -> str:
    """Hash names and values, whatever their order in memory."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(_content(tensors[name]))
    return total.hexdigest()


def _content(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in the order of its indices, without a copy where that is how it lies in memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
