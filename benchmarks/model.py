"""How many images per second can the network itself train on, and what limits it? `python -m benchmarks.model`.

A fixed random batch in device memory, without a loader. Timed in turns: the training step in each precision and memory
order, compiled, with and without a fused optimizer, without its loss; inference; and the limits of the device: a large
matrix product in each precision, and a copy. `ratio` is MFU: counted operations against the matrix product. Each line
also holds what the roofline allows (benchmarks/lib/roofline.py), how much of it was reached, whether memory or
arithmetic is the limit, and the rate relative to the step that kits_dist.train takes (`of_default`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.lib import roofline
from benchmarks.lib.arguments import StepArgs
from benchmarks.lib.harness import Candidate, Windows, drain, interleave, pick_device
from benchmarks.lib.lines import Ceiling, Recorder, median, no_ceiling, rounds
from benchmarks.lib.model_steps import HALF, Mode, build_step, counted
from kits_dist import cli
from kits_dist.config import ModelConfig
from kits_dist.utils.errors import InputError


@dataclass(frozen=True)
class Args(StepArgs):
    """Arguments of the program."""

    variants: tuple[str, ...] = ()
    """Only these; empty: all that this device has."""


ON_CPU = {
    "train_fp32": Mode("fp32", False),
    "train_fp32_channels_last": Mode("fp32", True),
    "train_fp32_channels_last_fused": Mode("fp32", True, fused=True),
    "train_fp32_channels_last_compile_network": Mode("fp32", True, compile="network"),
    "train_fp32_channels_last_compile": Mode("fp32", True, compile="step"),
    "train_fp32_channels_last_no_onednn": Mode("fp32", True, onednn=False),
    "train_fp32_channels_last_half_threads": Mode("fp32", True, half_threads=True),
    "train_fp32_channels_last_no_loss": Mode("fp32", True, loss=False),
    "train_bf16_channels_last": Mode("bf16", True),
    "infer_fp32": Mode("fp32", False, train=False),
    "infer_fp32_channels_last": Mode("fp32", True, train=False),
}
ON_GPU = {
    "train_tf32": Mode("tf32", False),
    "train_bf16": Mode("bf16", False),
    "train_bf16_channels_last": Mode("bf16", True),
    # torch hands batch norm in channels_last to cuDNN in fp16, but to a kernel of its own in bf16
    "train_fp16_channels_last": Mode("fp16", True),
    "train_bf16_channels_last_unfused": Mode("bf16", True, fused=False),
    "train_bf16_channels_last_compile_network": Mode("bf16", True, compile="network"),
    "train_bf16_channels_last_compile": Mode("bf16", True, compile="step"),
    "train_bf16_channels_last_no_loss": Mode("bf16", True, loss=False),
    "infer_bf16_channels_last": Mode("bf16", True, train=False),
    "infer_bf16_channels_last_compile": Mode("bf16", True, compile="network", train=False),
}
AS_TRAINED = {"cpu": "train_fp32_channels_last", "cuda": "train_bf16_channels_last"}  # kits_dist.train's defaults
MEASURED = no_ceiling("this is the measured limit itself; the data sheet's is not a measurement")


def main(args: Args) -> None:
    """Time all modes and the limits of the device in turns, and write their lines."""
    device = pick_device()
    known = ON_GPU if device.type == "cuda" else ON_CPU
    if unknown := set(args.variants) - set(known):
        raise InputError(f"variants={sorted(unknown)}: choose from {list(known)} on this machine.")
    modes = {name: mode for name, mode in known.items() if not args.variants or name in args.variants}
    if args.quick and not args.variants:
        modes = {name: mode for name, mode in modes.items() if not mode.compile}  # a minute of compiling proves little
    size, network = args.image_size(), args.network()
    batch_size = args.batch_size or args.default(gpu=128, cpu=8, quick=2)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True  # nothing here asks for exact fp32

    steps, peak_memory_gib, failed = {}, {}, {}
    for name, mode in modes.items():
        before = _reset_memory(device)
        try:
            step = build_step(network, mode, size, batch_size, device)
            for _ in range(2):  # the first compiles or searches for the fastest convolutions
                step()
            drain(device)
        except RuntimeError as error:  # out of memory, or no compiler: the line of this variant says so
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            continue
        steps[name] = Candidate(step)
        peak_memory_gib[name] = _peak_memory_gib(device, before)

    precisions = sorted({modes[name].precision for name in steps})
    n = args.default(gpu=8192, cpu=1024, quick=256)
    copied = args.default(gpu=2**30, cpu=2**27, quick=2**20)
    limits = {f"peak_{precision}": Candidate(_matmul(precision, n, device)) for precision in precisions}
    limits["copy"] = Candidate(_copy(copied, device))
    timing = args.timing(warmup_steps=8)
    timed = interleave(steps | limits, device, **timing)

    recorder = Recorder("model", args, {}, warmup_steps=timing["warmup_steps"] + 2)
    flops = {}
    for precision in precisions:
        rates = timed[f"peak_{precision}"].rates(2 * n**3 / 1e12)
        config = {"matrix": n, "precision": precision}
        flops[precision] = 1e12 * recorder.write(f"peak_{precision}", rates, MEASURED, config, unit="TFLOP/s").value
    config = {"bytes": copied, "counts": "read and written"}
    rates = timed["copy"].rates(2 * copied / 1e9)
    bytes_per_s = 1e9 * recorder.write("copy", rates, MEASURED, config, unit="GB/s").value

    for name, mode in modes.items():
        config = described(network, mode, size, batch_size)
        if name in failed:
            ceiling = Ceiling(f"matmul peak {mode.precision}", None, "not measured: the variant failed")
            recorder.write(name, [], ceiling, config | {"failed": failed[name]})
            continue
        config |= {"peak_memory_gib": peak_memory_gib[name]}
        work = counted(network, mode, size, batch_size, device.type)
        _record_mode(recorder, name, mode, timed, config, work, flops[mode.precision], bytes_per_s)


def _record_mode(
    recorder: Recorder,
    name: str,
    mode: Mode,
    timed: dict[str, Windows],
    config: dict[str, Any],
    work: roofline.Work,
    flops: float,
    bytes_per_s: float,
) -> None:
    """Write the line of a mode: its rate, its counted work, and what the limits of the device allow for that work."""
    device, batch_size = pick_device().type, config["batch_size"]
    rates = timed[name].rates(batch_size)
    middle = sorted(rates)[len(rates) // 2]
    roof = roofline.bound(work, flops, bytes_per_s)
    gflop = work.flop / batch_size / 1e9
    config |= {
        "gflop_per_image": round(gflop, 3),
        "mb_per_image": round(work.nbytes / batch_size / 1e6, 2),
        "saved_mb_per_image": round(work.saved_bytes / batch_size / 1e6, 2) if mode.train else 0,
        "counted_peak_gib": round(work.peak_bytes / 2**30, 3),  # peak_memory_gib adds workspaces and rounding
        "mb_by_kind": {kind: round(nbytes / batch_size / 1e6, 2) for kind, nbytes in work.by_kind().items()},
        "achieved_tflops": round(middle * gflop / 1e3, 4),
        "roofline": {
            "images_per_s": round(batch_size / roof.seconds, 2),
            "reached": round(middle * roof.seconds / batch_size, 4),
            "memory_share": round(roof.memory_share, 3),
        },
    }
    base = timed.get(AS_TRAINED[device]) if mode.train else None
    if base:
        relative, spread = median(rounds(rates, base.rates(batch_size)))
        config["of_default"] = [round(value, 4) for value in (relative, *spread)]

    ceiling = Ceiling(f"matmul peak {mode.precision} (ratio = MFU)", flops / 1e9 / max(gflop, 1e-9))
    recorder.write(name, rates, ceiling, config, answer=name == AS_TRAINED[device])
    print(
        f"  roofline {batch_size / roof.seconds:.4g} images/s, measured / bound {config['roofline']['reached']:.2f}; "
        f"bound by memory for {100 * roof.memory_share:.0f} % of the time"
        + ("; {} of the default step [{} .. {}]".format(*config["of_default"]) if base else "")
    )


def described(network: ModelConfig, mode: Mode, size: tuple[int, int], batch_size: int) -> dict[str, Any]:
    """Return the settings of a variant, for its line."""
    return {
        "mode": "train" if mode.train else "infer",
        **{key: value for key, value in mode._asdict().items() if key != "train"},
        "model": dataclasses.asdict(network) | {"regions": list(network.regions)},
        "size_px": list(size),
        "batch_size": batch_size,
    }


def _matmul(precision: str, n: int, device: torch.device) -> Callable[[], Any]:
    """Return a product of two (n, n) matrices of normals: zeros would draw less power and run faster."""
    dtype = HALF.get(precision, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=product)


def _copy(nbytes: int, device: torch.device) -> Callable[[], Any]:
    """Return a copy within the memory of the device, too large for any cache."""
    source = torch.randint(0, 256, (nbytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _reset_memory(device: torch.device) -> int:
    """Count the peak from here on; returns the bytes that other variants hold."""
    if device.type != "cuda":
        return 0
    drain(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_memory_gib(device: torch.device, before: int) -> float | None:
    """Return the GiB of this variant alone: weights, optimizer, batch and activations. None without a GPU."""
    if device.type != "cuda":
        return None
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**30, 3)


if __name__ == "__main__":
    cli.run(main, Args)
