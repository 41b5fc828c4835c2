"""How many CT volumes a minute does a model segment? `python -m benchmarks.predict`.

`Predictor.predict` on one scan after another, from HU in memory to labels in memory: plainly, with mirrored slices,
compiled, on a GPU also in TF32; and with reading the NIfTI file and writing the label map, as kits_dist.predict does
it. The ceiling of each is its own network alone on as many slices in batches of the same size, in device memory: the
ratio is the share of the time in the network.
Weights are random: speed does not depend on them.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.lib import roofline
from benchmarks.lib.arguments import StepArgs
from benchmarks.lib.harness import Candidate, interleave, pick_device
from benchmarks.lib.lines import Baseline, Recorder, median, no_ceiling
from benchmarks.lib.stores import make_store, plain
from kits_dist import cli
from kits_dist.config import Config, DataConfig, PrecisionName, Tta
from kits_dist.imaging.nifti import Volume, read_image, write_nifti
from kits_dist.inference.predictor import Predictor
from kits_dist.inference.region_models import RunModel
from kits_dist.models import build_model
from kits_dist.training.run_folder import export_best


@dataclass(frozen=True)
class Args(StepArgs):
    """Arguments of the program."""

    batch_size: int = 16
    """Slices per batch, as in kits_dist.predict."""
    slices: int = 0
    """Of a volume; 0: 64 on a GPU, 24 without."""


class PredictSetting(NamedTuple):
    """How a scan is predicted, as in kits_dist.predict's arguments of these names."""

    tta: Tta = "none"
    precision: PrecisionName = "auto"
    compiled: bool = False
    files: bool = False  # from file to file

    @property
    def network(self) -> str:
        """The variant that times its network alone."""
        parts = ["network", self.precision.replace("auto", ""), "compiled" * self.compiled]
        return "_".join(filter(None, parts))


SETTINGS = {
    "predict": PredictSetting(),
    "flip": PredictSetting(tta="flip"),
    "compiled": PredictSetting(compiled=True),
    "tf32": PredictSetting(precision="tf32"),
    "file_to_file": PredictSetting(files=True),
}


def main(args: Args) -> None:
    """Time all settings and their networks alone in turns, and write their lines."""
    device = pick_device()
    size, network = args.image_size(), args.network(quick_width=4)
    slices = args.slices or args.default(gpu=64, cpu=24, quick=8)
    timing = args.timing(warmup_steps=2)
    settings = {name: one for name, one in SETTINGS.items() if device.type == "cuda" or one.precision == "auto"}
    if args.quick:
        settings = {name: one for name, one in settings.items() if not one.compiled}  # minutes, and proves little

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        store = make_store(place, 3, (slices, *size))
        data = DataConfig(store=str(store.path), size_px=size)
        config = Config(run=str(place / "run"), data=data, model=network)
        (place / "run").mkdir()
        torch.manual_seed(0)
        export_best(config, store, 0, build_model(network, 1, pretrained=False).state_dict())
        paths = sorted((place / "raw").glob("*/imaging.nii.gz"))
        volumes = [read_image(path) for path in paths]

        predictors, steps, networks = {}, {}, {}
        for name, one in settings.items():
            predictors[name] = predictor = Predictor(
                place / "run", args.batch_size, one.tta, precision=one.precision, compiled=one.compiled
            )
            scans = itertools.cycle(paths if one.files else volumes)
            steps[name] = prediction(predictor, scans, place / "labels.nii.gz")
            networks.setdefault(one.network, network_alone(predictor.members[0], slices, size))
        timed = interleave({name: Candidate(step) for name, step in (networks | steps).items()}, device, **timing)
        gflop = roofline.forward_gflop(predictors["predict"].members[0].model, (1, 1, *size))

    common = {
        "device": device.type,
        "model": plain(network),
        "size_px": list(size),
        "batch_size": args.batch_size,
        "slices": slices,
        "forward_gflop": round(gflop, 3),
        "data": store.meta["data"],
    }
    recorder = Recorder("predict", args, common, unit="volumes/min", warmup_steps=timing["warmup_steps"])
    rates = {name: [60 * rate for rate in timed[name].rates(1)] for name in timed}
    about = {name: {"slices_per_s": round(median(rates[name])[0] * slices / 60, 2)} for name in timed}
    for name, one in settings.items():
        about[name]["precision"] = about[one.network]["precision"] = predictors[name].precision
    for name in networks:
        recorder.write(name, rates[name], no_ceiling("this is the network itself: see benchmarks.model"), about[name])

    for name, one in settings.items():
        times = 2 if one.tta == "flip" else 1
        alone = [rate / times for rate in rates[one.network]]
        ceiling = Baseline(f"{one.network} alone on as many slices{', each twice' if times == 2 else ''}", alone)
        recorder.write(name, rates[name], ceiling, about[name], answer=name == "file_to_file")
        print(f"  {about[name]['slices_per_s']:g} slices/s")


def prediction(predictor: Predictor, scans: Iterator[Volume | Path], output: Path) -> Callable[[], None]:
    """Return the prediction of the next scan: one in memory, or a file whose label map is then written to `output`."""

    def work() -> None:
        scan = next(scans)
        image = read_image(scan) if isinstance(scan, Path) else scan
        labels = predictor.predict(image)
        if isinstance(scan, Path):
            write_nifti(output, labels, image.geometry)

    return work


def network_alone(run: RunModel, slices: int, size: tuple[int, int]) -> Callable[[], None]:
    """Return the forward passes of one volume, on batches in device memory."""
    whole, rest = divmod(slices, run.batch_size)
    batches = [torch.randn(n, 1, *size, device=run.device) for n in [run.batch_size] * whole + [rest] * (rest > 0)]

    def work() -> None:
        for batch in batches:
            run.predict_batch(batch)

    return work


if __name__ == "__main__":
    cli.run(main, Args)
