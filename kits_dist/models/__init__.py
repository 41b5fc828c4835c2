"""Build the network that the configuration names: (B, C, H, W) images -> (B, R, H, W) region logits.

A network of your own: add it to ARCHITECTURES; model.arch=NAME then chooses it.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from kits_dist.config import ModelConfig
from kits_dist.models.unet import SimpleUNet
from kits_dist.utils.errors import InputError

# {model.arch: (configuration, input channels) -> network}; every other name is one of segmentation_models_pytorch
ARCHITECTURES: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "simple_unet": lambda config, in_channels: SimpleUNet(in_channels, len(config.regions), config.width),
}


def build_model(config: ModelConfig, in_channels: int, *, pretrained: bool = True) -> nn.Module:
    """Build the network on the CPU in float32.

    in_channels   1 + 2 * data.context slices
    pretrained    False: leave out the encoder weights, where a checkpoint will overwrite them
    With simple_unet and with pretrained encoder weights, channels that hold the same slice give the output of that
    slice alone; the random weights of other encoders are drawn independently for each channel.
    Raises InputError for an unknown architecture or encoder, and what `load_encoder_weights` raises.
    """
    model = ARCHITECTURES.get(config.arch, _smp_model)(config, in_channels)
    if config.prior != 0.5:
        set_prior(model, config.prior)
    if pretrained and config.arch not in ARCHITECTURES and config.encoder_weights != "none":
        from kits_dist.models.encoders import load_encoder_weights

        encoder = model.encoder
        assert isinstance(encoder, nn.Module)
        load_encoder_weights(encoder, config.encoder, config.encoder_weights)
    return model


def set_prior(model: nn.Module, prior: float) -> None:
    """Set the bias of the last convolution so that an untrained network predicts about this probability everywhere.

    Most pixels are background: from 0.5 the first steps push all features down to reach it, and those of a narrow
    network may never be active again (Lin et al. 2017, doi:10.1109/ICCV.2017.324, section 4.1; benchmarks/NOTES.md).
    """
    head = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    assert head.bias is not None
    nn.init.constant_(head.bias, math.log(prior / (1 - prior)))


def _smp_model(config: ModelConfig, in_channels: int) -> nn.Module:
    """Build a network of segmentation_models_pytorch with a random encoder."""
    import segmentation_models_pytorch as smp  # takes seconds

    architectures = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    if config.arch not in architectures:
        raise InputError(f"model.arch={config.arch!r}: choose one of {', '.join([*ARCHITECTURES, *architectures])}.")
    encoder, channels = _encoder_and_channels(config)
    classes = len(config.regions)
    try:
        return smp.create_model(
            config.arch, encoder, encoder_weights=None, in_channels=in_channels, classes=classes, **channels
        )
    except KeyError as error:
        known = ", ".join(sorted(smp.encoders.get_encoder_names()))
        raise InputError(f"model.encoder={config.encoder!r}: choose one of {known}.") from error


def _encoder_and_channels(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Return the encoder's name and the channels of a narrower network; timm's ResNets take them, smp's do not."""
    width = config.width
    if width == 64:
        return config.encoder, {}
    if config.arch != "unet" or not config.encoder.startswith("resnet") or config.encoder_weights != "none":
        raise InputError(
            f"model.width={width}: only simple_unet, and a unet with a resnet encoder and model.encoder_weights=none, "
            "have other widths than 64."
        )
    channels = tuple(width * 2**level for level in range(4))
    # with fewer than 16 channels, the last levels may become inactive altogether
    decoder_channels = tuple(max(16, width * 4 // 2**level) for level in range(5))
    return f"tu-{config.encoder}", {"channels": channels, "decoder_channels": decoder_channels}
