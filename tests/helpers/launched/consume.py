"""Run by test_end_to_end: record what each rank consumes, how it scores a fixed network, and what it learns.

python -m tests.helpers.launched.consume STORE OUTPUT

Rank R writes OUTPUT/rank_R.json and, for each loss, OUTPUT/rank_R_LOSS.safetensors.
"""

import itertools
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from kits_dist.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data.loaders import build_train_loader, build_val_loader
from kits_dist.data.store import Store
from kits_dist.distributed.runtime import start
from kits_dist.models import build_model
from kits_dist.training.losses import RegionLoss
from kits_dist.training.lr_schedule import lr_at
from kits_dist.training.step_timer import StepTimer
from kits_dist.training.train_step import TrainStep, place_model
from kits_dist.training.validation import validate

REGIONS = ("kidney_and_mass", "tumor")


def main(store_path: str, output: str) -> None:
    store = Store(store_path)
    runtime = start(TrainConfig(precision="fp32"), 1, Path(output), seed=0)
    data = DataConfig(store=store_path, batch_size=3, size_px=(64, 64), threads=1, fold="all")
    loader, dataset = build_train_loader(
        store, data, AugmentConfig(), 0, runtime.ranks, device=runtime.device, dtype=runtime.image_dtype
    )
    steps = -(-len(dataset.rows) // (3 * runtime.ranks.world))
    seen = [
        pair
        for batch in itertools.islice(iter(loader), steps)
        for pair in zip(batch.case.tolist(), batch.index.tolist(), strict=True)
    ]
    cases = [case.case_id for case in store.cases]
    torch.manual_seed(0)
    model = build_model(ModelConfig("simple_unet", width=2, regions=REGIONS, prior=0.5), 1).to(runtime.device)
    if runtime.ranks.rank:  # batch norm statistics that differ from those of rank 0 must not matter
        for buffer in model.buffers():
            buffer.add_(1)
    val_loader, val_dataset = build_val_loader(
        store, data, cases, runtime.ranks, device=runtime.device, dtype=runtime.image_dtype
    )
    loss = RegionLoss("bce", REGIONS).to(runtime.device)
    rows = [store.row[case] for case in cases]
    result = validate(model, loss, val_loader, rows, len(val_dataset.rows), runtime.accelerator)
    content = {
        "world": runtime.ranks.world,
        "seen": seen,
        "samples": len(dataset.rows),
        "scored": len(val_dataset.rows),
        "loss": result.loss,
        "counts": result.counts.tolist(),
    }
    (Path(output) / f"rank_{runtime.ranks.rank}.json").write_text(json.dumps(content))
    for name in ("bce", "bce_dice"):
        weights = learned_weights(store, runtime, name)
        save_file(weights, Path(output) / f"rank_{runtime.ranks.rank}_{name}.safetensors")
    runtime.accelerator.end_training()


def learned_weights(store: Store, runtime, loss: str) -> dict[str, torch.Tensor]:
    """Return the weights after three steps of six slices with clipping, a schedule and averaged weights.

    Batch norm is frozen on a CPU, and synchronized over ranks on GPUs.
    """
    world = runtime.ranks.world
    optim = OptimConfig(name="sgd", lr=0.1, loss=loss, clip_norm=0.5, ema=0.5, schedule="cosine", pos_weight=(1.0, 3.0))
    data = DataConfig(store=str(store.path), batch_size=6 // world, size_px=(64, 64), threads=1, fold="all")
    torch.manual_seed(0)
    on_gpu = runtime.device.type == "cuda"
    config = TrainConfig(sync_bn=on_gpu and world > 1)
    network = ModelConfig("simple_unet", width=2, regions=REGIONS, prior=0.5)
    model = place_model(build_model(network, 1), config, runtime.device)
    train_step = TrainStep(model, REGIONS, optim, runtime.accelerator)
    train_step.wrap(config)
    train_step.model.train(on_gpu)
    stream = iter(
        build_train_loader(
            store, data, AugmentConfig(), 0, runtime.ranks, device=runtime.device, dtype=runtime.image_dtype
        )[0]
    )
    for step in range(3):
        train_step(stream, lr_at(step, step, 3, optim), step, StepTimer(runtime.accelerator.device))
    weights = train_step.plain_model.state_dict() | {
        f"average.{k}": v for k, v in train_step.eval_model.state_dict().items()
    }
    return {name: value.cpu().contiguous() for name, value in weights.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
