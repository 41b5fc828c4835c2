"""The learning rate as a pure function of the step: nothing to save, and no launcher can advance it twice."""

import math

from kits_dist.config import OptimConfig


def lr_at(taken: int, seen: int, total_steps: int, config: OptimConfig, world: int = 1) -> float:
    """Return the learning rate of the next optimizer step.

    taken               optimizer steps before it; the warm-up counts these
    seen, total_steps   samples before it and in the whole run, in units of the present global batch; the schedule after
                        the warm-up counts these. Both counts agree unless the run was resumed with another global
                        batch: then the warm-up does not start again and the schedule neither jumps nor ends too soon.
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
