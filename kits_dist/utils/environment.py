"""What makes a number reproducible: hardware, versions and the commit of this code. No host, user or path names."""

import contextlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from kits_dist.utils.limits import available_cores


def environment() -> dict:
    """Return the hardware, the versions and the commit, for environment.json and the lines of benchmarks."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "gpu": gpus[0] if gpus else None,
        "gpus": len(gpus),
        "cpu": _cpu_name(),
        "cpu_cores": available_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{short: _version(names) for short, names in _PACKAGES.items()},
        **commit(),
    }


_PACKAGES = {
    "accelerate": ("accelerate",),
    "smp": ("segmentation-models-pytorch",),
    "dali": ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    "numpy": ("numpy",),
    "kits_dist": ("kits-dist",),
}


_RESULTS = ":(top,exclude)benchmarks/results"  # results that this code has just written do not make it dirty


def commit() -> dict:
    """Return {"commit", "dirty"} of the checkout that this code runs from; None outside a checkout.

    A package that was installed inside another project's checkout has none: git must track this very file.
    """
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--", ":/", _RESULTS], capture_output=True, text=True, check=True
        )
        return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _version(packages: tuple[str, ...]) -> str | None:
    """Return the version of the first package that is installed."""
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
