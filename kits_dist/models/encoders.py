"""Pretrained encoder weights: imagenet (downloaded once), none, or a file. Files that can run code are refused."""

import pickle
import urllib.error
import urllib.request
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kits_dist.utils.errors import InputError, MissingInput

# a hub that does not answer in this time counts as out of reach: fail in seconds, not after many retries
REACH_TIMEOUT_S = 3


def load_encoder_weights(encoder: nn.Module, name: str, weights: str) -> None:
    """Load pretrained weights into an encoder of segmentation_models_pytorch, in place.

    name      the encoder's name, model.encoder
    weights   imagenet, or the path of a state dict
    Raises MissingInput when the file is missing or the hub is out of reach, InputError for a file that does not fit.
    """
    path = _imagenet_file(name) if weights == "imagenet" else Path(weights)
    # torchvision's files hold the classifier too, which a segmentation encoder does not have
    state = {
        key.removeprefix("encoder."): value
        for key, value in _read(path).items()
        if not key.startswith(("fc.", "last_linear."))
    }
    expected = encoder.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        raise InputError(
            f"model.encoder_weights={weights}: not the weights of {name}. First missing key: "
            f"{missing[0] if missing else 'none'}; first unexpected key: {unexpected[0] if unexpected else 'none'}."
        )

    first_conv = next((key for key, value in expected.items() if value.ndim == 4), None)
    for key, value in state.items():
        shape = expected[key].shape
        if value.shape == shape:
            continue
        fits = key == first_conv and value.ndim == 4 and value.shape[0] == shape[0] and value.shape[2:] == shape[2:]
        if not fits:
            raise InputError(
                f"model.encoder_weights={weights}: {key} has shape {tuple(value.shape)}, but this model expects "
                f"{tuple(shape)}."
            )
        state[key] = fit_input_channels(value, shape)
    encoder.load_state_dict(state, strict=False)


def fit_input_channels(weight: Tensor, shape: torch.Size) -> Tensor:
    """Convert the first convolution from RGB to C slices: (O, 3, k, k) -> (O, C, k, k), summed, then spread evenly.

    A gray image then gives the output that it gave as RGB, and C identical slices the output of one.
    """
    return weight.sum(dim=1, keepdim=True).expand(shape) / shape[1]


def _imagenet_file(name: str) -> Path:
    """Return the path of the hub's file for this encoder; download it the first time."""
    import segmentation_models_pytorch as smp
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    settings = smp.encoders.encoders.get(name, {}).get("pretrained_settings", {}).get("imagenet")
    if settings is None:
        raise InputError(
            f"model.encoder_weights=imagenet: there are none for {name}. Use model.encoder_weights=none or a path."
        )
    location = {"repo_id": settings["repo_id"], "filename": "model.safetensors", "revision": settings["revision"]}
    cached = try_to_load_from_cache(**location)
    if isinstance(cached, str):
        return Path(cached)
    url = f"{constants.ENDPOINT}/{location['repo_id']}/resolve/{location['revision']}/model.safetensors"
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_TIMEOUT_S).close()
        return Path(hf_hub_download(**location))
    except (OSError, urllib.error.URLError) as error:
        raise MissingInput(
            f"model.encoder_weights=imagenet: cannot reach the weights ({error}). On a machine with internet access "
            f"download {url}, copy the file here, and pass model.encoder_weights=PATH; or train from "
            "scratch: model.encoder_weights=none"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise MissingInput(
            f"model.encoder_weights={path}: no such file. Use imagenet, none, or the path of a state dict."
        )
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"model.encoder_weights={path}: not a safetensors file: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        what = f"{type(error).__name__}, or it holds more than tensors"  # torch's own advice is to load it unsafely
        raise InputError(f"model.encoder_weights={path}: not a readable state dict ({what}).") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"model.encoder_weights={path}: holds no plain state dict of tensors.")
    return state
