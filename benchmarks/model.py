"""How many images per second can the network itself train on? The compute ceiling: `python -m benchmarks.model`.

A fixed random batch already on the device, no loader. Variants, interleaved: the training step in each precision and
memory order, inference, and a large matrix product in each precision, which is the peak that MFU is measured against.
One forward pass is counted in floating point operations (torch.utils.flop_counter), a training step is taken as 3x.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Ceiling, Variant, drain, interleave, line, pick_device, record
from kits_dist import cli
from kits_dist.config import ModelConfig, OptimConfig
from kits_dist.errors import InputError
from kits_dist.learner import build_optimizer
from kits_dist.losses import RegionLoss
from kits_dist.models import build_model


@dataclass(frozen=True)
class Args:
    size_px: tuple[int, int] = (0, 0)  # (height, width); 0x0: 512x512 on a GPU, 128x128 without
    batch_size: int = 0  # images a step; 0: 128 on a GPU, 8 without
    arch: str = ""  # as model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 12 without
    variants: tuple[str, ...] = ()  # some of them only; empty: all that this device has
    windows: int = 5  # timed windows a variant, at least 5
    window_s: float = 2.0  # seconds a window, roughly
    out: str = ""  # folder for the line; empty: benchmarks/results
    quick: bool = False  # a few steps on tiny images: proves that it runs


class Mode(NamedTuple):
    precision: str  # fp32, tf32 or bf16
    channels_last: bool
    compile: bool = False
    train: bool = True


ON_CPU = {"train_fp32": Mode("fp32", False), "infer_fp32": Mode("fp32", False, train=False)}
ON_GPU = {
    "train_tf32": Mode("tf32", False),
    "train_bf16": Mode("bf16", False),
    "train_bf16_channels_last": Mode("bf16", True),
    "train_bf16_channels_last_compile": Mode("bf16", True, compile=True),
    "infer_bf16_channels_last": Mode("bf16", True, train=False),
}
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
    gflop = forward_gflop(network, size)

    modes = {name: mode for name, mode in known.items() if not args.variants or name in args.variants}
    variants, about, failed = {}, {}, {}
    for name, mode in modes.items():
        before = _reset_memory(device)
        try:
            step = _step(network, mode, size, batch_size, device)
            for _ in range(2):  # the first compiles or searches for the fastest convolutions
                step()
            drain(device)
        except RuntimeError as error:  # out of memory, a compiler that is not there: one variant less, said in its line
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            continue
        variants[name] = Variant(step)
        about[name] = {"peak_memory_gib": _peak_memory_gib(device, before)}
    peaks = sorted({modes[name].precision for name in variants})
    n = 256 if args.quick else 8192 if on_gpu else 1024
    timed = interleave(
        variants | {f"peak_{precision}": Variant(_matmul(precision, n, device)) for precision in peaks},
        device,
        windows=args.windows,
        window_s=window_s,
        warmup_steps=warmup_steps,
    )

    peak_tflops = {}
    for precision in peaks:
        rates = timed[f"peak_{precision}"].rates(2 * n**3 / 1e12)
        config = {"variant": f"peak_{precision}", "matrix": n, "precision": precision}
        reason = "this is the measured peak itself; the data sheet's is not a measurement"
        peak = line(
            "model", rates, "TFLOP/s", Ceiling("none", None, reason), config, args, warmup_steps=warmup_steps + 2
        )
        peak_tflops[precision] = peak.value
        record(peak, args.out)
    for name, mode in modes.items():
        work = gflop * (3 if mode.train else 1)  # GFLOP an image
        config = {
            "variant": name,
            "mode": "train" if mode.train else "infer",
            **{key: value for key, value in mode._asdict().items() if key != "train"},
            "model": dataclasses.asdict(network) | {"regions": list(network.regions)},
            "size_px": list(size),
            "batch_size": batch_size,
            "gflop_per_image": round(work, 3),
        }
        if name in failed:
            unknown = Ceiling(f"matmul peak {mode.precision}", None, "not measured: the variant failed")
            record(line("model", [], "images/s", unknown, config | {"failed": failed[name]}, args), args.out)
            continue
        rates = timed[name].rates(batch_size)
        ceiling = Ceiling(
            f"matmul peak {mode.precision} (ratio = MFU)", peak_tflops[mode.precision] * 1e3 / max(work, 1e-9)
        )
        done = line("model", rates, "images/s", ceiling, config | about[name], args, warmup_steps=warmup_steps + 2)
        achieved = {"achieved_tflops": round(done.value * work / 1e3, 4)}
        record(dataclasses.replace(done, config=done.config | achieved), args.out)


def forward_gflop(network: ModelConfig, size: tuple[int, int]) -> float:
    """GFLOP of one image's forward pass: convolutions and matrix products, a multiply-add counts 2."""
    model = build_model(network, 1, pretrained=False).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 1, *size))
    return counter.get_total_flops() / 1e9


def _step(
    network: ModelConfig, mode: Mode, size: tuple[int, int], batch_size: int, device: torch.device
) -> Callable[[], Any]:
    """One step of this mode on its own batch and its own network, both on the device."""
    torch.manual_seed(0)
    memory = torch.channels_last if mode.channels_last else torch.contiguous_format
    model = build_model(network, 1, pretrained=False).to(device, memory_format=memory)
    optimizer = build_optimizer(model, LEARNING, device)
    loss_fn = RegionLoss(LEARNING.loss, network.regions).to(device)
    half = mode.precision == "bf16"
    image = torch.randn(batch_size, 1, *size, device=device, dtype=torch.float16 if half else torch.float32)
    label = torch.randint(0, 4, (batch_size, *size), device=device, dtype=torch.uint8)
    forward = torch.compile(model) if mode.compile else model

    def train() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = forward(image)
        loss_fn(logits, label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def infer() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            forward(image).float().sigmoid()

    model.train(mode.train)
    return train if mode.train else infer


def _matmul(precision: str, n: int, device: torch.device) -> Callable[[], Any]:
    """One product of two (n, n) matrices of normals: zeros would draw less power and run faster."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=product)


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
