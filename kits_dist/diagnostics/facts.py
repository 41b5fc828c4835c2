"""What `kits_dist.doctor` knows of a machine, and what it says of it. GB are 10^9 bytes throughout."""

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Level = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    level: Level
    topic: str
    found: str
    fix: str = ""  # one command or key; empty when ok


class Gpu(NamedTuple):
    name: str
    capability: tuple[int, int]  # compute capability; (0, 0) when not told
    total_gb: float
    free_gb: float


class Disk(NamedTuple):
    free_gb: float
    read_mb_s: float | None  # None: not measured
    cold: bool  # the page cache was told to let go of the files before they were read
    write_mb_s: float | None = None  # to the disk, not to the cache


class StoreFacts(NamedTuple):
    cases: int
    slices: int
    gb: float
    data: str  # kits, phantom or painted


@dataclass(frozen=True)
class Facts:
    """A machine; the defaults are one without a GPU of which little is known."""

    system: str  # Linux, Darwin, Windows
    python: tuple[int, ...]

    torch: str  # version; empty where it cannot be imported, and torch_error says why
    torch_error: str = ""
    cuda: str | None = None  # CUDA that torch is built for
    archs: tuple[str, ...] = ()  # code in that build: sm_90, compute_120, ...
    gpus: tuple[Gpu, ...] = ()  # that torch sees
    broken: dict[int, str] = field(default_factory=dict)  # of these, the ones that could not compute, and their words
    gpu_error: str = ""  # what torch said when it saw none
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    precision: tuple[str, str] | None = None  # what train.precision=auto takes, and why
    bf16_cores: bool = False  # the CPU multiplies bfloat16 itself (AVX512-BF16 or AMX)
    nccl: str = ""  # version
    gloo: bool = True
    no_peer: tuple[tuple[int, int], ...] = ()  # pairs of GPUs that cannot read each other's memory
    nvlink: bool = False
    iommu: bool = False  # it translates the GPUs' addresses

    driver: str = ""  # version, from nvidia-smi or the kernel
    driver_cuda: tuple[int, int] | None = None  # newest CUDA that the driver runs
    smi_gpus: tuple[Gpu, ...] = ()  # that nvidia-smi sees
    smi_error: str = ""

    dali: dict[str, str] = field(default_factory=dict)  # installed wheels and their versions
    dali_ran: tuple[str, ...] = ()  # where a tiny pipeline came to the right result: cpu, gpu
    dali_error: str = ""

    core_ids: tuple[int, ...] = (0,)  # that this process may use
    cpu_quota: float | None = None  # cores' worth of time that a container allows
    memory_gb: float | None = None  # of the machine or, where less, of the container
    available_gb: float | None = None
    container_limit: bool = False  # memory_gb is a container's
    shm_gb: float | None = None  # size of /dev/shm; None where there is none
    port_free: bool = True
    loopback_error: str = ""  # why no port at all can be opened

    store: StoreFacts | None = None
    store_disk: Disk | None = None
    run_disk: Disk | None = None

    accelerate: str = ""
    default_config: dict | None = None  # accelerate's own, of this user; {} when it cannot be read
    encoder: str = "resnet34"
    encoder_cached: bool = False

    @property
    def meant(self) -> tuple[Gpu, ...]:
        """The GPUs to train on, once torch sees them: none where they are hidden on purpose."""
        return self.gpus or (() if self.visible in ("", "-1") else self.smi_gpus)

    @property
    def processes(self) -> int:
        """That the recommended launch starts."""
        return len(self.meant) or min(2, len(self.core_ids))


def version(text: str) -> tuple[int, ...]:
    """Major and minor: 2.15.0+cu132 -> (2, 15)."""
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])


def plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")
