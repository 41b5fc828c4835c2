"""Averaged weights: an exponential moving average of the network, evaluated and exported in its place (`optim.ema`)."""

import copy

import torch
from torch import nn


class AveragedModel:
    """A copy of a network that moves toward it by 1 - min(decay, (1 + t) / (10 + t)) after step t.

    The ramp is that of TensorFlow's ExponentialMovingAverage: the average soon forgets the initial weights. Batch norm
    statistics are averaged like weights, counters are copied. Each rank keeps its own copy; they stay equal because DDP
    keeps the weights equal.
    """

    def __init__(self, source: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(source).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        """Follow `source`, the unwrapped network after optimizer step `step`, counted from 0."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        mine = self.model.state_dict()
        theirs = source.state_dict()
        moving = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [mine[name] for name in moving], [theirs[name] for name in moving], share
        )
        for name in mine.keys() - set(moving):
            mine[name].copy_(theirs[name])
