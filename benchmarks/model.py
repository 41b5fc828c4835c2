"""How many images per second can the network itself train on, and what limits it? `python -m benchmarks.model`.

A fixed random batch already on the device, no loader. Variants, interleaved: the training step in each precision and
memory order, compiled, with and without a fused optimiser, without its loss; inference; and the device's own limits: a
large matrix product in each precision, and a copy. `ratio` is MFU: counted operations against the matrix product. Each
line also says what the roofline allows (benchmarks/lib/roofline.py), how much of it was reached, whether memory or
arithmetic is the limit, and its pace over that of the step as kits_dist.train takes it (`of_default`).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from benchmarks.lib import roofline
from benchmarks.lib.harness import Ceiling, Variant, drain, interleave, line, median, pick_device, record, rounds
from kits_dist import cli
from kits_dist.config import ModelConfig, OptimConfig
from kits_dist.models import build_model
from kits_dist.training.losses import RegionLoss, WithLoss
from kits_dist.training.train_step import build_optimizer
from kits_dist.utils.errors import InputError


@dataclass(frozen=True)
class Args:
    size_px: tuple[int, int] = (0, 0)
    """(height, width); 0x0: 512x512 on a GPU, 128x128 without."""
    batch_size: int = 0
    """Images a step; 0: 128 on a GPU, 8 without."""
    arch: str = ""
    """As model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 12 without."""
    variants: tuple[str, ...] = ()
    """Some of them only; empty: all that this device has."""
    windows: int = 5
    """Timed windows a variant, at least 5."""
    window_s: float = 2.0
    """Seconds a window, roughly."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """A few steps on tiny images: proves that it runs."""


class Mode(NamedTuple):
    precision: str  # fp32, tf32 or bf16
    channels_last: bool
    compile: Literal["", "network", "step"] = ""  # step: with the loss in the same graph, as kits_dist.train does it
    fused: bool | None = None  # optimiser; None: as kits_dist.train builds it, fused on a GPU
    onednn: bool = True  # on a CPU: oneDNN's convolutions rather than torch's own
    half_threads: bool = False  # on a CPU: half of the threads
    loss: bool = True  # else the gradient of the sum of all logits: what the loss costs is the difference
    train: bool = True


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
    "train_bf16_channels_last_unfused": Mode("bf16", True, fused=False),
    "train_bf16_channels_last_compile_network": Mode("bf16", True, compile="network"),
    "train_bf16_channels_last_compile": Mode("bf16", True, compile="step"),
    "train_bf16_channels_last_no_loss": Mode("bf16", True, loss=False),
    "infer_bf16_channels_last": Mode("bf16", True, train=False),
    "infer_bf16_channels_last_compile": Mode("bf16", True, compile="network", train=False),
}
AS_TRAINED = {"cpu": "train_fp32_channels_last", "cuda": "train_bf16_channels_last"}  # kits_dist.train's defaults
LEARNING = OptimConfig()


def main(args: Args) -> None:
    device = pick_device()
    on_gpu = device.type == "cuda"
    known = ON_GPU if on_gpu else ON_CPU
    if unknown := set(args.variants) - set(known):
        raise InputError(f"variants={sorted(unknown)}: choose from {list(known)} on this machine.")
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (128, 128)
    batch_size = args.batch_size or (2 if args.quick else 128 if on_gpu else 8)
    arch = args.arch or ("unet" if on_gpu and not args.quick else "simple_unet")
    network = ModelConfig(arch=arch, encoder_weights="none", width=12 if arch == "simple_unet" else 64)
    warmup_steps, window_s = (1, 0.0) if args.quick else (8, args.window_s)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True  # nothing here asks for exact fp32

    modes = {name: mode for name, mode in known.items() if not args.variants or name in args.variants}
    if args.quick and not args.variants:
        modes = {name: mode for name, mode in modes.items() if not mode.compile}  # a minute of compiling proves little
    variants, about, failed = {}, {}, {}
    for name, mode in modes.items():
        before = _reset_memory(device)
        try:
            step = build_step(network, mode, size, batch_size, device)
            for _ in range(2):  # the first compiles or searches for the fastest convolutions
                step()
            drain(device)
        except RuntimeError as error:  # out of memory, a compiler that is not there: one variant less, said in its line
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            continue
        variants[name] = Variant(step)
        about[name] = {"peak_memory_gib": _peak_memory_gib(device, before)}
    precisions = sorted({modes[name].precision for name in variants})
    n, copied = (256, 2**20) if args.quick else (8192, 2**30) if on_gpu else (1024, 2**27)
    limits = {f"peak_{precision}": Variant(_matmul(precision, n, device)) for precision in precisions}
    timed = interleave(
        variants | limits | {"copy": Variant(_copy(copied, device))},
        device,
        windows=args.windows,
        window_s=window_s,
        warmup_steps=warmup_steps,
    )

    def one(values: list[float], unit: str, ceiling: Ceiling, config: dict[str, Any], answer: bool = False):
        done = line("model", values, unit, ceiling, config, args, warmup_steps=warmup_steps + 2, answer=answer)
        record(done, args.out)
        return done.value

    measured = Ceiling("none", None, "this is the measured limit itself; the data sheet's is not a measurement")
    peak_tflops = {}
    for precision in precisions:
        rates = timed[f"peak_{precision}"].rates(2 * n**3 / 1e12)
        config = {"variant": f"peak_{precision}", "matrix": n, "precision": precision}
        peak_tflops[precision] = one(rates, "TFLOP/s", measured, config)
    rates = timed["copy"].rates(2 * copied / 1e9)
    copy_gb_per_s = one(rates, "GB/s", measured, {"variant": "copy", "bytes": copied, "counts": "read and written"})
    for name, mode in modes.items():
        config = {"variant": name, **described(network, mode, size, batch_size)}
        ceiling = Ceiling(f"matmul peak {mode.precision}", None, "not measured: the variant failed")
        if name in failed:
            one([], "images/s", ceiling, config | {"failed": failed[name]})
            continue
        rates = timed[name].rates(batch_size)
        middle = sorted(rates)[len(rates) // 2]
        work = counted(network, mode, size, batch_size, device.type)
        roof = roofline.bound(work, peak_tflops[mode.precision] * 1e12, copy_gb_per_s * 1e9)
        gflop = work.flop / batch_size / 1e9
        config |= about[name] | {
            "gflop_per_image": round(gflop, 3),
            "mb_per_image": round(work.nbytes / batch_size / 1e6, 2),
            "saved_mb_per_image": round(work.saved_bytes / batch_size / 1e6, 2) if mode.train else 0,
            "mb_by_kind": {kind: round(size / batch_size / 1e6, 2) for kind, size in work.by_kind().items()},
            "achieved_tflops": round(middle * gflop / 1e3, 4),
            "roofline": {
                "images_per_s": round(batch_size / roof.seconds, 2),
                "reached": round(middle * roof.seconds / batch_size, 4),
                "memory_share": round(roof.memory_share, 3),
            },
        }
        if base := timed.get(AS_TRAINED[device.type]) if mode.train else None:
            paces = rounds(rates, base.rates(batch_size))
            config["of_default"] = [round(value, 4) for value in (median(paces)[0], min(paces), max(paces))]
        ceiling = Ceiling(
            f"matmul peak {mode.precision} (ratio = MFU)", peak_tflops[mode.precision] * 1e3 / max(gflop, 1e-9)
        )
        one(rates, "images/s", ceiling, config, answer=name == AS_TRAINED[device.type])
        print(
            f"  roofline {batch_size / roof.seconds:.4g} images/s, measured / bound "
            f"{config['roofline']['reached']:.2f}; bound by memory for {100 * roof.memory_share:.0f} % of the time"
            + ("; {} of the default step [{} .. {}]".format(*config["of_default"]) if "of_default" in config else "")
        )


def described(network: ModelConfig, mode: Mode, size: tuple[int, int], batch_size: int) -> dict[str, Any]:
    """A variant's settings, for its line."""
    return {
        "mode": "train" if mode.train else "infer",
        **{key: value for key, value in mode._asdict().items() if key != "train"},
        "model": dataclasses.asdict(network) | {"regions": list(network.regions)},
        "size_px": list(size),
        "batch_size": batch_size,
    }


def counted(
    network: ModelConfig, mode: Mode, size: tuple[int, int], batch_size: int, device_type: str
) -> roofline.Work:
    """The work of one step of this mode. Memory order and compiler change where it is done, not how much it is; there
    need not be a GPU to count what one would do."""
    fused = device_type == "cuda" if mode.fused is None else mode.fused
    eager = mode._replace(channels_last=False, compile="", fused=fused, onednn=True, half_threads=False)
    return _counted(network, eager, size, batch_size)


@functools.lru_cache
def _counted(network: ModelConfig, mode: Mode, size: tuple[int, int], batch_size: int) -> roofline.Work:
    return roofline.count(lambda: build_step(network, mode, size, batch_size, torch.device("cpu")))


def build_step(
    architecture: ModelConfig, mode: Mode, size: tuple[int, int], batch_size: int, device: torch.device
) -> Callable[[], Any]:
    """One step of this mode on its own batch and its own network, both on the device."""
    torch.manual_seed(0)
    model = _moved(build_model(architecture, 1, pretrained=False), device)
    if mode.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, LEARNING, device)
    for group in optimizer.param_groups:
        group["fused"] = group["fused"] if mode.fused is None else mode.fused
    loss_fn = _moved(RegionLoss(LEARNING.loss, architecture.regions), device)
    half = mode.precision == "bf16"
    in_half = half and device.type == "cuda"  # as kits_dist.distributed.runtime has its batches
    image = torch.randn(batch_size, 1, *size, device=device, dtype=torch.float16 if in_half else torch.float32)
    label = torch.randint(0, 4, (batch_size, *size), device=device, dtype=torch.uint8)
    network = torch.compile(model) if mode.compile == "network" else model
    whole = WithLoss(network, loss_fn)
    if mode.compile == "step":
        whole = torch.compile(whole)

    def train() -> None:
        with _settings(mode):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                out = whole(image, label) if mode.loss else network(image)
            (loss_fn.global_value(out) if mode.loss else out.float().sum()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def infer() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            network(image).float().sigmoid()

    model.train(mode.train)
    return train if mode.train else infer


@contextlib.contextmanager
def _settings(mode: Mode) -> Iterator[None]:
    """Those of the whole process, for one step."""
    threads = torch.get_num_threads()
    if mode.half_threads:
        torch.set_num_threads(max(1, threads // 2))
    try:
        with contextlib.nullcontext() if mode.onednn else torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)


def _moved(module: nn.Module, device: torch.device) -> nn.Module:
    """It was made on the CPU; `to`, even where nothing is to do, would exchange fake tensors, and cannot."""
    return module if device.type == "cpu" else module.to(device)


def _matmul(precision: str, n: int, device: torch.device) -> Callable[[], Any]:
    """One product of two (n, n) matrices of normals: zeros would draw less power and run faster."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=product)


def _copy(nbytes: int, device: torch.device) -> Callable[[], Any]:
    """One copy within the device's memory, too large for any cache."""
    source = torch.randint(0, 256, (nbytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _reset_memory(device: torch.device) -> int:
    """Bytes that other variants hold; the peak counts from here."""
    if device.type != "cuda":
        return 0
    drain(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_memory_gib(device: torch.device, before: int) -> float | None:
    """GiB of this variant alone: weights, optimiser, batch and activations. Null without a GPU."""
    if device.type != "cuda":
        return None
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**30, 3)


if __name__ == "__main__":
    cli.run(main, Args)
