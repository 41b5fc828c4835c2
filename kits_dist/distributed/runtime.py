"""What a run starts on: process group, device, precision, DDP settings, seeds."""

import contextlib
import faulthandler
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, GradientAccumulationPlugin

from kits_dist.config import TrainConfig
from kits_dist.distributed import gpu_memory, launcher, rendezvous
from kits_dist.distributed.precision import Precision, launched_precision
from kits_dist.distributed.ranks import Ranks, launched_ranks
from kits_dist.utils.errors import InputError


class Runtime(NamedTuple):
    """What `start` set up for this process."""

    accelerator: Accelerator
    precision: Precision
    ranks: Ranks
    image_dtype: torch.dtype  # of batches: float16 in mixed precision on a GPU, else float32

    @property
    def device(self) -> torch.device:
        """The device that this process trains on."""
        return self.accelerator.device


def start(train: TrainConfig, accumulate: int, run: Path, seed: int) -> Runtime:
    """Join the process group, choose the precision and seed everything.

    accumulate   optim.accumulate, compared with the launcher's
    run          run folder, for the trackers

    Raises InputError when launcher and configuration contradict each other, or the processes do not see each other;
    JobFailed when one is missing.
    """
    # a mapped file that is cut short while it is read ends the process by SIGBUS: print at least where
    faulthandler.enable()
    launched = launched_ranks()
    if launched.local_rank >= max(1, torch.cuda.device_count()) and torch.cuda.is_available():
        raise InputError(
            f"LOCAL_RANK={launched.local_rank}, but this process sees {torch.cuda.device_count()} GPUs. Start one "
            "process per GPU, or show it all GPUs of the machine."
        )
    options = launcher.launcher_options()
    launcher.refuse_contradictions(options, accumulate, train.compile)
    precision = launched_precision(train)
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    if torch.cuda.is_available():
        gpu_memory.use_expandable_segments()
    # Before Accelerator, which would wait half an hour for a missing rank without naming it, and joins what it finds.
    rendezvous.join("nccl" if torch.cuda.is_available() else "gloo", train.timeout_s)
    try:
        accelerator = Accelerator(
            mixed_precision=precision.autocast,
            # without a GPU, two launched processes would otherwise each take themselves for the only one
            cpu=not torch.cuda.is_available(),
            log_with="tensorboard",
            project_dir=str(run),
            kwargs_handlers=[ddp_settings(train)],
            # counted by the train loop; accelerate would divide the loss a second time
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    except ValueError as error:  # of a variable of its own that it cannot read
        names = sorted(name for name in os.environ if name.startswith("ACCELERATE_"))
        raise InputError(
            f"accelerate cannot start: {error}. Set or unset what it reads: {', '.join(names) or 'nothing is set'}"
        ) from error
    launcher.refuse_other_world_size(options, launched.world, accelerator.num_processes)
    ranks = launched._replace(local_rank=accelerator.local_process_index)
    if accelerator.device.type == "cpu":
        torch.set_num_threads(ranks.cores)  # torchrun sets OMP_NUM_THREADS=1
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision.mode != "fp32"
    torch.backends.cudnn.benchmark = not train.deterministic
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    half = accelerator.device.type == "cuda" and precision.autocast != "no"
    return Runtime(accelerator, precision, ranks, torch.float16 if half else torch.float32)


def reduce_sum(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all ranks, on each of them. All ranks must call it."""
    return cast(torch.Tensor, accelerator.reduce(tensor, "sum"))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what the network draws in a step (dropout) a function of these three numbers alone.

    So it is the same after a resume and differs between ranks. Never waits for the device.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


@contextlib.contextmanager
def report_nondeterminism(report: Callable[[str], None]) -> Iterator[None]:
    """Call `report` once for each operator without a deterministic kernel, about which torch only warns."""
    former = warnings.showwarning
    reported = set()

    def show(message: Warning | str, *place: Any) -> None:
        sentence = str(message).split(", but ")[0]
        if "deterministic" in sentence and sentence not in reported:
            reported.add(sentence)
            report(sentence)
        former(message, *place)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = former


def ddp_settings(train: TrainConfig) -> DistributedDataParallelKwargs:
    """Return how DDP exchanges gradients."""
    return DistributedDataParallelKwargs(
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # batch norm statistics are copied from rank 0 before validation and saving
        # no bucket rebuild after the first step, which would change the order of summation on a resumed run
        find_unused_parameters=train.deterministic,
        # always passed on: torch makes its first bucket 1 MB when 25 is left to its default
        bucket_cap_mb=train.bucket_mb,
        static_graph=train.static_graph,
        comm_hook=DDPCommunicationHookType(_HOOKS[train.gradients]),
    )


_HOOKS = {"fp32": "no", "bf16": "bf16"}
