"""Names in the configuration -> networks that map (B, C, H, W) images to (B, R, H, W) region logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from kits_dist.config import ModelConfig


def build_model(config: ModelConfig, in_channels: int, *, pretrained: bool = True) -> nn.Module:
    """The network, on the CPU in float32. pretrained=False skips the encoder weights (a checkpoint will overwrite
    them).

    Channels that hold the same slice answer as that slice alone does, for simple_unet and with pretrained encoder
    weights; the random weights of an encoder without any are left as smp draws them, one set a channel.
    Raises InputError for an unknown architecture or encoder, and what `load_encoder_weights` raises.
    """
    model = _network(config, in_channels)
    if config.prior != 0.5:
        start_at(model, config.prior)
    if pretrained and config.arch != "simple_unet" and config.encoder_weights != "none":
        from kits_dist.models.encoders import load_encoder_weights

        load_encoder_weights(model.encoder, config.encoder, config.encoder_weights)
    return model


def start_at(model: nn.Module, prior: float) -> None:
    """Set the head's bias so that an untrained network gives every pixel about this probability, in place.

    Most pixels are background: from 0.5 the first steps push all features down to get there, and those of a narrow
    network may never fire again (Lin et al. 2017, doi:10.1109/ICCV.2017.324, section 4.1; ours: benchmarks/NOTES.md).
    """
    import math

    from torch import nn

    head = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.constant_(head.bias, math.log(prior / (1 - prior)))


def _network(config: ModelConfig, in_channels: int) -> nn.Module:
    from kits_dist.models.unet import SimpleUNet

    if config.arch == "simple_unet":
        return SimpleUNet(in_channels, len(config.regions), config.width)

    import segmentation_models_pytorch as smp

    from kits_dist.utils.errors import InputError

    architectures = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    if config.arch not in architectures:
        raise InputError(f"model.arch={config.arch!r}: choose one of simple_unet, {', '.join(architectures)}.")
    encoder, narrower = _narrowed(config)
    try:
        return smp.create_model(
            config.arch,
            encoder,
            encoder_weights=None,
            in_channels=in_channels,
            classes=len(config.regions),
            **narrower,
        )
    except KeyError as error:
        known = ", ".join(sorted(smp.encoders.get_encoder_names()))
        raise InputError(f"model.encoder={config.encoder!r}: choose one of {known}.") from error


def _narrowed(config: ModelConfig) -> tuple[str, dict]:
    """The encoder's name and what makes it and the decoder narrower: timm's ResNet takes channels, smp's does not."""
    from kits_dist.utils.errors import InputError

    width = config.width
    if width == 64:
        return config.encoder, {}
    if config.arch != "unet" or not config.encoder.startswith("resnet") or config.encoder_weights != "none":
        raise InputError(
            f"model.width={width}: only simple_unet, and a unet with a resnet encoder and model.encoder_weights=none, "
            "come in other widths than 64."
        )
    channels = tuple(width * 2**level for level in range(4))
    decoder = tuple(max(16, width * 4 // 2**level) for level in range(5))  # of fewer, the last ones may all fall silent
    return f"tu-{config.encoder}", {"channels": channels, "decoder_channels": decoder}
