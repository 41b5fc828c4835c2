"""Optimiser step -> learning rate: a pure function; resuming needs nothing and no launcher can step it twice."""

import math

from kits_dist.config import OptimConfig


def lr_at(taken: int, seen: int, total_steps: int, config: OptimConfig, world: int = 1) -> float:
    """Rate for the next optimiser step.

    taken               steps before it: warm-up counts them
    seen, total_steps   samples before it and in the whole run, in steps of the global batch of now: the shape that
                        follows counts these. `seen` is `taken` unless the run went on with another global batch, and
                        then neither does warm-up begin again, nor does the shape jump or end too soon.
    world               processes, for `scale_lr`
    """
    peak = config.lr * {"none": 1.0, "linear": float(world), "sqrt": math.sqrt(world)}[config.scale_lr]
    if taken < config.warmup_steps:
        return peak * (taken + 1) / config.warmup_steps
    done = max(0, seen - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return peak * SHAPES[config.schedule](min(1.0, done))


SHAPES = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "poly": lambda done: (1 - done) ** 0.9,  # nnU-Net's exponent
}
