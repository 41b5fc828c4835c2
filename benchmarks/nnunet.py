"""How do we compare with nnU-Net v2, trained with its own trainer? `python -m benchmarks.nnunet`.

Its 2d trainer (planned network, patch and batch, deep supervision, its augmentation in worker processes) on a converted
data set, with its data loading and on one batch repeated, and ours at the same patch and batch on the same cases. The
networks differ, so each line holds the counted operations and the pixels of an image.
"""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.lib.arguments import TimedArgs
from benchmarks.lib.harness import Candidate, interleave, pick_device, settle
from benchmarks.lib.lines import A_RATIO, Baseline, Recorder, no_ceiling, rounds
from benchmarks.lib.training import Setup, Watch, build_ours
from benchmarks.peers import nnunet
from kits_dist import cli, phantom, prepare
from kits_dist.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from kits_dist.data.store import Store
from kits_dist.distributed.runtime import start


@dataclass(frozen=True)
class Args(TimedArgs):
    """Arguments of the program."""

    source: str = ""
    """Folder of cases; empty: phantoms, 16 of 32x512x512 on a GPU, else 8 of 16x96x96."""


def main(args: Args) -> None:
    """Time both trainers in turns, and write their lines."""
    recorder = Recorder("nnunet", args, {})
    try:
        nnunet_version = version("nnunetv2")
    except PackageNotFoundError:
        failed = {"failed": "nnunetv2 is not installed: pip install nnunetv2"}
        recorder.write("nnunet", [], no_ceiling("not measured: the package is missing"), failed)
        return
    device = pick_device()
    workers = 0 if device.type == "cuda" else 1
    timing = args.timing(warmup_steps=8)

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        place = Path(folder)
        source = Path(args.source or place / "raw")
        if not args.source:
            tiny = (8, (16, 96, 96))
            cases, size = args.default(gpu=(16, (32, 512, 512)), cpu=tiny, quick=tiny)
            phantom.main(phantom.Args(output=str(source), cases=cases, size=size, workers=workers))
        prepare.main(prepare.Args(source=str(source), store=str(place / "store"), workers=workers))
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
        watches = {"kits_dist": Watch(ours.model)}
        watches["nnunet"] = Watch(getattr(trainer.network, "_orig_mod", trainer.network))  # the one that was compiled
        steps = {
            "nnunet": lambda: trainer.train_step(next(batches)),
            "nnunet_without_loading": lambda: trainer.train_step(fixed),
            "kits_dist": lambda: ours.step(next(ours.batches), False),
        }
        candidates = {name: Candidate(step, after=settle) for name, step in steps.items()}
        timed = interleave(candidates, device, lead_in=4, **timing)
        work = {name: watch.work_per_image() for name, watch in watches.items()}
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
    recorder = Recorder("nnunet", args, common, warmup_steps=timing["warmup_steps"])
    name = "nnunet_without_loading"
    recorder.write(name, rates[name], no_ceiling("nnU-Net on one batch repeated: its own ceiling"), work["nnunet"])
    ceiling = Baseline("nnU-Net without data loading", rates[name])
    recorder.write("nnunet", rates["nnunet"], ceiling, work["nnunet"], answer=True)
    config = {"model": {"arch": network.arch, "encoder": network.encoder}, "backend": data.backend}
    ceiling = no_ceiling("another network: see forward_gflop of both")
    recorder.write("kits_dist", rates["kits_dist"], ceiling, config | work["kits_dist"])
    gflop = {name: one["forward_gflop"] for name, one in work.items()}
    config["different_work"] = f"forward GFLOP an image: {gflop['kits_dist']} ours, {gflop['nnunet']} nnU-Net's"
    times = rounds(rates["kits_dist"], rates["nnunet"])
    recorder.write("kits_dist against nnunet", times, A_RATIO, config, unit="times", answer=True)


if __name__ == "__main__":
    cli.run(main, Args)
