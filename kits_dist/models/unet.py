"""The simple 5-level U-Net of the poster's first row (Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28)."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class SimpleUNet(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H, W) logits; H and W are multiples of 16.

    Five levels of two 3x3 convolutions, each with batch norm and ReLU; the first level has `width` channels, each
    further one twice as many. With the same seed the network is the same for any `in_channels`: if all channels hold
    one slice, the output is that of the slice alone.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int):
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in pairwise([1, *widths]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(_double_conv(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, out_channels, 1)

        first = self.down[0].get_submodule("0")
        assert isinstance(first, nn.Conv2d)
        _spread_input(first, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        for level in reversed(range(4)):
            x = self.merge[level](torch.cat([skips[level], self.up[level](x)], dim=1))
        return self.head(x)


def _spread_input(conv: nn.Conv2d, channels: int) -> None:
    """Turn a convolution of one channel into one of several, in place, by spreading its weights evenly over them.

    `encoders.fit_input_channels` does the same to pretrained weights.
    """
    conv.weight = nn.Parameter(conv.weight.detach().expand(-1, channels, -1, -1) / channels)
    conv.in_channels = channels


def _double_conv(a: int, b: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner in (a, b):
        layers += [nn.Conv2d(inner, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
