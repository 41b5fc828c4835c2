"""Machine -> facts: libraries, GPUs, cores, memory, disks, ports. What is absent keeps its default, never an error."""

import contextlib
import ctypes
import os
import platform
import shutil
import socket
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from kits_dist.data.store import Store
from kits_dist.diagnostics.checks import PORT
from kits_dist.diagnostics.facts import Facts, Gpu, StoreFacts
from kits_dist.utils import limits


def probe(store: Store | None, run: Path | None) -> Facts:
    """Collect everything, in a few seconds. `run` is an existing folder."""
    found = torch_facts() | driver_facts() | cpu_facts()
    found |= dali_facts(on_gpu=bool(found.get("gpus")))
    if Path("/dev/shm").is_dir():
        found["shm_gb"] = shutil.disk_usage("/dev/shm").total / 1e9
    if run is not None:
        found["run_free_gb"] = shutil.disk_usage(run).free / 1e9
    return Facts(
        system=platform.system(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        port_free=is_free(PORT),
        store=None if store is None else store_facts(store),
        **found,
    )


def torch_facts() -> dict[str, Any]:
    """Report versions, and whether each GPU computes."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a CUDA library is missing or of another version
        return {"torch_error": _first_line(error)}

    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "archs": tuple(torch.cuda.get_arch_list())}
    with warnings.catch_warnings(record=True) as warned:  # torch warns about what it cannot use
        warnings.simplefilter("always")
        try:
            if torch.cuda.is_available():
                found["gpus"] = tuple(_gpu(i) for i in range(torch.cuda.device_count()))
            found["gpu_error"] = _first_line(warned[0].message) if warned else ""
        except RuntimeError as error:  # CUDA cannot be initialized
            found["gpu_error"] = _first_line(error)
        with contextlib.suppress(ImportError, OSError, RuntimeError):  # accelerate is missing, or the GPU is broken
            from kits_dist.distributed.precision import choose_precision

            chosen = choose_precision("auto", "no")
            found["precision"] = (chosen.mode, chosen.reason)
    return found


def _gpu(index: int) -> Gpu:
    import torch

    about = torch.cuda.get_device_properties(index)
    free = about.total_memory
    error = ""
    try:
        torch.ones(8, device=f"cuda:{index}").sum().item()  # sync
        free = torch.cuda.mem_get_info(index)[0]
    except RuntimeError as failed:
        error = _first_line(failed)
    return Gpu(about.name, (about.major, about.minor), free / 1e9, error)


def driver_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Report what the NVIDIA driver supports, which a build of torch or a container may hide."""
    found: dict[str, Any] = {"driver_gpus": len(list(root.glob("proc/driver/nvidia/gpus/*")))}
    version = ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0:  # needs neither a GPU nor cuInit
            found["driver_cuda"] = (version.value // 1000, version.value % 1000 // 10)  # 13020 is CUDA 13.2
    return found


_PIPELINE = """
import sys
from nvidia.dali import fn, pipeline_def, types
device = sys.argv[1].lower()
@pipeline_def(batch_size=1, num_threads=1, device_id=0 if device == "gpu" else None)
def flipped():
    return fn.flip(fn.constant(idata=7, shape=(8, 8, 1), layout="HWC", dtype=types.UINT8, device=device))
(output,) = flipped().run()
assert (output.as_cpu().as_array() == 7).all(), "wrong pixels"
"""


def dali_facts(on_gpu: bool) -> dict[str, Any]:
    """Report the installed wheels, and whether DALI works: tried in a child process, which a wrong wheel may kill."""
    wheels = {}
    for distribution in metadata.distributions():
        if distribution.name.startswith("nvidia-dali-cuda"):
            wheels[distribution.name] = distribution.version
    ran = []
    error = ""
    if len(wheels) == 1:
        for device in ("CPU", "GPU") if on_gpu else ("CPU",):
            error = pipeline_error(device)
            if error:
                break
            ran.append(device)
    return {"dali": wheels, "dali_ran": tuple(ran), "dali_error": error}


def pipeline_error(device: str) -> str:
    """Run a small pipeline; return why it failed, or an empty string."""
    command = [sys.executable, "-c", _PIPELINE, device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return f"{device}: no answer within 120 s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return f"{device}: {lines[-1]}"


def cpu_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Report cores and memory, within what the control groups of a container or a job allow."""
    found: dict[str, Any] = {"core_ids": limits.core_ids(), "cpu_quota": limits.cpu_quota(root)}
    found["bf16_cores"] = not {"avx512_bf16", "amx_bf16"}.isdisjoint(limits.text_of(root / "proc/cpuinfo").split())
    memory = limits.available_memory(root)
    if memory is not None:
        found["memory_gb"] = memory / 1e9
    return found


def is_free(port: int) -> bool:
    """Return whether a rendezvous can listen at this port."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch: a port just left counts as free
            probe.bind(("", port))
    except OSError:
        return False
    return True


def store_facts(store: Store) -> StoreFacts:
    """Report what a store holds."""
    gb = sum(entry["bytes"] for entry in store.meta["files"].values()) / 1e9
    slices = sum(case.shape[0] for case in store.cases)
    return StoreFacts(len(store.cases), slices, gb, store.meta["data"])


def _first_line(message: object) -> str:
    return (str(message).strip() or type(message).__name__).splitlines()[0]
