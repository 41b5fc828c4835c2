"""Backends: what turns a HostBatch (slices and drawn parameters) into an augmented Batch on the device.

data.backend   runs on                            code
auto           dali where there is a GPU and
               DALI, else opencv
dali           GPU, or CPU without a GPU          dali.DaliLoader, dali_graph, stacking
opencv         CPU threads (OpenCV, Numba)        cpu.CpuLoader, cpu_kernels
fixed          as auto                            loaders.build_train_loader: one batch, repeated; training speed when
                                                  loading costs nothing

All of them compute what `augment_reference.apply` defines; the tests compare them with it pixel by pixel.
"""

import importlib
import warnings
from typing import Literal

import torch

from kits_dist.utils.packages import NOT_INSTALLED, why_missing


def real_backend(backend: str, device: torch.device) -> Literal["dali", "opencv"]:
    """Return the backend that makes the batches on `device` for this value of data.backend.

    On a CPU an image of 512x512 costs DALI's graph 15 core-ms, and our kernels 1.1.
    """
    if backend == "opencv":
        return "opencv"
    return "dali" if backend == "dali" or (device.type == "cuda" and _has_dali()) else "opencv"


def _has_dali() -> bool:
    """Try the import: a DALI that is installed and broken is as good as none, but it is said."""
    try:
        importlib.import_module("nvidia.dali")
    except Exception as error:  # whatever an import raises: OSError for a library of another CUDA version
        why = why_missing(error, "nvidia.dali")
        if why != NOT_INSTALLED:
            warnings.warn(f"NVIDIA DALI {why}: data.backend=auto takes the CPU threads of opencv instead", stacklevel=2)
        return False
    return True


def loader_class(backend: str, device: torch.device) -> type:
    """Return the loader class for this value of data.backend.

    Modules are imported here because DALI is optional and Numba compiles when its kernels are first imported.
    """
    if real_backend(backend, device) == "opencv":
        from kits_dist.data.backends.cpu import CpuLoader

        return CpuLoader
    from kits_dist.data.backends.dali import DaliLoader

    return DaliLoader
