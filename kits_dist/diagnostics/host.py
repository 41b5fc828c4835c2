"""Facts -> checks: cores, memory, disks, and what processes need to find each other and their weights."""

from kits_dist.diagnostics.devices import smaller_batch
from kits_dist.diagnostics.facts import Check, Disk, Facts, Level, plural, version

OLDEST_ACCELERATE = "1.13"  # as in pyproject.toml
# An H200 is expected to train on 1,450 slices/s of 512x512 in bf16, smaller GPUs on fewer; image and label take a byte
# a pixel each. Two cores without a GPU stay below 40 such slices/s.
GPU_MB_S = 1450 * 2 * 512 * 512 / 1e6
CPU_MB_S = 40 * 2 * 512 * 512 / 1e6
# One thread hands out 4,400-6,400 mapped slices/s, a third of a core at 1,450/s; beside it run the training thread,
# which launches kernels, and DALI's copying: two cores can do it, four have room for validation and TensorBoard.
CORES_PER_GPU = (2, 4)
CPU_PROCESS_GB = 1.5  # 1.0 measured in the demo
GPU_PROCESS_GB = 3.0  # estimate: CUDA's context and page-locked batches beside it
KITS_GB = 34.2  # the store of KiTS21: 65,164 slices, image and label
RUN_GB = 2.0  # a checkpoint of the default network is 0.3 GB; two kept, the best, one half-written, and the logs
NCCL_SHM_GB = 1.0  # NCCL's user guide, "Shared memory": with docker's 64 MB it may not start; give --shm-size=1g
PORT = 29500  # where torchrun and accelerate meet unless told otherwise


def launch_command(f: Facts, store: str, run: str) -> str:
    """What to type on this machine."""
    program = f"accelerate launch --config_file {_yaml(f)} -m kits_dist.train"
    keys = [f"config=configs/{'kidney' if f.meant else 'demo'}.yaml", f"data.store={store}", f"run={run}"]
    return f"{program} \\\n  {' '.join([*keys, smaller_batch(f)])}".rstrip()


def _yaml(f: Facts) -> str:
    if len(f.meant) > 1:  # ddp.yaml says eight
        return "launch/ddp.yaml" + (f" --num_processes {len(f.meant)}" if len(f.meant) != 8 else "")
    return "launch/single.yaml" if f.processes == 1 else "launch/cpu.yaml"


def cores(f: Facts) -> Check:
    number = len(f.core_ids)
    if f.cpu_quota is not None and f.cpu_quota < number:
        some = f.core_ids[: max(1, int(f.cpu_quota))]
        a_range = len(some) > 1 and some[-1] - some[0] + 1 == len(some)
        ids = f"{some[0]}-{some[-1]}" if a_range else ",".join(map(str, some))
        words = f"{number}, but a container's quota of {f.cpu_quota:g}: threads made for {number} would stall"
        return Check("warn", "cores", words, f"taskset -c {ids} accelerate launch ...")
    if not f.meant:
        if number > 1:
            return Check("ok", "cores", f"{number}; launch/cpu.yaml divides them between 2 processes")
        return Check("warn", "cores", "1, so one process and not two", "--config_file launch/single.yaml")
    least, good = CORES_PER_GPU
    found = f"{number} for {plural(len(f.meant), 'GPU')}, {number / len(f.meant):.3g} each"
    if number < least * len(f.meant):
        fix = f"--num_processes {max(1, number // least)}" if len(f.meant) > 1 else "#SBATCH --cpus-per-task=4"
        return Check("warn", "cores", f"{found}: below {least} the loader may keep a GPU waiting", fix)
    return Check("ok", "cores", found + (f": enough, {good} leave room" if number < good * len(f.meant) else ""))


def memory(f: Facts) -> Check:
    if f.memory_gb is None or f.available_gb is None:
        return Check("ok", "memory", "how much is not known on this system")
    limit = " that the container may use" if f.container_limit else ""
    found = f"{f.available_gb:.1f} GB available of {f.memory_gb:.1f}{limit}"
    if f.available_gb < _processes_gb(f):
        words = f"{found}; training takes about"
        fewer = max(1, int(f.available_gb / _processes_gb(f) * f.processes))
        fix = f"--num_processes {fewer}" if f.processes > 1 else "close other programs"
        return Check("warn", "memory", f"{words} {_processes_gb(f):g} GB", fix)
    if _cached(f):
        return Check("ok", "memory", f"{found}: {_data(f)} stays there once read")
    words = f"{found}: {_data(f)} is more, so each epoch reads the disk again"
    if f.store is None:
        return Check("ok", "memory", words)
    if f.store_disk and (f.store_disk.read_mb_s or 0) >= _needed_mb_s(f):
        return Check("ok", "memory", f"{words}, which is fast enough")
    return Check("warn", "memory", words, "data.slices=kidney")


def store(f: Facts) -> Check | None:
    if f.store is None:
        return None
    words = f"{plural(f.store.cases, 'case')}, {f.store.slices:,} slices, {f.store.gb:.2f} GB, data: {f.store.data}"
    return Check("ok", "store", f"{words}; no file missing or cut short")


def store_disk(f: Facts) -> Check | None:
    return _reading(f, f.store_disk, "disk", "the store's disk ") if f.store_disk else None


def run_disk(f: Facts) -> Check | None:
    disk = f.run_disk
    if disk is None:
        return None
    found = f"{disk.free_gb:.1f} GB free where run= lies"
    found += f", written at {disk.write_mb_s:,.0f} MB/s" if disk.write_mb_s else ""
    if disk.free_gb < RUN_GB:
        return Check("fail", "run", f"{found}; checkpoints and logs take about {RUN_GB:g}", "run=DIR on another disk")
    if f.store_disk is not None or disk.read_mb_s is None:
        return Check("ok", "run", found)
    return _reading(f, disk, "run", f"{found}; it ")


def _reading(f: Facts, disk: Disk, topic: str, begin: str) -> Check:
    """Is this disk fast enough for a store?"""
    if disk.read_mb_s is None:
        return Check("ok", topic, f"{begin}holds too little of it to time reading")
    need = _needed_mb_s(f)
    cold = "page cache emptied first" if disk.cold else "perhaps from the page cache"
    found = f"{begin}reads {disk.read_mb_s:,.0f} MB/s in slices at random ({cold}), training here up to {need:,.0f}"
    if disk.read_mb_s >= need:
        return Check("ok", topic, found)
    if _cached(f):
        minutes = (f.store.gb if f.store else KITS_GB) * 1000 / disk.read_mb_s / 60
        return Check("ok", topic, f"{found}; the first epoch waits for it, at least {minutes:.1f} minutes")
    return Check("warn", topic, f"{found}: the disk is the slow side", "data.store=DIR on a local SSD")


def shm(f: Facts) -> Check | None:
    if f.shm_gb is None:
        return None
    found = f"/dev/shm has {f.shm_gb:.1f} GB" if f.shm_gb >= 1 else f"/dev/shm has {f.shm_gb * 1000:.0f} MB"
    if f.shm_gb >= NCCL_SHM_GB:
        return Check("ok", "shm", found)
    if len(f.meant) > 1:
        words = f"{found}: too little for NCCL between {len(f.meant)} GPUs"
        return Check("warn", "shm", words, "docker run --shm-size=1g ...")
    return Check("ok", "shm", f"{found}: enough, only NCCL between GPUs needs more (the loader starts no processes)")


def port(f: Facts) -> Check:
    if f.loopback_error:
        words = f"no port can be opened ({f.loopback_error}), so that processes cannot meet"
        return Check("fail", "port", words, "--config_file launch/single.yaml")
    if f.port_free:
        return Check("ok", "port", f"{PORT} is free; launch/*.yaml take any free one, multinode.yaml this one")
    words = f"{PORT} is taken. launch/*.yaml take any free one; multinode.yaml or a launch without a file needs"
    return Check("warn", "port", words, "--main_process_port 0  # several machines: a free one, the same on each")


def processes(f: Facts) -> Check | None:
    """What they talk through: NCCL between GPUs, gloo between CPU processes."""
    if not f.torch:
        return None
    if not f.gpus:
        if f.gloo:
            return Check("ok", "gloo", "processes on the CPU talk through it")
        return Check("fail", "gloo", "this torch is built without it", "--config_file launch/single.yaml")
    if len(f.gpus) == 1:
        return Check("ok", "nccl", f"{f.nccl or 'none'}, not needed for one GPU")
    if not f.nccl:
        level: Level = "fail" if f.system == "Linux" else "warn"
        return Check(level, "nccl", f"this torch is built without it; {len(f.gpus)} GPUs", "--num_processes 1")
    if f.no_peer:
        pairs = ", ".join(f"{a}-{b}" for a, b in f.no_peer[:3]) + (", ..." if len(f.no_peer) > 3 else "")
        words = f"{f.nccl}; GPUs {pairs} cannot read each other's memory: NCCL goes through the host, which is slower"
        return Check("warn", "nccl", words, "nvidia-smi topo -p2p r")
    if f.iommu and not f.nvlink:
        # NCCL's user guide, "PCI Access Control Services", and nccl#2079: a hang where CUDA claims peer access
        words = f"{f.nccl}; an IOMMU stands between the GPUs. If the first step never ends, start with"
        return Check("warn", "nccl", words, "NCCL_P2P_DISABLE=1 accelerate launch ...")
    return Check("ok", "nccl", f"{f.nccl}; all {len(f.gpus)} GPUs read each other's memory")


def launcher(f: Facts) -> Check:
    if version(f.accelerate) < version(OLDEST_ACCELERATE):
        words = f"accelerate {f.accelerate or 'is not installed'}; {OLDEST_ACCELERATE} is needed"
        return Check("fail", "launcher", words, f"pip install --upgrade 'accelerate>={OLDEST_ACCELERATE}'")
    found = f"accelerate {f.accelerate}"
    if f.default_config is None:
        return Check("ok", "launcher", f"{found}; no default configuration of its own that could interfere")
    if asks := _contradictions(f, f.default_config):
        words = f"{found}; its default configuration asks for {', '.join(asks)}. Launch with"
        return Check("warn", "launcher", words, f"--config_file {_yaml(f)}")
    return Check("ok", "launcher", f"{found}; its default configuration does not interfere")


def _contradictions(f: Facts, config: dict) -> list[str]:
    """`NO` and `no` without quotes are False in yaml."""
    if not config:
        return ["something unreadable"]
    asks = []
    if (kind := config.get("distributed_type", "NO")) not in ("NO", "MULTI_GPU", False):
        asks.append(str(kind))
    if (mixed := config.get("mixed_precision", "no")) not in ("no", "fp16", "bf16", None, False):
        asks.append(f"mixed_precision {mixed}")
    if config.get("use_cpu") and f.meant:
        asks.append("the CPU")
    count = config.get("num_processes")
    if isinstance(count, int) and f.meant and config.get("num_machines", 1) == 1 and count > len(f.meant):
        asks.append(f"{count} processes on {plural(len(f.meant), 'GPU')}")
    return asks


def encoder(f: Facts) -> Check:
    if f.encoder_cached:
        return Check("ok", "encoder", f"ImageNet weights of {f.encoder} are in the cache")
    words = f"ImageNet weights of {f.encoder} are not in the cache; the first training fetches them. Offline:"
    return Check("warn", "encoder", words, "model.encoder_weights=none")


def _data(f: Facts) -> str:
    return f"the store ({f.store.gb:.2f} GB)" if f.store else f"KiTS21 ({KITS_GB} GB)"


def _processes_gb(f: Facts) -> float:
    return f.processes * (GPU_PROCESS_GB if f.meant else CPU_PROCESS_GB)


def _cached(f: Facts) -> bool:
    """The data fits the memory that the processes leave to the page cache."""
    gb = f.store.gb if f.store else KITS_GB
    return f.available_gb is not None and f.available_gb - _processes_gb(f) >= gb


def _needed_mb_s(f: Facts) -> float:
    return len(f.meant) * GPU_MB_S or CPU_MB_S
