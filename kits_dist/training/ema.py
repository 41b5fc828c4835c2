"""Averaged weights: an exponential moving average of a network, judged and kept in its place (`optim.ema`)."""

import copy

import torch
from torch import nn


class AveragedModel:
    """`model` follows another network: after step t by a share of 1 - min(decay, (1 + t) / (10 + t)).

    The ramp, TensorFlow's, lets the first steps count little. Statistics of batch norm are averaged as the weights are;
    counters are copied. Every rank holds its own and comes to the same, since DDP keeps their weights equal.
    """

    def __init__(self, source: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(source).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        """source: the network after optimiser step `step`, counted from 0; the unwrapped one."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.model.state_dict(), source.state_dict()
        moving = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in moving], [theirs[name] for name in moving], share)
        for name in mine.keys() - set(moving):
            mine[name].copy_(theirs[name])
