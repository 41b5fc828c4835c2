"""How do we compare with nnU-Net v2, trained its own way? `python -m benchmarks.nnunet`.

Its own 2d trainer (planned network, patch and batch, deep supervision, its augmentation in worker processes) on a
converted dataset, with its data loading and on one batch repeated, beside ours at the same patch and batch on the same
cases. The networks differ, so each line says the operations an image costs, counted, and the pixels, by a hook.
"""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.lib import roofline
from benchmarks.lib.harness import (
    A_RATIO,
    Ceiling,
    Variant,
    interleave,
    line,
    median,
    pick_device,
    record,
    rounds,
    settle,
)
from benchmarks.lib.training import Setup, Watch, build_ours
from benchmarks.peers import nnunet
from kits_dist import cli, phantom, prepare
from kits_dist.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data.store import Store
from kits_dist.distributed.runtime import start


@dataclass(frozen=True)
class Args:
    source: str = ""
    """Folder of cases; empty: phantoms, 16 of 32x512x512 on a GPU, else 8 of 16x96x96."""
    windows: int = 5
    """Timed windows a variant, at least 5."""
    window_s: float = 2.0
    """Seconds a window, roughly."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """Single steps: proves that it runs."""


def main(args: Args) -> None:
    def one(name: str, values: list[float], unit: str, ceiling: Ceiling, config: dict[str, Any], **options) -> None:
        record(line("nnunet", values, unit, ceiling, {"variant": name} | config, args, **options), args.out)

    try:
        nnunet_version = version("nnunetv2")
    except PackageNotFoundError:
        none = Ceiling("none", None, "not measured: the package is missing")
        one("nnunet", [], "images/s", none, {"failed": "nnunetv2 is not installed: pip install nnunetv2"})
        return
    device = pick_device()
    on_gpu = device.type == "cuda"
    warmup_steps, window_s = (1, 0.0) if args.quick else (8, args.window_s)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        place = Path(folder)
        source = Path(args.source or place / "raw")
        if not args.source:
            cases, size = (16, (32, 512, 512)) if on_gpu and not args.quick else (8, (16, 96, 96))
            phantom.main(phantom.Args(output=str(source), cases=cases, size=size, workers=0 if on_gpu else 1))
        prepare.main(prepare.Args(source=str(source), store=str(place / "store"), workers=0 if on_gpu else 1))
        with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
            nnunet.prepare(source, place / "nnunet")
            stack.enter_context(nnunet.at(place / "nnunet"))
            trainer = nnunet.open_trainer(place / "nnunet", device)
            batches, held_out = trainer.get_dataloaders()
        held_out._finish()
        stack.callback(batches._finish)
        patch, batch_size = tuple(trainer.configuration_manager.patch_size), trainer.batch_size
        fixed = next(batches)
        store = Store(place / "store")
        data = DataConfig(store=str(store.path), size_px=patch, batch_size=batch_size)
        network = ModelConfig(arch="unet", encoder="resnet34", encoder_weights="none", regions=tuple(nnunet.REGIONS))
        runtime = start(TrainConfig(), 1, place / "run", 0)
        ours = build_ours(Setup(runtime, store, data, AugmentConfig(), network, OptimConfig(), TrainConfig()))
        watches = {"nnunet": Watch(trainer.network), "kits_dist": Watch(ours.model)}
        steps = {
            "nnunet": lambda: trainer.train_step(next(batches)),
            "nnunet_without_loading": lambda: trainer.train_step(fixed),
            "kits_dist": lambda: ours.step(next(ours.batches), False),
        }
        timed = interleave(
            {name: Variant(step, after=settle) for name, step in steps.items()},
            device,
            windows=args.windows,
            window_s=window_s,
            warmup_steps=warmup_steps,
            lead_in=4,
        )
        models = {"nnunet": getattr(trainer.network, "_orig_mod", trainer.network), "kits_dist": ours.model}
        work = {}
        for name, model in models.items():
            (shape,) = watches[name].shapes
            gflop = roofline.forward_gflop(model, (1, *shape))
            work[name] = {"pixels_per_image": watches[name].pixels_per_image(), "forward_gflop": round(gflop, 3)}
        runtime.accelerator.end_training()
    rates = {name: timed[name].rates(batch_size) for name in steps}
    common = {
        "device": device.type,
        "nnunet": nnunet_version,
        "size_px": list(patch),
        "batch_size": batch_size,
        "data": store.meta["data"],
        "precision": runtime.precision.mode,
    }
    of_ours = {"model": {"arch": network.arch, "encoder": network.encoder}, "backend": data.backend}
    alone = Ceiling("none", None, "nnU-Net on one batch repeated: its own ceiling")
    ceiling = Ceiling("nnU-Net without data loading", median(rates["nnunet_without_loading"])[0])
    options = {"warmup_steps": warmup_steps}
    one(
        "nnunet_without_loading", rates["nnunet_without_loading"], "images/s", alone, common | work["nnunet"], **options
    )
    ratio = median(rounds(rates["nnunet"], rates["nnunet_without_loading"]))[0]
    one("nnunet", rates["nnunet"], "images/s", ceiling, common | work["nnunet"], ratio=ratio, answer=True, **options)
    none = Ceiling("none", None, "another network: see forward_gflop of both")
    one("kits_dist", rates["kits_dist"], "images/s", none, common | of_ours | work["kits_dist"], **options)
    times = rounds(rates["kits_dist"], rates["nnunet"])
    differ = {
        "different_work": f"forward GFLOP an image: {work['kits_dist']['forward_gflop']} ours, "
        f"{work['nnunet']['forward_gflop']} nnU-Net's"
    }
    one("kits_dist against nnunet", times, "times", A_RATIO, common | of_ours | differ, answer=True, **options)


if __name__ == "__main__":
    cli.run(main, Args)
