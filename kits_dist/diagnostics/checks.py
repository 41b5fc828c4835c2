"""Facts -> checks: what a machine lacks for training, and what to set. Pure functions of `Facts`."""

from collections import Counter

from kits_dist.diagnostics.facts import Check, Facts

# Peak of a step of the default U-Net on 128 slices of 512x512, counted on fake tensors: benchmarks/lib/roofline.py
BATCH = 128
STEP_GB = {"bf16": 27.5 / BATCH, "fp16": 27.5 / BATCH, "tf32": 53.7 / BATCH, "fp32": 53.7 / BATCH}  # per slice
FIXED_GPU_GB = 2.0  # estimate: CUDA context, weights, Adam's moments, DALI's queue

CORES_PER_GPU = 2  # one for the training thread, one for the loader and DALI's copies
GPU_PROCESS_GB = 3.0  # estimate of host memory: CUDA's context and page-locked batches
CPU_PROCESS_GB = 1.5  # 1.0 measured in the demo
KITS_GB = 34.2  # the axial store of KiTS21: 65,164 slices, image and label
RUN_GB = 2.0  # a checkpoint of the default network takes 0.3 GB; two are kept, the best, one being written, and logs
NCCL_SHM_GB = 1.0  # NCCL's user guide, "Shared memory": it may fail to start with docker's default of 64 MB
PORT = 29500  # the default rendezvous port of torchrun and accelerate


def check_all(f: Facts) -> list[Check]:
    """Return one check for each topic that applies to this machine, in the order in which to fix them."""
    if not f.torch:
        return [Check("fail", "torch", f"cannot be imported: {f.torch_error}", "bash launch/setup.sh")]
    software = [_gpu(f), _driver(f), _dali(f), _precision(f), _batch(f)]
    hardware = [_cores(f), _memory(f), _store(f), _run(f), _shm(f), _port(f)]
    return [Check("ok", "torch", f.torch), *(check for check in software + hardware if check is not None)]


def launch_command(f: Facts, store: str, run: str) -> str:
    """Return the command that trains on this machine, with the launcher file and the batch size that fit it."""
    config = "kidney" if f.num_gpus else "demo"
    keys = f"config=configs/{config}.yaml data.store={store} run={run} {_smaller_batch(f)}"
    return f"accelerate launch --config_file {_launcher_file(f)} -m kits_dist.train \\\n  {keys}".rstrip()


def _launcher_file(f: Facts) -> str:
    if f.num_gpus > 1:
        return f"launch/ddp.yaml --num_processes {f.num_gpus}"
    return "launch/single.yaml" if f.num_processes == 1 else "launch/cpu.yaml"


def _gpu(f: Facts) -> Check | None:
    if not f.gpus:
        return _no_gpu(f)
    found = ", ".join(f"{count} x {name}" for name, count in Counter(g.name for g in f.gpus).items())
    broken = [i for i, g in enumerate(f.gpus) if g.error]
    if not broken:
        return Check("ok", "gpu", found)

    gpu = f.gpus[broken[0]]
    text = f"{found}; GPU {','.join(map(str, broken))} cannot compute: {gpu.error}"
    if "no kernel image" not in gpu.error:
        return Check("fail", "gpu", text, "nvidia-smi  # then leave it out: export CUDA_VISIBLE_DEVICES=...")
    capability = "{}.{}".format(*gpu.capability)
    text += f". Its compute capability is {capability}, this torch holds code for {' '.join(f.archs)}"
    fix = f"pip install --force-reinstall torch torchvision  # a build for {capability}: pytorch.org/get-started"
    return Check("fail", "gpu", text, fix)


def _no_gpu(f: Facts) -> Check:
    if not f.driver_gpus:
        return Check("warn", "gpu", "no NVIDIA GPU: training runs on the CPU, fine for the demo", "bash launch/demo.sh")
    found = f"the NVIDIA driver lists {f.driver_gpus}"
    if f.cuda is None:
        fix = "pip install --force-reinstall torch torchvision  # a CUDA build: pytorch.org/get-started"
        return Check("fail", "gpu", f"{found}, but torch {f.torch} is a build without CUDA", fix)
    if f.visible is not None:
        level = "fail" if f.num_gpus else "warn"  # an empty value hides them on purpose
        text = f"{found}, hidden by CUDA_VISIBLE_DEVICES={f.visible!r}"
        return Check(level, "gpu", text, "unset CUDA_VISIBLE_DEVICES")
    text = f"{found}, but torch sees none: {f.gpu_error or 'no reason given'}"
    return Check("fail", "gpu", text, "docker run --gpus all ...  # SLURM: --gres=gpu:1; after a driver update: reboot")


def _driver(f: Facts) -> Check | None:
    if f.driver_cuda is None or f.cuda is None:
        return None
    major, minor = f.driver_cuda
    found = f"supports CUDA up to {major}.{minor}; torch {f.torch} is built for CUDA {f.cuda}"
    # A driver runs all minor versions: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
    if major >= _major(f.cuda):
        return Check("ok", "driver", found)
    fix = (
        "update the NVIDIA driver, or\n"
        f"pip install --force-reinstall torch torchvision  # for CUDA {major}: pytorch.org/get-started\n"
        f"pip install nvidia-dali-cuda{major}0"
    )
    return Check("fail", "driver", f"{found}, which needs a newer driver", fix)


def _dali(f: Facts) -> Check:
    wanted = f"nvidia-dali-cuda{_major(f.cuda)}0" if f.cuda else ""
    install = f"pip install {wanted or 'nvidia-dali-cuda130'}"
    if not f.dali and f.system != "Linux":
        return Check("warn", "dali", f"NVIDIA DALI does not exist for {f.system}", "data.backend=opencv")
    if not f.dali:
        return Check("fail", "dali", "NVIDIA DALI is not installed", install)

    found = ", ".join(f"{wheel} {version}" for wheel, version in sorted(f.dali.items()))
    reinstall = f"pip uninstall -y {' '.join(sorted(f.dali))} &&\n{install}"
    if len(f.dali) > 1:
        return Check("fail", "dali", f"{found}: they overwrite each other in one folder", reinstall)
    if wanted and wanted not in f.dali:
        harmless = "GPU" in f.dali_ran or not f.num_gpus
        text = f"{found}, but torch is built for CUDA {f.cuda}"
        return Check("warn" if harmless else "fail", "dali", text, reinstall)
    if f.dali_error:
        return Check("fail", "dali", f"{found}; a small pipeline fails: {f.dali_error}", reinstall)
    return Check("ok", "dali", f"{found}; a small pipeline ran on {' and '.join(f.dali_ran)}")


def _precision(f: Facts) -> Check | None:
    if f.precision is None:
        return None
    text = "train.precision=auto selects {}: {}".format(*f.precision)
    if f.bf16_cores and not f.gpus:
        text += "; this CPU has bf16 instructions, train.precision=bf16 is faster here"
    return Check("ok", "precision", text)


def _batch(f: Facts) -> Check | None:
    if not f.gpus or f.precision is None:
        return None
    needed = BATCH * STEP_GB[f.precision[0]] + FIXED_GPU_GB
    found = f"{BATCH} slices of 512x512 in {f.precision[0]} take about {needed:.0f} GB"
    text = f"{found}; {min(g.free_gb for g in f.gpus):.0f} GB are free"
    fix = _smaller_batch(f)
    return Check("warn" if fix else "ok", "batch", text, fix)


def _smaller_batch(f: Facts) -> str:
    """Return keys that keep the poster's 128 slices a step in less GPU memory; empty when they fit."""
    if not f.gpus or f.precision is None:
        return ""
    available = min(g.free_gb for g in f.gpus) - FIXED_GPU_GB
    size = BATCH
    while size > 1 and size * STEP_GB[f.precision[0]] > available:
        size //= 2
    return "" if size == BATCH else f"data.batch_size={size} optim.accumulate={BATCH // size}"


def _cores(f: Facts) -> Check:
    number = len(f.core_ids)
    if f.cpu_quota is not None and f.cpu_quota < number:
        ids = ",".join(map(str, f.core_ids[: max(1, int(f.cpu_quota))]))
        text = f"{number}, but a quota of {f.cpu_quota:g}: {number} threads would wait for each other"
        return Check("warn", "cores", text, f"taskset -c {ids} accelerate launch ...")
    found = f"{number} for {f.num_processes} {'process' if f.num_processes == 1 else 'processes'}"
    if number < CORES_PER_GPU * f.num_gpus:
        text = f"{found}: with fewer than {CORES_PER_GPU} each the GPU may wait for data"
        return Check("warn", "cores", text, f"--num_processes {max(1, number // CORES_PER_GPU)}, or ask for more cores")
    return Check("ok", "cores", found)


def _memory(f: Facts) -> Check:
    if f.memory_gb is None:
        return Check("ok", "memory", "unknown on this system")
    found = f"{f.memory_gb:.1f} GB available; training takes about {_processes_gb(f):g}"
    if f.memory_gb < _processes_gb(f):
        return Check("warn", "memory", found, "--num_processes 1, or close other programs")
    return Check("ok", "memory", found)


def _store(f: Facts) -> Check | None:
    if f.store is None:
        return None
    store = f.store
    found = f"{store.cases} cases, {store.slices:,} slices, {store.gb:.2f} GB, data: {store.data}"
    if f.memory_gb is None or f.memory_gb - _processes_gb(f) >= store.gb:  # then the page cache holds it
        return Check("ok", "store", found)
    text = f"{found}: more than the memory that training leaves, so every epoch reads it from the disk"
    return Check("warn", "store", text, "data.store=DIR on a local SSD, or data.slices=kidney")


def _run(f: Facts) -> Check | None:
    if f.run_free_gb is None:
        return None
    found = f"{f.run_free_gb:.1f} GB free; a run takes about {RUN_GB:g} GB, the store of KiTS21 {KITS_GB}"
    if f.run_free_gb < RUN_GB:
        return Check("fail", "run", found, "run=DIR on another disk")
    return Check("ok", "run", found)


def _shm(f: Facts) -> Check | None:
    # The loader starts no processes; only NCCL between GPUs needs shared memory.
    if f.shm_gb is None or f.num_gpus < 2:
        return None
    found = f"/dev/shm has {f.shm_gb:.2f} GB"
    if f.shm_gb >= NCCL_SHM_GB:
        return Check("ok", "shm", found)
    return Check("warn", "shm", f"{found}: too little for NCCL between GPUs", "docker run --shm-size=1g ...")


def _port(f: Facts) -> Check:
    if f.port_free:
        return Check("ok", "port", f"{PORT} is free")
    text = f"{PORT} is in use. launch/*.yaml take any free port; multinode.yaml or a launch without a file needs"
    return Check("warn", "port", text, "--main_process_port 0  # several machines: a free one, the same on each")


def _processes_gb(f: Facts) -> float:
    return f.num_processes * (GPU_PROCESS_GB if f.num_gpus else CPU_PROCESS_GB)


def _major(cuda: str) -> int:
    return int(cuda.split(".")[0])
