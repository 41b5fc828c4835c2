"""Optimiser step -> learning rate: a pure function; resuming needs nothing and no launcher can step it twice."""

import math

from kits_dist.config import OptimConfig


def lr_at(step: int, total_steps: int, config: OptimConfig, world: int = 1) -> float:
    """Rate for optimiser step `step` of `total_steps`, both counted from 0; `world` processes for `scale_lr`."""
    peak = config.lr * {"none": 1.0, "linear": float(world), "sqrt": math.sqrt(world)}[config.scale_lr]
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return peak * SHAPES[config.schedule](done)


SHAPES = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "poly": lambda done: (1 - done) ** 0.9,  # nnU-Net's exponent
}
