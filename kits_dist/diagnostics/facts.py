"""What is known about a machine, and the result of one check. GB are 10^9 bytes throughout."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple


class Check(NamedTuple):
    """The result for one topic."""

    level: Literal["ok", "warn", "fail"]
    topic: str
    found: str
    fix: str = ""  # a command or a key to set; empty when ok


class Gpu(NamedTuple):
    """A GPU that torch sees."""

    name: str
    capability: tuple[int, int]  # compute capability
    free_gb: float
    error: str = ""  # why a small computation on it failed


class StoreFacts(NamedTuple):
    """A slice store."""

    cases: int
    slices: int
    gb: float
    data: str  # kits, phantom or painted


@dataclass(frozen=True)
class Facts:
    """A machine. The defaults describe one without a GPU about which little is known."""

    system: str = "Linux"  # or Darwin, Windows
    torch: str = ""  # version; empty when torch cannot be imported
    torch_error: str = ""
    cuda: str | None = None  # the CUDA version that torch is built for
    archs: tuple[str, ...] = ()  # the GPUs that it holds code for: sm_90, compute_120, ...
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""  # why torch sees no GPU
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    precision: tuple[str, str] | None = None  # what train.precision=auto selects, and why

    driver_gpus: int = 0  # GPUs that the driver lists, whether or not this process may use them
    driver_cuda: tuple[int, int] | None = None  # the newest CUDA version that the driver supports

    dali: dict[str, str] = field(default_factory=dict)  # installed wheels and their versions
    dali_ran: tuple[str, ...] = ()  # devices on which a small pipeline gave the right result: CPU, GPU
    dali_error: str = ""

    core_ids: tuple[int, ...] = (0,)  # cores that this process may use
    cpu_quota: float | None = None  # cores' worth of time that a container or a job may use
    bf16_cores: bool = False  # the CPU has bfloat16 instructions
    memory_gb: float | None = None  # available to this process
    shm_gb: float | None = None  # size of /dev/shm
    port_free: bool = True

    store: StoreFacts | None = None
    run_free_gb: float | None = None  # space on the disk of the run

    @property
    def num_gpus(self) -> int:
        """The number of GPUs to train on once torch sees them; 0 where they are hidden on purpose."""
        hidden = self.visible in ("", "-1")
        return len(self.gpus) or (0 if hidden else self.driver_gpus)

    @property
    def num_processes(self) -> int:
        """The number of processes that the recommended launch starts."""
        return self.num_gpus or min(2, len(self.core_ids))
