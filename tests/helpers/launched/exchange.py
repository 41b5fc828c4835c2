"""Run by test_communication: train on the same batches with each variant of exchanging gradients.

python -m tests.helpers.launched.exchange OUTPUT

Rank R writes OUTPUT/rank_R.safetensors:
VARIANT.weights       after three steps
VARIANT.gradient      of one batch at the initial weights
VARIANT.accumulated   weights after three clipped steps of two batches each
VARIANT.resumed       weights after two steps, a checkpoint and one more step
alone.gradient        of this rank, before any exchange
parts, whole          weights after three steps with frozen batch norm, of two batches each or of one twice as large
OUTPUT/variants.json holds the logging data of DDP for each variant.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kits_dist.config import ModelConfig, OptimConfig, TrainConfig
from kits_dist.data.batch import Batch
from kits_dist.distributed.runtime import Runtime, ddp_settings, start
from kits_dist.models import build_model
from kits_dist.training import checkpoint
from kits_dist.training.step_timer import StepTimer
from kits_dist.training.train_step import TrainStep
from kits_dist.utils import files

VARIANTS = {
    "default": {},
    "static": {"static_graph": True},
    "bucket_1": {"bucket_mb": 1},
    "bucket_100": {"bucket_mb": 100},
    "bf16": {"gradients": "bf16"},
    "all": {"gradients": "bf16", "static_graph": True, "bucket_mb": 1},
}
NETWORK = ModelConfig("simple_unet", width=8)  # 1.9 MB of gradients: two buckets of 1 MB
SGD, CLIPPED = OptimConfig(name="sgd"), OptimConfig(name="sgd", accumulate=2, clip_norm=0.05)


def main(output: Path) -> None:
    variants = {name: TrainConfig(precision="fp32", **options) for name, options in VARIANTS.items()}
    runtime = start(variants["all"], 1, output, seed=0)
    assert runtime.accelerator.ddp_handler == ddp_settings(variants["all"])
    rank, found, said = runtime.ranks.rank, {}, {}
    for name, train in variants.items():
        train_step = train_step_of(runtime, train)
        said[name] = train_step.model._get_ddp_logging_data()
        found[f"{name}.gradient"] = gradient(train_step, rank)
        found[f"{name}.weights"] = weights(train_step_of(runtime, train), rank)
    for name in ("default", "bf16"):
        found[f"{name}.accumulated"] = weights(train_step_of(runtime, variants[name], CLIPPED), rank)
    for name in ("default", "all"):
        found[f"{name}.resumed"] = resumed(runtime, variants[name], output / name)
    for name, optim, size in (("parts", replace(SGD, accumulate=2), 2), ("whole", SGD, 4)):
        still = train_step_of(runtime, variants["default"], optim)
        still.model.eval()
        found[name] = weights(still, rank, size=size)
    quiet = train_step_of(runtime, variants["default"])
    with quiet.accelerator.no_sync(quiet.model):
        found["alone.gradient"] = gradient(quiet, rank)
    save_file(found, output / f"rank_{rank}.safetensors")
    if rank == 0:
        files.write_json(output / "variants.json", said)
    runtime.accelerator.end_training()


def train_step_of(
    runtime: Runtime, train: TrainConfig, optim: OptimConfig = SGD, found: checkpoint.Checkpoint | None = None
) -> TrainStep:
    runtime.accelerator.ddp_handler = ddp_settings(train)
    torch.manual_seed(0)
    model = build_model(NETWORK, 1).to(runtime.device)
    train_step = TrainStep(model, NETWORK.regions, optim, runtime.accelerator)
    if found:
        train_step.restore(found, 0.0)
    train_step.wrap(train)
    train_step.model.train()
    return train_step


def batches(rank: int, device: torch.device, size: int = 2) -> Iterator[Batch]:
    """Whatever the size, the same images in the same order."""
    generator, zeros = torch.Generator().manual_seed(rank), torch.zeros(size, dtype=torch.int32, device=device)
    while True:
        image = torch.cat([torch.randn(2, 1, 32, 32, generator=generator) for _ in range(size // 2)])
        yield Batch(image.to(device), (image[:, 0] > 0).byte().to(device), zeros, zeros, zeros)


def gradient(train_step: TrainStep, rank: int) -> Tensor:
    """(n,) float32 of this rank's first batch, exchanged if the train step does."""
    batch = next(batches(rank, train_step.accelerator.device))
    train_step.accelerator.backward(train_step.loss_fn.global_value(train_step.model(batch.image, batch.label)))
    return torch.cat([p.grad.flatten() for p in train_step.plain_model.parameters()]).cpu()


def weights(train_step: TrainStep, rank: int, first: int = 0, last: int = 3, size: int = 2) -> Tensor:
    """(n,) float32 after steps first .. last - 1 on batches of `size`."""
    device = train_step.accelerator.device
    stream = itertools.islice(batches(rank, device, size), first, None)
    for step in range(first, last):
        train_step(stream, 0.1, step, StepTimer(device))
    return torch.cat([p.detach().flatten() for p in train_step.plain_model.parameters()]).cpu()


def resumed(runtime: Runtime, train: TrainConfig, folder: Path) -> Tensor:
    rank, begun = runtime.ranks.rank, train_step_of(runtime, train)
    weights(begun, rank, last=2)
    if rank == 0:
        model, optimizer = begun.plain_model, begun.plain_optimizer
        checkpoint.save(folder, checkpoint.contents_of(2, model, optimizer, begun.state(), best=True), keep=1)
    runtime.accelerator.wait_for_everyone()
    found, _ = checkpoint.find(folder)
    return weights(train_step_of(runtime, train, found=found), rank, first=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
