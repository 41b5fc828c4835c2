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

import importlib.util
from typing import Literal

import torch


def real_backend(backend: str, device: torch.device) -> Literal["dali", "opencv"]:
    """Return the backend that makes the batches on `device` for this value of data.backend.

    On a CPU an image of 512x512 costs DALI's graph 15 core-ms, and our kernels 1.1.
    """
    if backend == "opencv":
        return "opencv"
    return "dali" if backend == "dali" or (device.type == "cuda" and _has_dali()) else "opencv"


def _has_dali() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even of its parent, which PyTorch's wheels for CUDA bring along
        return False


def loader_class(backend: str, device: torch.device) -> type:
    """Return the loader class for this value of data.backend.

    Modules are imported here because DALI is optional and Numba compiles when its kernels are first imported.
    """
    if real_backend(backend, device) == "opencv":
        from kits_dist.data.backends.cpu import CpuLoader

        return CpuLoader
    from kits_dist.data.backends.dali import DaliLoader

    return DaliLoader
