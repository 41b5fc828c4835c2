"""Look at PyTorch, the GPUs, their driver and DALI. What is not there is left out of the facts, never an error."""

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

from kits_dist.diagnostics.devices import DALI_WHEELS
from kits_dist.diagnostics.facts import Gpu
from kits_dist.diagnostics.look_host import text_of


def torch_facts() -> dict[str, Any]:
    """Versions, GPUs, and whether each of them really adds numbers."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a CUDA library that is missing or of another version
        return {"torch": "", "torch_error": first_line(error)}
    distributed = torch.distributed.is_available()
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "archs": tuple(torch.cuda.get_arch_list()),
        "gloo": distributed and torch.distributed.is_gloo_available(),
    }
    if distributed and torch.distributed.is_nccl_available():
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    with warnings.catch_warnings(record=True) as warned:  # torch warns of what it cannot use, each time it is asked
        warnings.simplefilter("always")
        try:
            facts |= _gpus()
        except RuntimeError as error:  # the driver's first answer
            facts["gpu_error"] = first_line(error)
        facts.setdefault("gpu_error", next((first_line(warning.message) for warning in warned), ""))
        if not facts.get("broken"):
            facts |= _precision()
    return facts


def _gpus() -> dict[str, Any]:
    import torch

    gpus, broken = [], {}
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(i)
        free = total = about.total_memory
        try:
            torch.ones(8, device=f"cuda:{i}").sum().item()  # sync
            free, total = torch.cuda.mem_get_info(i)
        except RuntimeError as error:
            broken[i] = first_line(error)
        gpus.append(Gpu(about.name, (about.major, about.minor), total / 1e9, free / 1e9))
    facts: dict[str, Any] = {"gpus": tuple(gpus), "broken": broken}
    if len(gpus) > 1 and not broken:
        pairs = combinations(range(len(gpus)), 2)
        facts["no_peer"] = tuple((a, b) for a, b in pairs if not torch.cuda.can_device_access_peer(a, b))
        facts["iommu"] = any(_behind_iommu(torch.cuda.get_device_properties(i)) for i in range(len(gpus)))
        facts["nvlink"] = "GB/s" in _nvidia_smi("nvlink", "--status")[0]
    return facts


def _precision() -> dict[str, Any]:
    with contextlib.suppress(ImportError, RuntimeError):  # accelerate is missing, or the GPU: other lines say so
        from kits_dist.distributed.precision import choose_precision

        chosen = choose_precision("auto", "no")
        return {"precision": (chosen.mode, chosen.reason)}
    return {}


def _behind_iommu(gpu: Any) -> bool:
    """Linux names the kind of translation: `identity` is none, DMA and DMA-FQ are one."""
    address = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
    return text_of(Path("/sys/bus/pci/devices") / address / "iommu_group" / "type").startswith("DMA")


def driver_facts() -> dict[str, Any]:
    """The NVIDIA driver as its library, the kernel and its tool show it; they can contradict each other."""
    facts: dict[str, Any] = {
        "driver_cuda": _driver_cuda(),
        "driver": kernel_driver(text_of(Path("/proc/driver/nvidia/version"))),
    }
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=driver_version,memory.total,compute_cap,name"
        answer, complaint = _nvidia_smi(query, "--format=csv,noheader,nounits")
        facts |= {"smi_error": complaint} if complaint else smi_facts(answer)
    return facts


def kernel_driver(text: str) -> str:
    """550.54.14 of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb ...`; empty when not there."""
    found = re.search(r"NVRM version:.*?\s(\d{3,}\.[\d.]+)\s", text)
    return found[1] if found else ""


def smi_facts(answer: str) -> dict[str, Any]:
    """Lines of `driver, MiB, capability, name`; what a card does not tell reads [N/A]."""
    gpus, driver = [], ""
    for row in answer.strip().splitlines():
        driver, mib, capability, name = (cell.strip() for cell in row.split(",", 3))
        gb = float(mib) * 2**20 / 1e9 if mib.isdigit() else 0.0
        told = re.fullmatch(r"(\d+)\.(\d+)", capability)
        gpus.append(Gpu(name, (int(told[1]), int(told[2])) if told else (0, 0), gb, gb))
    return {"driver": driver, "smi_gpus": tuple(gpus)} if gpus else {}


def _nvidia_smi(*arguments: str) -> tuple[str, str]:
    """(answer, complaint)"""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", type(error).__name__
    return done.stdout, first_line(done.stdout.strip() or done.stderr) if done.returncode else ""


def _driver_cuda() -> tuple[int, int] | None:
    """cuDriverGetVersion needs neither a GPU nor cuInit; 13020 is CUDA 13.2."""
    number = ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(number)) == 0:
            return number.value // 1000, number.value % 1000 // 10
    return None


_PIPELINE = """
import sys
import numpy as np
from nvidia.dali import fn, pipeline_def
gpu = sys.argv[1] == "gpu"
slices = [np.full((8, 8, 1), 7, np.uint8)] * 2
@pipeline_def(batch_size=2, num_threads=1, device_id=0 if gpu else None)
def graph():
    image = fn.external_source(source=lambda: slices, layout="HWC")
    return fn.warp_affine(image.gpu() if gpu else image, matrix=[1.0, 0, 0, 0, 1, 0], size=(8, 8), fill_value=0)
pipeline = graph()
pipeline.build()
(output,) = pipeline.run()
found = output.as_cpu().as_array()
if found.shape != (2, 8, 8, 1) or (found != 7).any():
    sys.exit("Error: wrong pixels")
"""


def dali_facts(on_gpu: bool) -> dict[str, Any]:
    """Which wheel, and does it work: in a process of its own, which a wheel that does not fit may take down."""
    found = {wheel: number for wheel in DALI_WHEELS.values() if (number := installed(wheel))}
    ran: list[str] = []
    error = ""
    for where in ("cpu", "gpu")[: 1 + on_gpu] if len(found) == 1 else ():
        if error := _pipeline_error(where):
            break
        ran.append(where)
    return {"dali": found, "dali_ran": tuple(ran), "dali_error": error}


def _pipeline_error(where: str) -> str:
    try:
        command = [sys.executable, "-c", _PIPELINE, where]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "no answer within 120 s"
    return cause(done.stderr) or f"it ended with code {done.returncode}" if done.returncode else ""


def installed(package: str) -> str | None:
    """Its version."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def first_line(words: object) -> str:
    """Of a message, without the folders in it: they name users."""
    line = (str(words).strip() or type(words).__name__).splitlines()[0]
    line = re.sub(r"\s*\(Triggered internally.*", "", line)
    return re.sub(r"(?<![\w:/.])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:'\"]+)*[/\\](?=[^\s/\\])", "", line)[:300]


def cause(stderr: str) -> str:
    """The line of a traceback that says what happened."""
    rows = [row for row in stderr.splitlines() if re.match(r"[\w.]*(Error|Exception)\b", row)]
    return first_line(rows[-1]) if rows else ""
