"""How fast will a GPU be that was never measured? `python -m benchmarks.plan gpu=A6000 gpus=8`.

The work of a training step is counted (benchmarks/lib/roofline.py), the data sheet gives the bound
(kits_dist/training/mfu.py), and the share of such a bound that a real GPU reaches is taken from the measured lines
of benchmarks.model. It prints its assumptions, and for every measured line what the same method predicts for it from
the other lines. What it says about a GPU is marked as a prediction, whatever the GPU.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from benchmarks.lib import roofline
from benchmarks.lib.lines import RESULTS, Line, key, read_all
from benchmarks.lib.model_steps import Mode, counted
from kits_dist import cli
from kits_dist.config import ModelConfig
from kits_dist.models import build_model
from kits_dist.training.mfu import peak_of, short_name
from kits_dist.utils.errors import InputError, MissingInput

KITS21_SLICES = 65164  # of all 300 cases, 512x512 (one case is wider)
FOLD_SLICES = round(KITS21_SLICES * 0.8 * 0.8)  # without a test set of a fifth and one fold of five
PREPARED_VOXELS = 32 * 256 * 256  # of a case in the recorded lines of benchmarks.prepare
POSTER_RATE, POSTER_SCALING = 72, 3.15  # images/s of one A100; four of them, times one
LINK_SHARE = 0.7  # of the data sheet's link that an all-reduce uses; not measured here


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    gpu: str = cli.MISSING
    """3090, 4090, A5000, A6000, A40, L4, L40S, A100, H100 or H200."""
    gpus: int = 1
    """How many of them in one machine."""
    size_px: tuple[int, int] = (512, 512)
    """(height, width) of the images."""
    batch_size: int = 128
    """Images per GPU and step."""
    arch: str = "unet"
    """As model.arch."""
    encoder: str = "resnet34"
    """As model.encoder."""
    precision: str = "bf16"
    """Bf16, fp16, tf32 or fp32."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """As train.gradients."""
    slices: int = FOLD_SLICES
    """Slices of an epoch; by default those of one training fold of KiTS21, 192 of its 300 cases."""
    epochs: int = 100
    """Epochs of a training, as optim.epochs; early stopping may end it sooner."""
    results: str = ""
    """Folder or file of recorded lines; empty: benchmarks/results."""

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("gpus", "batch_size", "slices", "epochs")}
        if min(counts.values()) < 1:
            raise InputError(f"{', '.join(f'{name}={value}' for name, value in counts.items())}: use 1 or more.")
        known = ["fp16", *peak_of(self.gpu).flops]
        if self.precision not in known:
            raise InputError(f"precision={self.precision}: choose from {known}.")


class Row(NamedTuple):
    """A measured training step, and what its device could reach at best."""

    line: Line
    bound: float  # images/s by the limits measured in the same run
    reached: float  # measured / bound
    device: str  # cpu or cuda
    compiled: bool


def main(args: Args) -> None:
    """Print the prediction, and the check of the method."""
    lines = recorded(args.results)
    rows = measured_rows(lines)
    print(
        f"PREDICTED, not measured: {args.gpus} x {args.gpu}, {args.size_px[0]}x{args.size_px[1]}, batch "
        f"{args.batch_size} a GPU, {args.arch} {args.encoder}, {args.precision}"
    )
    print(*forecast(args, rows), sep="\n")
    print("\nThe poster's author on A100, 512x512, ResNet34 U-Net, batch 64 (measured there; ours in bf16 is not):")
    print(*against_the_poster(rows), sep="\n")
    print("\nKiTS21, 300 cases:")
    print(*data_costs(lines), sep="\n")
    print("\npredicted / measured, for every line there is:")
    checks = [*check_model(rows), *check_scaling(lines)]
    print(*checks or ["  no lines of benchmarks.model or scaling yet"], sep="\n")


def recorded(results: str) -> list[Line]:
    """Return the latest measured line of each question on each device."""
    try:
        lines = [line for line in read_all("results", results or RESULTS) if not line.quick]
    except MissingInput:
        if results:
            raise
        return []
    latest = {(line.env["gpu"], line.env["cpu"], line.env["torch"], key(line)): line for line in lines}
    return [line for line in latest.values() if line.value is not None]


def measured_rows(lines: list[Line]) -> list[Row]:
    """Return the training steps of benchmarks.model that carry a roofline."""
    rows = []
    for line in lines:
        roof = line.config.get("roofline")
        if line.question == "model" and roof and line.config["mode"] == "train":
            device = "cuda" if line.env["gpu"] else "cpu"
            rows.append(Row(line, roof["images_per_s"], roof["reached"], device, bool(line.config["compile"])))
    return rows


def forecast(args: Args, rows: list[Row]) -> Iterator[str]:
    """Yield the prediction line by line, assumptions first."""
    peak, network, work = peak_of(args.gpu), _network(args), _work(args)
    roof = roofline.bound(work, peak.flops_in(args.precision), peak.bytes_per_s)
    at_best = args.batch_size / roof.seconds
    gflop, megabytes = work.flop / args.batch_size / 1e9, work.nbytes / args.batch_size / 1e6
    yield (
        f"  an image costs {gflop:.1f} GFLOP and {megabytes:.0f} MB of memory traffic in an eager step; "
        f"a batch takes {work.peak_bytes / 1e9:.1f} GB at most, {work.saved_bytes / 1e9:.1f} of them activations"
    )
    yield (
        f"  data sheet: {peak.flops_in(args.precision) / 1e12:g} TFLOP/s, {peak.bytes_per_s / 1e9:g} GB/s, link "
        f"{peak.link_bytes_per_s / 1e9:g} GB/s a direction ({peak.source})"
    )
    yield (
        f"  bound: {at_best:.0f} images/s, operators one after another, each at the data sheet's peak or bandwidth; "
        f"memory is the limit for {100 * roof.memory_share:.0f} % of that time"
    )
    yield f"  share of the bound that is reached: {shares_for(args, rows)[1]}"
    nbytes = gradient_bytes(network, args.gradients)
    exchange_s = all_reduce_s(nbytes, args.gpus, peak.link_bytes_per_s)
    yield (
        f"  gradients in {args.gradients}: {nbytes / 1e6:.0f} MB, a ring all-reduce at {LINK_SHARE:.0%} of the "
        f"link takes {1e3 * exchange_s:.1f} ms a step; none of it overlaps with the backward pass (DDP overlaps most)"
    )
    yield "  the data path keeps up (see end_to_end), the GPU keeps its boost clock (a power limit may prevent it)"
    for name, (one, many) in predicted_rates(args, rows).items():
        yield (
            f"PREDICTED {name}: {one:.0f} images/s on one {args.gpu}"
            + (f", {many:.0f} on {args.gpus} ({many / one:.2f} times one)" if args.gpus > 1 else "")
            + f"; an epoch of {args.slices} slices takes {args.slices / many:.0f} s, {args.epochs} epochs "
            f"{args.epochs * args.slices / many / 3600:.1f} h"
        )


def _network(args: Args) -> ModelConfig:
    return ModelConfig(arch=args.arch, encoder=args.encoder, encoder_weights="none")


def _work(args: Args) -> roofline.Work:
    return counted(_network(args), Mode(args.precision, True), args.size_px, args.batch_size, "cuda")


def predicted_rates(args: Args, rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Return {"low", "high"} images/s of one GPU and of args.gpus, whose exchange overlaps with nothing."""
    peak = peak_of(args.gpu)
    at_best_s = roofline.bound(_work(args), peak.flops_in(args.precision), peak.bytes_per_s).seconds
    exchange_s = all_reduce_s(gradient_bytes(_network(args), args.gradients), args.gpus, peak.link_bytes_per_s)
    rates = {}
    for name, share in shares_for(args, rows)[0].items():
        step_s = at_best_s / share
        rates[name] = args.batch_size / step_s, args.gpus * args.batch_size / (step_s + exchange_s)
    return rates


def against_the_poster(rows: list[Row]) -> Iterator[str]:
    """Yield our prediction as a ratio to what the poster's author measured in its sequel on distributed training.

    Source: the report in github.com/Hosein-Beheshti/Distributed-Deep-Learning-for-Kidney-Tumor-Segmentation (2024). Its
    images/s follow from 14.6 h for 50 epochs of about 75,700 slices; four of its GPUs were in four machines.
    """
    for gpus, theirs in ((1, POSTER_RATE), (4, POSTER_RATE * POSTER_SCALING)):
        rates = predicted_rates(Args(gpu="A100", gpus=gpus, batch_size=64), rows)
        low, high = (many / theirs for _, many in rates.values())
        span = f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} .. {high:.1f}"
        yield f"  {gpus} x A100: theirs about {theirs:.0f} images/s, ours PREDICTED {span} times that"


def shares_for(args: Args, rows: list[Row]) -> tuple[dict[str, float], str]:
    """Return {"low", "high"} shares of the bound, and their source: GPU rows of this precision, else what there is."""
    for device, kind in (("cuda", "GPU"), ("cpu", "CPU")):
        there = [row for row in rows if row.device == device]
        same = [row for row in there if row.line.config["precision"] == args.precision]
        reached = [row.reached for row in same or there]
        if reached:
            kind = f"{args.precision} {kind}" if same else kind
            weak = "" if device == "cuda" else "; no GPU was measured, and the share of a CPU says little about it"
            count = f"{len(reached)} {kind} line{'s' if len(reached) > 1 else ''}"
            source = f"{' .. '.join(f'{share:.2f}' for share in sorted({min(reached), max(reached)}))} in {count}{weak}"
            return {"low": min(reached), "high": min(1.0, max(reached))}, source
    return {"bound": 1.0}, "unknown, no line of benchmarks.model was recorded: only the bound is printed"


def data_costs(lines: list[Line]) -> Iterator[str]:
    """Yield the disk space of a KiTS21 store, and the time to prepare it for each measured machine."""
    voxels = KITS21_SLICES * 512 * 512
    yield f"  CT voxels {2 * voxels / 1e9:.1f} GB as int16, unpacked; the download is compressed"
    yield f"  store: {2 * voxels / 1e9:.1f} GB (image and label, one byte each), three planes {6 * voxels / 1e9:.1f} GB"
    for line in lines:
        if line.question == "prepare" and line.config["variant"] == "prepare" and line.config["data"] == "phantom":
            minutes = voxels / (line.value * PREPARED_VOXELS)
            env = line.env
            yield f"  PREDICTED prepare: {minutes:.0f} min on {env['cpu_cores']} cores ({env['cpu']}), by voxels"


def gradient_bytes(network: ModelConfig, gradients: str) -> int:
    """Return the bytes of gradients that each GPU sends, by train.gradients."""
    each = {"fp32": 4, "bf16": 2}[gradients]
    return each * sum(p.numel() for p in build_model(network, 1, pretrained=False).parameters())


def all_reduce_s(nbytes: float, gpus: int, link_bytes_per_s: float) -> float:
    """Return the seconds of a ring all-reduce: each GPU sends and receives 2 (n - 1) / n of the gradients."""
    return 2 * (gpus - 1) / gpus * nbytes / (LINK_SHARE * link_bytes_per_s)


def check_model(rows: list[Row]) -> Iterator[str]:
    """Predict each measured step: its bound times the median share that other rows of its kind of device reached."""
    for row in rows:
        config, gpu = row.line.config, row.line.env["gpu"]
        name = f"{gpu or 'CPU'} {config['variant']} {'x'.join(map(str, config['size_px']))}"
        others = [other.reached for other in rows if other.device == row.device and other is not row]
        if not others:
            yield f"  {name}: no other line to predict it from"
            continue
        sheet = short_name(gpu or "")
        tail = f"; by the data sheet alone {_by_data_sheet(row, sheet):.0f}" if sheet else ""
        yield _checked(name, row.bound * statistics.median(others), row.line.value) + tail


def _checked(name: str, predicted: float, measured: float) -> str:
    ratio = predicted / measured
    return f"  {name}: predicted {predicted:.4g}, measured {measured:g} images/s, ratio {ratio:.2f}"


def _by_data_sheet(row: Row, gpu: str) -> float:
    config, peak = row.line.config, peak_of(gpu)
    network = ModelConfig(**{key: config["model"][key] for key in ("arch", "encoder", "width")}, encoder_weights="none")
    mode = Mode(config["precision"], True, fused=config["fused"])
    work = counted(network, mode, tuple(config["size_px"]), config["batch_size"], "cuda")
    return config["batch_size"] / roofline.bound(work, peak.flops_in(mode.precision), peak.bytes_per_s).seconds


def check_scaling(lines: list[Line]) -> Iterator[str]:
    """Predict each measured number of processes: the step of one of them and an exchange that overlaps with nothing.

    Processes that share the cores of a CPU have no link to speak of, so no exchange is predicted for theirs.
    """
    lines = [line for line in lines if line.question == "scaling"]
    ones = {line.env["gpu"]: line for line in lines if line.config["variant"] == "one"}
    for line in lines:
        gpu = line.env["gpu"]
        one = ones.get(gpu)
        if one is None or not line.config["variant"].startswith("weak_"):
            continue
        n, sheet = line.config["processes"], short_name(gpu or "")
        exchange_s = 0.0
        if sheet:
            exchange_s = all_reduce_s(1e6 * line.config["gradient_mb"], n, peak_of(sheet).link_bytes_per_s)
        step_s = one.config["batch_size"] / one.value
        predicted = n * line.config["batch_size"] / (step_s + exchange_s)
        yield _checked(f"{gpu or 'CPU'} {line.config['variant']}", predicted, line.value)


if __name__ == "__main__":
    cli.run(main, Args)
