"""Backends: what turns a HostBatch (slices and drawn parameters) into an augmented Batch on the device.

data.backend   runs on                         code
dali           GPU, or CPU without a GPU       dali.DaliLoader
opencv         CPU threads (OpenCV, Numba)     cpu.CpuLoader, cpu_kernels
fixed          as dali, or as opencv where     loaders.build_train_loader: one batch, repeated; training speed when
               DALI is not installed           loading costs nothing

All of them compute what `augment_reference.apply` defines; the tests compare them with it pixel by pixel.
"""

from typing import Literal


def real_backend(backend: str) -> Literal["dali", "opencv"]:
    """Return the backend that makes the batches for this value of data.backend."""
    if backend == "opencv":
        return "opencv"
    if backend == "fixed":
        try:
            import nvidia.dali  # noqa: F401
        except ImportError:
            return "opencv"
    return "dali"


def loader_class(backend: str) -> type:
    """Return the loader class for this value of data.backend.

    Modules are imported here because DALI is optional and Numba compiles when its kernels are first imported.
    """
    if real_backend(backend) == "opencv":
        from kits_dist.data.backends.cpu import CpuLoader

        return CpuLoader
    from kits_dist.data.backends.dali import DaliLoader

    return DaliLoader
