"""The simple 5-level U-Net of the poster's first row (Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28)."""

import torch
from torch import Tensor, nn


class SimpleUNet(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H, W) logits; H and W multiples of 16.

    Five levels of two 3x3 convolutions, each with batch norm and ReLU; `width` channels at the first level, doubled
    at each. One seed, one first network whatever `in_channels`: identical neighbours answer as one slice does.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int):
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([1, *widths], widths, strict=False))
        _spread(self.down[0][0], in_channels)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in zip(widths, widths[1:], strict=False))
        self.merge = nn.ModuleList(_double(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        for level in reversed(range(4)):
            x = self.merge[level](torch.cat([skips[level], self.up[level](x)], dim=1))
        return self.head(x)


def _spread(first: nn.Conv2d, channels: int) -> None:
    """A convolution of one channel -> one of several, in place, its weights spread evenly over them.

    What `encoders.fit_input_channels` does to pretrained weights.
    """
    first.weight = nn.Parameter(first.weight.detach().expand(-1, channels, -1, -1) / channels)
    first.in_channels = channels


def _double(a: int, b: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner in (a, b):
        layers += [nn.Conv2d(inner, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
