"""What a run starts on: the process group, devices, precision and why, seeds."""

import contextlib
import faulthandler
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, GradientAccumulationPlugin

from kits_dist.config import TrainConfig
from kits_dist.distributed import launcher, rendezvous
from kits_dist.distributed.precision import Precision, launched_precision
from kits_dist.distributed.ranks import Ranks
from kits_dist.utils.parallel import available_cores


class Runtime(NamedTuple):
    accelerator: Accelerator
    precision: Precision
    ranks: Ranks
    image_dtype: torch.dtype  # of batches: float16 in mixed precision on a GPU, else float32

    @property
    def device(self) -> torch.device:
        return self.accelerator.device


def start(train: TrainConfig, accumulate: int, run: Path, seed: int) -> Runtime:
    """Join the process group, choose precision, seed everything.

    Raises InputError when launcher and configuration contradict each other, or the processes do not see each other;
    JobFailed when one is missing.
    """
    faulthandler.enable()  # a mapped file cut short between two looks ends the process by SIGBUS: say at least where
    wishes = launcher.asked()
    launcher.refuse_contradictions(wishes, accumulate, train.compile)
    precision = launched_precision(train)
    ddp = exchange(train)
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # Before Accelerator, which would wait half an hour for a missing rank without naming it, and joins what it finds.
    rendezvous.join("nccl" if torch.cuda.is_available() else "gloo", train.timeout_s)
    accelerator = Accelerator(
        mixed_precision=precision.autocast,
        # Without this two launched processes without a GPU would each believe they are alone.
        cpu=not torch.cuda.is_available(),
        log_with="tensorboard",
        project_dir=str(run),
        kwargs_handlers=[ddp],
        # counted by the train loop; accelerate would divide the loss a second time
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    launcher.refuse_other_world_size(wishes, launcher.whole_number("WORLD_SIZE", 1), accelerator.num_processes)
    local_world = launcher.whole_number("LOCAL_WORLD_SIZE", accelerator.num_processes)
    if accelerator.device.type == "cpu":
        torch.set_num_threads(max(1, available_cores() // local_world))  # torchrun sets OMP_NUM_THREADS=1
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision.mode != "fp32"
    torch.backends.cudnn.benchmark = not train.deterministic
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    half = accelerator.device.type == "cuda" and precision.autocast != "no"
    ranks = Ranks(accelerator.process_index, accelerator.num_processes, accelerator.local_process_index, local_world)
    return Runtime(accelerator, precision, ranks, torch.float16 if half else torch.float32)


def seed_step(seed: int, step: int, rank: int) -> None:
    """What the network draws in a step (dropout) depends on nothing else: it is the same after a resume, and each rank
    drops others. Waits for no device."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


@contextlib.contextmanager
def unrepeatable(tell: Callable[[str], None]) -> Iterator[None]:
    """While entered, `tell` hears once of each kernel that has no deterministic form, of which torch only warns."""
    former, told = warnings.showwarning, set()

    def show(message: Warning | str, *place: Any) -> None:
        words = str(message).split(", but ")[0]
        if "deterministic" in words and words not in told:
            told.add(words)
            tell(words)
        former(message, *place)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = former


def exchange(train: TrainConfig) -> DistributedDataParallelKwargs:
    """How DDP exchanges gradients."""
    return DistributedDataParallelKwargs(
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # batch norm statistics are taken from rank 0 once, before validation
        # no bucket rebuild after the first step, which would change the order of summation on a resumed run
        find_unused_parameters=train.deterministic,
        bucket_cap_mb=train.bucket_mb,  # Accelerate leaves 25 to torch, whose first bucket is then 1 MB
        static_graph=train.static_graph,
        comm_hook=DDPCommunicationHookType(_HOOKS[train.gradients]),
    )


_HOOKS = {"fp32": "no", "bf16": "bf16"}
