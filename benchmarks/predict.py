"""How many CT volumes a minute does a model segment, how much of it in the network? `python -m benchmarks.predict`.

`Predictor.predict` on one scan after another, from HU in memory to labels in memory: plainly, with mirrored slices,
compiled, on a GPU also in TF32; and with reading the NIfTI file and writing the label map, as kits_dist.predict does
it. The ceiling of each is its own network alone on as many slices in batches of the same size, already on the device.
Weights are random: speed does not depend on them.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.lib import roofline
from benchmarks.lib.harness import (
    Ceiling,
    Variant,
    interleave,
    line,
    make_store,
    median,
    pick_device,
    plain,
    record,
    rounds,
)
from kits_dist import cli
from kits_dist.config import Config, DataConfig, ModelConfig, PrecisionName
from kits_dist.imaging.nifti import Volume, read_image, write_nifti
from kits_dist.inference.predictor import Predictor
from kits_dist.inference.region_models import RunModel, Tta
from kits_dist.models import build_model
from kits_dist.training.run_folder import export_best


@dataclass(frozen=True)
class Args:
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the network's window; 0x0: 512x512 on a GPU, else 128x128."""
    batch_size: int = 16
    """Slices at once, as kits_dist.predict has it."""
    slices: int = 0
    """Of a volume; 0: 64 on a GPU, 24 without."""
    arch: str = ""
    """As model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 12 without."""
    windows: int = 5
    """Timed windows a variant, at least 5."""
    window_s: float = 2.0
    """Seconds a window, roughly."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """Tiny volumes: proves that it runs."""


class Way(NamedTuple):
    """How a scan is predicted, as kits_dist.predict's arguments of these names say."""

    tta: Tta = "none"
    precision: PrecisionName = "auto"
    compiled: bool = False
    files: bool = False  # from file to file

    @property
    def network(self) -> str:
        """The row of this way's network alone."""
        words = ["network", self.precision.replace("auto", ""), "compiled" * self.compiled]
        return "_".join(filter(None, words))


WAYS = {
    "predict": Way(),
    "flip": Way(tta="flip"),
    "compiled": Way(compiled=True),
    "tf32": Way(precision="tf32"),
    "file_to_file": Way(files=True),
}


def main(args: Args) -> None:
    device = pick_device()
    on_gpu = device.type == "cuda"
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (128, 128)
    slices = args.slices or (8 if args.quick else 64 if on_gpu else 24)
    arch = args.arch or ("unet" if on_gpu and not args.quick else "simple_unet")
    width = {"simple_unet": 4 if args.quick else 12}.get(arch, 64)
    network = ModelConfig(arch=arch, encoder_weights="none", width=width)
    warmup_steps, window_s = (1, 0.0) if args.quick else (2, args.window_s)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        store = make_store(place, 3, (slices, *size))
        data = DataConfig(store=str(store.path), size_px=size)
        config = Config(run=str(place / "run"), data=data, model=network)
        (place / "run").mkdir()
        torch.manual_seed(0)
        export_best(config, store, 0, build_model(network, 1, pretrained=False))
        scans = sorted((place / "raw").glob("*/imaging.nii.gz"))
        volumes = itertools.cycle([read_image(path) for path in scans])
        paths = itertools.cycle(scans)
        ways = {name: way for name, way in WAYS.items() if on_gpu or way.precision == "auto"}
        if args.quick:
            ways = {name: way for name, way in ways.items() if not way.compiled}  # a minute of compiling proves little
        runs, networks = {}, {}
        for name, way in ways.items():
            predictor = Predictor(
                place / "run", args.batch_size, way.tta, precision=way.precision, compiled=way.compiled
            )
            runs[name] = Run(predictor, paths if way.files else volumes, place / "labels.nii.gz")
            networks.setdefault(way.network, network_alone(predictor.members[0], slices, size))
        timed = interleave(
            {name: Variant(work) for name, work in networks.items()}
            | {name: Variant(run.step, run.before, run.after) for name, run in runs.items()},
            device,
            windows=args.windows,
            window_s=window_s,
            warmup_steps=warmup_steps,
        )
        gflop = roofline.forward_gflop(runs["predict"].predictor.members[0].model, (1, 1, *size))
        kind = store.meta["data"]
    common = {
        "device": device.type,
        "model": plain(network),
        "size_px": list(size),
        "batch_size": args.batch_size,
        "slices": slices,
        "forward_gflop": round(gflop, 3),
        "data": kind,
    }
    rates = {name: [60 * rate for rate in timed[name].rates(1)] for name in timed}

    def one(name: str, precision: str, ceiling: Ceiling, more: dict[str, Any], **options: Any) -> None:
        per_s = {"slices_per_s": round(median(rates[name])[0] * slices / 60, 2)}
        config = {"variant": name, "precision": precision, **common, **per_s, **more}
        done = line("predict", rates[name], "volumes/min", ceiling, config, args, warmup_steps=warmup_steps, **options)
        record(done, args.out)
        print(f"  {per_s['slices_per_s']:g} slices/s")

    for name in networks:
        precision = next(runs[way].predictor.precision for way in ways if ways[way].network == name)
        one(name, precision, Ceiling("none", None, "this is the network itself: see benchmarks.model, infer"), {})
    for name, run in runs.items():
        way, share, spread = ways[name], *median(run.shares[-args.windows :])
        p50, p90 = (
            round(float(q), 4) for q in np.percentile(run.seconds[-args.windows * timed[name].steps :], [50, 90])
        )
        more = {
            "share_in_network": round(share, 4),
            "share_spread": [round(value, 4) for value in spread],
            "volume_s": {"p50": p50, "p90": p90},
        }
        alone = [rate / (2 if way.tta == "flip" else 1) for rate in rates[way.network]]
        words = ", each twice" if way.tta == "flip" else ""
        limit = Ceiling(f"{way.network} alone on as many slices{words}", median(alone)[0])
        ratio = median(rounds(rates[name], alone))[0]
        one(name, run.predictor.precision, limit, more, ratio=ratio, answer=name == "file_to_file")
        print(f"  {100 * share:.0f} % of the time in the network; a volume p50 {p50:.3f} p90 {p90:.3f} s")


class Run:
    """Prediction of a volume at a time; what it gives back lies in the host's memory, so its end is the end."""

    def __init__(self, predictor: Predictor, scans: Iterator[Volume | Path], output: Path):
        """scans: in memory, or files, whose label maps are then written to `output`."""
        self.predictor, self._scans, self._output = predictor, scans, output
        self._window: list[float] = []
        self._network_s = 0.0  # when the window began
        self.seconds: list[float] = []  # of each volume
        self.shares: list[float] = []  # of each window, spent in the network

    def step(self) -> None:
        begin = time.perf_counter()
        scan = next(self._scans)
        image = read_image(scan) if isinstance(scan, Path) else scan
        labels = self.predictor.predict(image)
        if isinstance(scan, Path):
            write_nifti(self._output, labels, image.geometry)
        self._window.append(time.perf_counter() - begin)

    def before(self) -> None:
        self._network_s, self._window = self.predictor.network_s, []

    def after(self) -> None:
        self.seconds += self._window
        self.shares.append((self.predictor.network_s - self._network_s) / sum(self._window))


def network_alone(run: RunModel, slices: int, size: tuple[int, int]) -> Callable[[], None]:
    """The forward passes of one volume, on batches that are already there."""
    whole, rest = divmod(slices, run.batch_size)
    batches = [torch.randn(n, 1, *size, device=run.device) for n in [run.batch_size] * whole + [rest] * (rest > 0)]

    def work() -> None:
        for batch in batches:
            run.predict_batch(batch)

    return work


if __name__ == "__main__":
    cli.run(main, Args)
