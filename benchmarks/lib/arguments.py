"""Arguments that benchmarks share, and the sizes that they take where none is asked for."""

from dataclasses import dataclass
from typing import TypeVar

import torch

from kits_dist.config import ModelConfig
from kits_dist.utils.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class RunArgs:
    """Arguments of every benchmark."""

    out: str = ""
    """Folder for the lines; empty: benchmarks/results, with quick=true runs/benchmarks."""
    quick: bool = False
    """Tiny images and single steps: proves that it runs, measures nothing."""

    def default(self, *, gpu: T, cpu: T, quick: T) -> T:
        """Return the default for this run: for `quick=true`, else for a machine with or without a GPU."""
        if self.quick:
            return quick
        return gpu if torch.cuda.is_available() else cpu


@dataclass(frozen=True)
class TimedArgs(RunArgs):
    """Arguments of a benchmark that times windows."""

    windows: int = 5
    """Timed windows per candidate, at least 5."""
    window_s: float = 2.0
    """Seconds per window, approximately."""

    def timing(self, warmup_steps: int) -> dict[str, float]:
        """Return the arguments of `harness.interleave`: single steps after one of warm-up with quick=true."""
        if self.quick:
            return {"windows": self.windows, "window_s": 0.0, "warmup_steps": 1}
        return {"windows": self.windows, "window_s": self.window_s, "warmup_steps": warmup_steps}


@dataclass(frozen=True)
class NetworkArgs(RunArgs):
    """Arguments of a benchmark that runs the network."""

    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the images; 0x0: 512x512 on a GPU, 128x128 without."""
    batch_size: int = 0
    """Images per step; 0: 128 on a GPU, 8 without."""
    arch: str = ""
    """As model.arch; empty: unet with a ResNet34 encoder on a GPU, simple_unet of width 12 without."""

    def __post_init__(self) -> None:
        check_size(self.size_px)

    def image_size(self) -> tuple[int, int]:
        """Return (height, width)."""
        return self.size_px if all(self.size_px) else self.default(gpu=(512, 512), cpu=(128, 128), quick=(64, 64))

    def network(self, width: int = 12, quick_width: int = 12) -> ModelConfig:
        """Return the network; the widths are those of a simple U-Net."""
        arch = self.arch or self.default(gpu="unet", cpu="simple_unet", quick="simple_unet")
        narrow = quick_width if self.quick else width
        return ModelConfig(arch=arch, encoder_weights="none", width=narrow if arch == "simple_unet" else 64)


@dataclass(frozen=True)
class StepArgs(NetworkArgs, TimedArgs):
    """Arguments of a benchmark that times training steps."""


def check_size(size_px: tuple[int, int]) -> None:
    """Raise InputError for a size of which only one side is given."""
    if any(size_px) != all(size_px):
        raise InputError(f"size_px={size_px[0]}x{size_px[1]}: give both sides, or neither.")
