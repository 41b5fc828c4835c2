"""One of the processes that benchmarks.scaling launches; writes what all of them measured to `result`."""

import contextlib
import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.lib.harness import Candidate, interleave
from benchmarks.lib.training import PeerBatch, PlainStep
from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.config import ModelConfig, OptimConfig, TrainConfig
from kits_dist.distributed.runtime import Runtime, ddp_settings, start
from kits_dist.models import build_model
from kits_dist.utils import files

DEFAULT = TrainConfig()
EXCHANGES = {  # ways to exchange gradients other than the default
    "bucket_1mb": TrainConfig(bucket_mb=1),
    "bucket_100mb": TrainConfig(bucket_mb=100),
    "static_graph": TrainConfig(static_graph=True),
    "bf16_gradients": TrainConfig(gradients="bf16"),
}


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    result: str = MISSING
    """JSON file to write."""
    size_px: tuple[int, int] = MISSING
    """(height, width) of the images."""
    batch_size: int = MISSING
    """Images of one process."""
    windows: int = MISSING
    """Timed windows per group."""
    window_s: float = MISSING
    """Seconds per window, approximately."""
    warmup_steps: int = MISSING
    """Untimed steps first."""
    arch: str = MISSING
    """As model.arch."""
    width: int = MISSING
    """As model.width."""


def main(args: Args) -> None:
    """Time all groups in turns; rank 0 writes what they measured."""
    with tempfile.TemporaryDirectory() as run:
        runtime = start(DEFAULT, 1, Path(run), 0)
        world, device = runtime.ranks.world, runtime.accelerator.device
        network = ModelConfig(arch=args.arch, encoder_weights="none", width=args.width)
        groups = {"one": RankGroup(runtime, network, args, 1, args.batch_size)}
        for n in sorted({2**power for power in range(1, int(math.log2(world)) + 1)} | {world}):
            for name, batch_size in (("weak", args.batch_size), ("strong", max(1, args.batch_size // n))):
                group = RankGroup(runtime, network, args, n, batch_size)
                groups[f"{name}_{n}"] = group
                groups[f"{name}_{n}_no_sync"] = group.without_exchange()
        for name, train in EXCHANGES.items():
            groups[name] = RankGroup(runtime, network, args, world, args.batch_size, train)

        timed = interleave(
            {name: Candidate(group.step, before=dist.barrier, after=dist.barrier) for name, group in groups.items()},
            device,
            windows=args.windows,
            window_s=args.window_s,
            warmup_steps=args.warmup_steps,
            agree=lambda steps: _of_rank_0(steps, device),
        )
        found = {}
        for name, group in groups.items():
            seconds = torch.tensor(timed[name].seconds, device=device, dtype=torch.float64)
            dist.all_reduce(seconds, dist.ReduceOp.MAX)  # a step is done when the slowest rank has done it
            found[name] = {
                "seconds": seconds.tolist(),
                "images": group.processes * group.batch_size * timed[name].steps,
                "processes": group.processes,
                "batch_size": group.batch_size,
            }

        if runtime.ranks.rank == 0:
            gradients = sum(p.numel() * 4 for p in build_model(network, 1, pretrained=False).parameters())
            about = {"precision": runtime.precision.mode, "threads": torch.get_num_threads()}
            about |= {"groups": found, "gradient_mb": round(gradients / 1e6, 3)}
            files.write_json(Path(args.result), about)
        runtime.accelerator.end_training()


class RankGroup:
    """The first `processes` ranks, which train together on one batch each; the others do nothing."""

    def __init__(
        self,
        runtime: Runtime,
        network: ModelConfig,
        args: Args,
        processes: int,
        batch_size: int,
        train: TrainConfig = DEFAULT,
    ):
        """train: how gradients travel."""
        self.processes, self.batch_size = processes, batch_size
        self._exchange: Callable[[], Any] = contextlib.nullcontext
        group = dist.new_group(list(range(processes)))  # every rank must call this, also those outside the group
        self._idle = runtime.ranks.rank >= processes
        if self._idle:
            return

        device = runtime.accelerator.device
        torch.manual_seed(0)
        model = build_model(network, 1, pretrained=False)
        self._train = PlainStep(model, network.regions, runtime, OptimConfig(), train)
        if processes > 1:  # as Accelerator.prepare wraps it, but in this group
            handler = ddp_settings(train)
            wrapped = DistributedDataParallel(model, process_group=group, **handler.to_kwargs())
            handler.register_comm_hook(wrapped)  # a hook's group is that of all ranks
            self._train.model = wrapped
        self._batch = PeerBatch(
            torch.randn(batch_size, 1, *args.size_px, device=device, dtype=runtime.image_dtype),
            torch.randint(0, 4, (batch_size, *args.size_px), device=device, dtype=torch.uint8),
        )

    def without_exchange(self) -> "RankGroup":
        """Return the same network and batch, without exchanging gradients."""
        other = copy.copy(self)
        if not self._idle:
            other._exchange = self._train.model.no_sync
        return other

    def step(self) -> None:
        """Take an optimizer step, or nothing outside the group."""
        if not self._idle:
            with self._exchange():
                self._train(self._batch, False)


def _of_rank_0(steps: int, device: torch.device) -> int:
    tensor = torch.tensor(steps, device=device)
    dist.broadcast(tensor, 0)
    return int(tensor)


if __name__ == "__main__":
    cli.run(main, Args)
