"""Facts -> checks: Python, PyTorch, GPUs, their driver, DALI, precision and the batch that fits."""

import re
from collections import Counter
from collections.abc import Iterable

from kits_dist.diagnostics.facts import Check, Facts, Gpu, Level, version

# Oldest Linux driver of a CUDA major version; any minor version of it then runs ("minor version compatibility").
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html. DALI's wheels ask for the same.
OLDEST_DRIVER = {12: 525, 13: 580}
# The last builds for CUDA 12, and for GPUs before Turing (7.5): none from PyTorch 2.15 on (pytorch#190385).
CUDA12_BUILD = "pip install 'torch<2.15' torchvision --index-url ...  # of CUDA 12.6: pytorch.org/get-started"
CUDA12_CAPABILITIES = ((5, 0), (9, 0))  # lowest and highest major version in it
DALI_WHEELS = {12: "nvidia-dali-cuda120", 13: "nvidia-dali-cuda130"}  # by CUDA major version; one folder, so exclusive
OLDEST_TORCH, OLDEST_DALI = "2.11", "2.3"  # as in pyproject.toml

# Batch 128 of 512x512 through the ResNet34 U-Net: about 25 GB of activations in 16 bits, twice that in 32.
ACTIVATION_GB = {"bf16": 25 / 128, "fp16": 25 / 128, "tf32": 50 / 128, "fp32": 50 / 128}  # per slice
FIXED_GPU_GB = 2.0  # estimate: CUDA context, weights, Adam's moments, DALI's queue

# cudaErrorSystemNotReady, ...DriverMismatch, ...CompatNotSupportedOnDevice (driver_types.h). 802 on a machine with
# NVSwitch means that its fabric manager does not run (pytorch#35710).
CUDA_ERRORS = {
    802: "sudo systemctl restart nvidia-fabricmanager",
    803: "sudo reboot",
    804: "unset LD_LIBRARY_PATH  # it names CUDA compatibility libraries that this GPU cannot use",
}


def python(f: Facts) -> Check:
    found = f"Python {'.'.join(map(str, f.python))}"
    if (3, 11) <= f.python[:2] <= (3, 13):
        return Check("ok", "python", found)
    return Check("fail", "python", f"{found}; 3.11, 3.12 or 3.13 is needed", "PYTHON=python3.13 bash launch/setup.sh")


def torch(f: Facts) -> Check:
    if not f.torch:
        return Check("fail", "torch", f"cannot be imported: {f.torch_error}", "bash launch/setup.sh")
    if version(f.torch) < version(OLDEST_TORCH):
        fix = f"pip install --upgrade 'torch>={OLDEST_TORCH}' torchvision"
        return Check("fail", "torch", f"{f.torch} is older than {OLDEST_TORCH}", fix)
    return Check("ok", "torch", f.torch)


def gpu(f: Facts) -> Check | None:
    if not f.torch:
        return None
    if not f.gpus:
        return _no_gpu(f)
    found = _listed(f.gpus)
    if broken := {i: words for i, words in f.broken.items() if _covered(f, f.gpus[i])}:  # the others: see `kernels`
        words = f"{found}; GPU {_some(broken)} cannot compute: {next(iter(broken.values()))}"
        return Check("fail", "gpu", words, _without(f, f.broken))
    if taken := {i: g for i, g in enumerate(f.gpus) if g.free_gb < 0.8 * g.total_gb}:
        first = next(iter(taken.values()))
        used = f"{first.total_gb - first.free_gb:.0f} of {first.total_gb:.0f} GB"
        return Check("warn", "gpu", f"{found}; other programs hold GPU {_some(taken)} ({used})", _without(f, taken))
    if len(names := Counter(g.name for g in f.gpus)) > 1:
        best = max(names, key=lambda name: sum(g.total_gb for g in f.gpus if g.name == name))
        others = [i for i, g in enumerate(f.gpus) if g.name != best]
        return Check("warn", "gpu", f"{found}; at each step all wait for the slowest", _without(f, others))
    return Check("ok", "gpu", found)


def _no_gpu(f: Facts) -> Check:
    seen = f"nvidia-smi sees {_listed(f.smi_gpus)}"
    if "mismatch" in f.smi_error.lower():  # the driver was updated, the kernel still runs its former module
        return Check("fail", "gpu", f"nvidia-smi: {f.smi_error}", "sudo reboot")
    if f.smi_gpus and f.cuda is None:
        cuda = "12.6" if _driver_cuda_major(f) == 12 else "13.0"
        fix = f"pip install --force-reinstall torch torchvision  # for CUDA {cuda}: pytorch.org/get-started"
        return Check("fail", "gpu", f"{seen}, but torch {f.torch} is a build without CUDA", fix)
    if f.smi_gpus and f.visible is not None:
        level: Level = "fail" if f.meant else "warn"  # on purpose, or a slip
        return Check(level, "gpu", f"{seen}; CUDA_VISIBLE_DEVICES={f.visible!r} hides it", "unset CUDA_VISIBLE_DEVICES")
    if (check := driver(f)) is not None and check.level == "fail":
        seen = seen if f.smi_gpus else "an NVIDIA driver is loaded"
        return Check("fail", "gpu", f"{seen}; torch sees none, the driver is too old", "the next line")
    if f.smi_gpus:
        known = (fix for number, fix in CUDA_ERRORS.items() if f"Error {number}" in f.gpu_error)
        fix = next(known, "python -c 'import torch; torch.zeros(1).cuda()'")
        return Check("fail", "gpu", f"{seen}, torch sees none: {f.gpu_error or 'it does not say why'}", fix)
    if f.driver and f.system == "Linux":
        said = f"; nvidia-smi: {f.smi_error}" if f.smi_error else ", as in a container that was not given one"
        words = f"the NVIDIA driver {f.driver} is loaded, but no GPU reaches this process{said}"
        return Check("fail", "gpu", words, "docker run --gpus all ...")
    return Check("warn", "gpu", "no NVIDIA GPU: training runs on the CPU, fine for the demo", "bash launch/demo.sh")


def driver(f: Facts) -> Check | None:
    have = _driver_cuda_major(f)
    if have is None:
        return None
    runs = ".".join(map(str, f.driver_cuda)) if f.driver_cuda else f"{have}"
    found = f"driver {f.driver or 'of unknown version'} runs CUDA up to {runs}"
    if not f.cuda:
        return Check("ok", "driver", found)
    need = version(f.cuda)[0]
    if f.gpus or have >= need:
        return Check("ok", "driver", f"{found}, torch is built for {f.cuda}: the major version counts")
    oldest = OLDEST_DRIVER.get(need, max(OLDEST_DRIVER.values()))
    found += f"; torch {f.torch} is built for CUDA {f.cuda}, which needs driver {oldest} or newer"
    if have == 12 and all(_in_cuda12_build(g) for g in f.smi_gpus):
        return Check("fail", "driver", f"{found}. Update the driver, or take PyTorch for CUDA 12", _to_cuda12(f))
    return Check("fail", "driver", found, f"install NVIDIA driver {oldest} or newer")


def kernels(f: Facts) -> Check | None:
    """Does this build of torch hold code for these GPUs?"""
    gpus = [g for g in f.gpus or f.smi_gpus if g.capability > (0, 0)]
    if not gpus or not f.archs or not f.cuda:
        return None
    code = " ".join(f.archs)
    missing = next((g for g in gpus if not _covered(f, g)), None)
    if missing is None:
        capabilities = ", ".join(sorted({"{}.{}".format(*g.capability) for g in gpus}))
        return Check("ok", "kernels", f"compute capability {capabilities} is in this torch ({code})")
    words = "{} has compute capability {}.{}".format(missing.name, *missing.capability) + f"; this torch has {code}"
    if _in_cuda12_build(missing):
        return Check("fail", "kernels", words, _to_cuda12(f))
    if missing.capability < CUDA12_CAPABILITIES[0]:
        return Check("fail", "kernels", f"{words}; no build has it, train on the CPU", "export CUDA_VISIBLE_DEVICES=")
    return Check("fail", "kernels", words, "pip install --upgrade torch torchvision")


def dali(f: Facts) -> Check:
    right = DALI_WHEELS.get(version(f.cuda)[0]) if f.cuda else None
    install = f"pip install '{right or DALI_WHEELS[13]}>={OLDEST_DALI}'"
    if not f.dali:
        if f.system != "Linux":
            words = f"none: it does not exist for {f.system}. Training needs it, the other programs do not"
            return Check("warn", "dali", words, "train on Linux, in WSL 2 or in a container")
        return Check("fail", "dali", "NVIDIA DALI is not installed", install)
    found = ", ".join(f"{wheel} {number}" for wheel, number in sorted(f.dali.items()))
    remove = f"pip uninstall -y {' '.join(sorted(f.dali))} &&\n"
    if len(f.dali) > 1:
        return Check("fail", "dali", f"{found}: they overwrite each other in one folder", remove + install)
    wheel, number = next(iter(f.dali.items()))
    if version(number) < version(OLDEST_DALI):
        return Check("fail", "dali", f"{found} is older than {OLDEST_DALI}", install)
    if right and wheel != right:
        harmless = "gpu" in f.dali_ran or not (f.gpus or f.smi_gpus)
        words = f"{found}, but torch is built for CUDA {f.cuda}"
        return Check("warn" if harmless else "fail", "dali", words, remove + install)
    if f.dali_error:
        where = "GPU" if "cpu" in f.dali_ran else "CPU"
        fix = f"pip install --force-reinstall --no-deps {wheel}=={number}"
        return Check("fail", "dali", f"{found}; a small {where} pipeline does not run: {f.dali_error}", fix)
    return Check(
        "ok", "dali", f"{found}; a small pipeline ran on {' and '.join(where.upper() for where in f.dali_ran)}"
    )


def precision(f: Facts) -> Check | None:
    if f.precision is None:
        return None
    words = "train.precision=auto takes {}: {}".format(*f.precision)
    if f.bf16_cores and not f.gpus:
        words += "; this CPU multiplies bf16 itself, train.precision=bf16 is faster here"
    return Check("ok", "precision", words)


def batch(f: Facts) -> Check | None:
    if not f.meant:
        return None
    mode, least = _mode(f), min(g.total_gb for g in f.meant)
    needs = f"128 slices of 512x512 in {mode} take about {128 * ACTIVATION_GB[mode] + FIXED_GPU_GB:.0f} GB"
    if fix := smaller_batch(f):
        return Check("warn", "batch", f"{needs}, a GPU here has {least:.0f}", fix)
    return Check("ok", "batch", f"{needs} of the GPU's {least:.0f}")


def smaller_batch(f: Facts) -> str:
    """Keys that keep the poster's 128 slices a step in less GPU memory; empty when they fit."""
    room = min((g.total_gb for g in f.meant), default=float("inf")) - FIXED_GPU_GB
    size = 128
    while size > 1 and size * ACTIVATION_GB[_mode(f)] > room:
        size //= 2
    return "" if size == 128 else f"data.batch_size={size} optim.accumulate={128 // size}"


def _mode(f: Facts) -> str:
    return f.precision[0] if f.precision and f.gpus else "bf16"


def _driver_cuda_major(f: Facts) -> int | None:
    """CUDA major version that the driver runs; from the driver's own version where its library is not there."""
    if f.driver_cuda:
        return f.driver_cuda[0]
    if not f.driver:
        return None
    return max((cuda for cuda, oldest in OLDEST_DRIVER.items() if version(f.driver)[0] >= oldest), default=11)


def _to_cuda12(f: Facts) -> str:
    old = ["torch", "torchvision", *sorted(wheel for wheel in f.dali if wheel != DALI_WHEELS[12])]
    steps = [f"pip uninstall -y {' '.join(old)}", CUDA12_BUILD]
    if f.system == "Linux":
        steps.append(f"pip install '{DALI_WHEELS[12]}>={OLDEST_DALI}'")
    return "\n".join(steps)


def _in_cuda12_build(g: Gpu) -> bool:
    low, high = CUDA12_CAPABILITIES
    return low <= g.capability < (high[0] + 1, 0)


def _covered(f: Facts, g: Gpu) -> bool:
    return not f.archs or not f.cuda or any(_runs(arch, g.capability) for arch in f.archs)


def _runs(arch: str, capability: tuple[int, int]) -> bool:
    """sm_86 is machine code for 8.6 to 8.9; compute_86 is compiled by the driver for these and all newer."""
    kind, digits, special = re.fullmatch(r"(sm|compute)_(\d+)([a-z]?)", arch).groups()
    code = int(digits[:-1]), int(digits[-1])
    if special == "a":  # e.g. sm_90a: that GPU alone
        return capability == code
    return capability >= code and (capability[0] == code[0] or kind == "compute" and not special)


def _listed(gpus: Iterable[Gpu]) -> str:
    """2 x NAME (51 GB), 1 x OTHER (8 GB)"""
    kinds = Counter((g.name, round(g.total_gb)) for g in gpus)
    return ", ".join(f"{count} x {name} ({gb} GB)" for (name, gb), count in kinds.items())


def _some(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _without(f: Facts, numbers: Iterable[int]) -> str:
    """The setting that leaves these GPUs out; torch counts within one that is set already."""
    names = f.visible.split(",") if f.visible else [str(i) for i in range(len(f.gpus))]
    rest = [name for i, name in enumerate(names) if i not in set(numbers)]
    return f"export CUDA_VISIBLE_DEVICES={','.join(rest)}" if rest else "nvidia-smi  # shows who holds it"
