"""Machines that are not at hand, described by their facts, and a look at the one that is."""

import platform
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from kits_dist import cli, doctor
from kits_dist.diagnostics import devices, host
from kits_dist.diagnostics.facts import Check, Disk, Facts, Gpu, StoreFacts
from kits_dist.diagnostics.verdict import judge

ROOT = Path(__file__).resolve().parents[3]
LAPTOP = Facts(
    system="Linux",
    python=(3, 12, 4),
    torch="2.15.0+cu132",
    cuda="13.2",
    archs=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    precision=("fp32", "no GPU"),
    dali={"nvidia-dali-cuda130": "2.4.0"},
    dali_ran=("cpu",),
    core_ids=tuple(range(8)),
    memory_gb=16.0,
    available_gb=12.0,
    shm_gb=8.0,
    accelerate="1.15.0",
    encoder_cached=True,
)
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85.0, 84.0)
A6000 = Gpu("NVIDIA RTX A6000", (8, 6), 51.0, 50.5)
GTX1080 = Gpu("NVIDIA GeForce GTX 1080", (6, 1), 8.5, 8.4)
B200 = Gpu("NVIDIA B200", (10, 0), 192.0, 191.0)
BOX = replace(
    LAPTOP,
    gpus=(A6000,),
    smi_gpus=(A6000,),
    driver="580.95.05",
    driver_cuda=(13, 0),
    precision=("bf16", "NVIDIA RTX A6000 has it"),
    dali_ran=("cpu", "gpu"),
    nccl="2.30.7",
    core_ids=tuple(range(16)),
    memory_gb=64.0,
    available_gb=60.0,
)
SERVER = replace(
    BOX, gpus=(H100,) * 8, smi_gpus=(H100,) * 8, core_ids=tuple(range(96)), memory_gb=1000.0, available_gb=900.0
)
OLD_DRIVER = replace(
    SERVER, gpus=(), driver="550.54.14", driver_cuda=(12, 4), dali_ran=("cpu",), precision=("fp32", "no GPU")
)
OUTSIDE = replace(LAPTOP, driver="580.95.05", driver_cuda=(13, 0))  # the driver is there, torch sees nothing
KITS = StoreFacts(300, 65164, 34.2, "kits")


def topic(name: str, facts: Facts) -> Check:
    (check,) = [check for check in judge(facts) if check.topic == name]
    return check


def levels(facts: Facts) -> dict[str, str]:
    return {check.topic: check.level for check in judge(facts) if check.level != "ok"}


def test_good_machines_have_nothing_to_mend():
    assert levels(SERVER) == {} and levels(BOX) == {}
    assert levels(LAPTOP) == {"gpu": "warn"}


PYTORCH_12 = "pip install 'torch<2.15' torchvision --index-url ...  # of CUDA 12.6: pytorch.org/get-started"


@pytest.mark.parametrize(
    ("name", "facts", "level", "words", "fix"),
    [
        # Python, torch
        ("python", replace(LAPTOP, python=(3, 10, 1)), "fail", "Python 3.10.1; 3.11,", "PYTHON=python3.13 bash launch"),
        ("python", replace(LAPTOP, python=(3, 14, 0)), "fail", "Python 3.14.0; 3.11,", "PYTHON=python3.13 bash launch"),
        ("torch", replace(LAPTOP, torch="2.9.1"), "fail", "2.9.1 is older than 2.11", "'torch>=2.11'"),
        ("torch", replace(LAPTOP, torch="", torch_error="no libcudart"), "fail", "imported: no libcudart", "setup.sh"),
        ("python", replace(LAPTOP, python=(3, 11, 0)), "ok", "Python 3.11.0", ""),
        ("python", replace(LAPTOP, python=(3, 13, 9)), "ok", "Python 3.13.9", ""),
        ("torch", replace(LAPTOP, torch="2.11.0"), "ok", "2.11.0", ""),
        # GPUs: there, some of them unusable, or none
        ("gpu", SERVER, "ok", "8 x NVIDIA H100 80GB HBM3 (85 GB)", ""),
        ("gpu", LAPTOP, "warn", "on the CPU, fine for the demo", "launch/demo.sh"),
        ("gpu", replace(SERVER, broken={3: "out of memory"}), "fail", "GPU 3 cannot compute: out of", "=0,1,2,4,5,6,7"),
        ("gpu", replace(BOX, broken={0: "busy"}), "fail", "GPU 0 cannot compute: busy", "nvidia-smi"),
        ("gpu", replace(BOX, gpus=(A6000, A6000._replace(free_gb=9.0))), "warn", "GPU 1 (42 of 51 GB)", "DEVICES=0"),
        ("gpu", replace(BOX, gpus=(A6000, GTX1080, A6000)), "warn", "all wait for the slowest", "DEVICES=0,2"),
        ("gpu", replace(BOX, gpus=(GTX1080, A6000), visible="2,5"), "warn", "slowest", "DEVICES=5"),
        (
            "gpu",
            replace(OLD_DRIVER),
            "fail",
            "8 x NVIDIA H100 80GB HBM3 (85 GB); torch sees none, the driver",
            "next line",
        ),
        ("gpu", replace(OUTSIDE, cuda=None, smi_gpus=(A6000,)), "fail", "a build without CUDA", "for CUDA 13.0"),
        ("gpu", replace(OLD_DRIVER, cuda=None), "fail", "a build without CUDA", "for CUDA 12.6"),
        ("gpu", replace(OUTSIDE, smi_gpus=(A6000,), visible=""), "warn", "DEVICES='' hides it", "unset CUDA_VISIBLE"),
        ("gpu", replace(OUTSIDE, smi_gpus=(A6000,), visible="7"), "fail", "DEVICES='7' hides it", "unset CUDA_VISIBLE"),
        ("gpu", replace(OUTSIDE, smi_gpus=(H100,), gpu_error="... Error 802: x"), "fail", "Error 802", "fabricmanager"),
        ("gpu", replace(OUTSIDE, smi_gpus=(H100,)), "fail", "does not say why", "torch.zeros(1).cuda()"),
        (
            "gpu",
            replace(LAPTOP, smi_error="Driver/library version mismatch"),
            "fail",
            "version mismatch",
            "sudo reboot",
        ),
        ("gpu", OUTSIDE, "fail", "no GPU reaches this process, as in a container", "docker run --gpus all"),
        ("gpu", replace(OUTSIDE, smi_error="No devices found"), "fail", "nvidia-smi: No devices found", "--gpus all"),
        ("gpu", replace(LAPTOP, smi_error="has failed"), "warn", "no NVIDIA GPU", "demo.sh"),
        ("gpu", replace(OUTSIDE, smi_gpus=(H100,), gpu_error="... Error 803: x"), "fail", "Error 803", "sudo reboot"),
        ("gpu", replace(OUTSIDE, smi_gpus=(H100,), gpu_error="... Error 804: x"), "fail", "", "unset LD_LIBRARY_PATH"),
        # the driver against the build
        ("driver", SERVER, "ok", "580.95.05 runs CUDA up to 13.0, torch is built for 13.2: the major", ""),
        ("driver", OLD_DRIVER, "fail", "550.54.14 runs CUDA up to 12.4; torch 2.15.0+cu132 is", PYTORCH_12),
        ("driver", OLD_DRIVER, "fail", "needs driver 580 or newer. Update", "pip install 'nvidia-dali-cuda120>=2.3'"),
        ("driver", OLD_DRIVER, "fail", "", "uninstall -y torch torchvision nvidia-dali-cuda130"),
        ("driver", replace(OLD_DRIVER, smi_gpus=(B200,)), "fail", "needs driver 580", "install NVIDIA driver 580"),
        (
            "driver",
            replace(OLD_DRIVER, driver="515.1", driver_cuda=None),
            "fail",
            "up to 11",
            "install NVIDIA driver 580",
        ),
        ("driver", replace(OLD_DRIVER, driver="535.1", driver_cuda=None), "fail", "up to 12;", PYTORCH_12),
        ("driver", replace(OLD_DRIVER, torch="2.14.0+cu126", cuda="12.6"), "ok", "torch is built for 12.6", ""),
        ("driver", replace(OLD_DRIVER, cuda=None), "ok", "runs CUDA up to 12.4", ""),
        ("driver", replace(OLD_DRIVER, driver="579.9", driver_cuda=None), "fail", "up to 12;", PYTORCH_12),
        ("driver", replace(OLD_DRIVER, driver="580.1", driver_cuda=None), "ok", "up to 13,", ""),
        ("driver", replace(OLD_DRIVER, driver="525.60", driver_cuda=None), "fail", "up to 12;", PYTORCH_12),
        # CUDA's compatibility libraries run newer code on an older driver
        ("driver", replace(OLD_DRIVER, driver_cuda=(13, 2)), "ok", "550.54.14 runs CUDA up to 13.2", ""),
        # code for the GPU in the build
        ("kernels", SERVER, "ok", "compute capability 9.0 is in this torch", ""),
        ("kernels", replace(BOX, gpus=(A6000._replace(capability=(8, 9)),)), "ok", "8.9 is in this torch", ""),
        ("kernels", replace(BOX, gpus=(GTX1080,)), "fail", "GTX 1080 has compute capability 6.1; this", PYTORCH_12),
        (
            "kernels",
            replace(BOX, archs=("sm_80", "sm_90a"), gpus=(B200,)),
            "fail",
            "capability 10.0",
            "--upgrade torch",
        ),
        ("kernels", replace(BOX, archs=("sm_90", "compute_90"), gpus=(B200,)), "ok", "capability 10.0", ""),
        ("kernels", replace(BOX, archs=("sm_90a",), gpus=(H100,)), "ok", "capability 9.0", ""),
        ("kernels", replace(BOX, gpus=(GTX1080._replace(capability=(3, 5)),)), "fail", "no build has it", "DEVICES="),
        ("kernels", replace(BOX, gpus=(GTX1080._replace(capability=(5, 0)),)), "fail", "capability 5.0", PYTORCH_12),
        ("kernels", replace(BOX, archs=("sm_100",), gpus=(H100,)), "fail", "capability 9.0", PYTORCH_12),
        (
            "kernels",
            replace(BOX, archs=("sm_100a",), gpus=(B200._replace(capability=(10, 3)),)),
            "fail",
            "10.3",
            "--up",
        ),
        # DALI
        ("dali", SERVER, "ok", "nvidia-dali-cuda130 2.4.0; a small pipeline ran on CPU and GPU", ""),
        ("dali", replace(LAPTOP, dali={}), "fail", "DALI is not installed", "pip install 'nvidia-dali-cuda130>=2.3'"),
        (
            "dali",
            replace(LAPTOP, dali={}, cuda="12.6"),
            "fail",
            "is not installed",
            "pip install 'nvidia-dali-cuda120>=",
        ),
        ("dali", replace(LAPTOP, dali={}, system="Darwin"), "warn", "does not exist for Darwin", "train on Linux"),
        (
            "dali",
            replace(LAPTOP, dali={"nvidia-dali-cuda130": "2.4.0", "nvidia-dali-cuda120": "2.4.0"}, dali_ran=()),
            "fail",
            "nvidia-dali-cuda120 2.4.0, nvidia-dali-cuda130 2.4.0: they overwrite each other",
            "pip uninstall -y nvidia-dali-cuda120 nvidia-dali-cuda130 &&\npip install 'nvidia-dali-cuda130>=2.3'",
        ),
        ("dali", replace(LAPTOP, dali={"nvidia-dali-cuda130": "1.53"}), "fail", "older than 2.3", "cuda130>=2.3'"),
        ("dali", replace(BOX, cuda="12.6", dali_ran=("cpu",)), "fail", "torch is built for CUDA 12.6", "cuda120>=2.3'"),
        ("dali", replace(BOX, cuda="12.6"), "warn", "torch is built for CUDA 12.6", "uninstall -y nvidia-dali-cuda130"),
        ("dali", replace(LAPTOP, cuda="12.6"), "warn", "torch is built for CUDA 12.6", "cuda120>=2.3'"),
        (
            "dali",
            replace(LAPTOP, dali_ran=(), dali_error="boom"),
            "fail",
            "CPU pipeline does not run: boom",
            "reinstall",
        ),
        (
            "dali",
            replace(BOX, dali_ran=("cpu",), dali_error="boom"),
            "fail",
            "GPU pipeline does not run: boom",
            "2.4.0",
        ),
        ("dali", replace(LAPTOP, dali={"nvidia-dali-cuda130": "2.3.0"}), "ok", "cuda130 2.3.0", ""),
        ("dali", replace(OLD_DRIVER, cuda="12.6"), "fail", "torch is built for CUDA 12.6", "cuda120>=2.3'"),
        # precision and batch
        ("precision", BOX, "ok", "train.precision=auto takes bf16: NVIDIA RTX A6000 has it", ""),
        (
            "precision",
            replace(LAPTOP, bf16_cores=True),
            "ok",
            "no GPU; this CPU multiplies bf16 itself, train.prec",
            "",
        ),
        ("batch", BOX, "ok", "128 slices of 512x512 in bf16 take about 27 GB of the GPU's 51", ""),
        # (12 - 2) GB / (25/128 GB a slice) = 51 slices
        (
            "batch",
            replace(BOX, gpus=(A6000._replace(total_gb=12.0),)),
            "warn",
            "has 12",
            "data.batch_size=32 optim.acc",
        ),
        ("batch", replace(BOX, precision=("fp32", "")), "warn", "about 52 GB", "data.batch_size=64 optim.accumulate=2"),
        ("batch", replace(BOX, precision=("fp16", "")), "ok", "in fp16 take about 27 GB", ""),
        ("batch", replace(SERVER, precision=("tf32", "")), "ok", "in tf32 take about 52 GB of the GPU's 85", ""),
        # cores
        ("cores", SERVER, "ok", "96 for 8 GPUs, 12 each", ""),
        ("cores", replace(SERVER, core_ids=tuple(range(16))), "ok", "2 each: enough, 4 leave room", ""),
        ("cores", replace(SERVER, core_ids=tuple(range(12))), "warn", "1.5 each: below 2", "--num_processes 6"),
        ("cores", replace(BOX, core_ids=(0,)), "warn", "1 for 1 GPU, 1 each: below 2", "#SBATCH --cpus-per-task=4"),
        ("cores", replace(LAPTOP, core_ids=(0,)), "warn", "one process and not two", "launch/single.yaml"),
        ("cores", replace(BOX, cpu_quota=4.0), "warn", "16, but a container's quota of 4", "taskset -c 0-3 accelerate"),
        (
            "cores",
            replace(BOX, core_ids=(1, 9, 17), cpu_quota=2.5),
            "warn",
            "quota of 2.5",
            "taskset -c 1,9 accelerate",
        ),
        ("cores", replace(BOX, cpu_quota=16.0), "ok", "16 for 1 GPU", ""),
        ("cores", replace(SERVER, core_ids=(0,)), "warn", "1 for 8 GPUs", "--num_processes 1"),
        ("cores", replace(LAPTOP, core_ids=(0, 1)), "ok", "2; launch/cpu.yaml divides them", ""),
        # memory
        ("memory", BOX, "ok", "60.0 GB available of 64.0: KiTS21 (34.2 GB) stays there once read", ""),
        ("memory", replace(BOX, available_gb=30.0), "ok", "KiTS21 (34.2 GB) is more", ""),
        (
            "memory",
            replace(BOX, available_gb=30.0, store=KITS),
            "warn",
            "the store (34.20 GB) is more",
            "slices=kidney",
        ),
        (
            "memory",
            replace(BOX, available_gb=30.0, store=KITS, store_disk=Disk(900, 3000.0, True)),
            "ok",
            "each epoch reads the disk again, which is fast enough",
            "",
        ),
        ("memory", replace(LAPTOP, available_gb=2.0), "warn", "training takes about 3 GB", "--num_processes 1"),
        ("memory", replace(BOX, available_gb=2.0), "warn", "training takes about 3 GB", "close other programs"),
        ("memory", replace(LAPTOP, container_limit=True), "ok", "of 16.0 that the container may use", ""),
        ("memory", replace(LAPTOP, memory_gb=None), "ok", "not known on this system", ""),
        # disks: 1,450 slices/s of half a megabyte are 760 MB/s for one GPU
        ("store", replace(BOX, store=KITS), "ok", "300 cases, 65,164 slices, 34.20 GB, data: kits", ""),
        (
            "disk",
            replace(BOX, store=KITS, store_disk=Disk(900, 800.0, True)),
            "ok",
            "800 MB/s in slices at random (pag",
            "",
        ),
        ("disk", replace(BOX, store=KITS, store_disk=Disk(900, 800.0, False)), "ok", "perhaps from the page cache", ""),
        # 34,200 MB / 95 MB/s = 6 minutes
        (
            "disk",
            replace(BOX, store=KITS, store_disk=Disk(900, 95.0, True)),
            "ok",
            "up to 760; the first epoch waits",
            "",
        ),
        ("disk", replace(BOX, store=KITS, store_disk=Disk(900, 95.0, True)), "ok", "at least 6.0 minutes", ""),
        (
            "disk",
            replace(BOX, store=KITS, store_disk=Disk(900, 95.0, True), available_gb=30.0),
            "warn",
            "the disk is the slow side",
            "data.store=DIR on a local SSD",
        ),
        ("disk", replace(LAPTOP, store=KITS, store_disk=Disk(900, 95.0, True)), "ok", "training here up to 21", ""),
        ("disk", replace(BOX, store=KITS, store_disk=Disk(900, None, True)), "ok", "too little of it to time", ""),
        (
            "run",
            replace(BOX, run_disk=Disk(900, 1000.0, True, 250.0)),
            "ok",
            "run= lies, written at 250 MB/s; it reads",
            "",
        ),
        ("run", replace(SERVER, run_disk=Disk(900, 900.0, True)), "ok", "first epoch waits", ""),
        ("run", replace(SERVER, run_disk=Disk(900, 900.0, True), available_gb=50.0), "warn", "slow side", "local SSD"),
        (
            "run",
            replace(BOX, run_disk=Disk(1.5, None, True)),
            "fail",
            "1.5 GB free where run= lies; checkp",
            "another disk",
        ),
        ("run", replace(BOX, run_disk=Disk(2.0, None, True)), "ok", "2.0 GB free", ""),
        # how fast run= reads does not matter where the store lies elsewhere
        (
            "run",
            replace(
                BOX, available_gb=9.0, store=KITS, store_disk=Disk(9, 9000.0, True), run_disk=Disk(9, 5.0, True, 7.0)
            ),
            "ok",
            "9.0 GB free where run= lies, written at 7 MB/s",
            "",
        ),
        # shared memory, ports, NCCL
        ("shm", replace(SERVER, shm_gb=0.067), "warn", "67 MB: too little for NCCL between 8 GPUs", "--shm-size=1g"),
        ("shm", replace(BOX, shm_gb=0.067), "ok", "67 MB: enough, only NCCL between GPUs needs more", ""),
        ("shm", replace(SERVER, shm_gb=1.0), "ok", "/dev/shm has 1.0 GB", ""),
        ("port", LAPTOP, "ok", "29500 is free", ""),
        ("port", replace(LAPTOP, port_free=False), "warn", "29500 is taken. launch/*.yaml", "--main_process_port 0"),
        ("port", replace(LAPTOP, loopback_error="Operation not permitted"), "fail", "(Operation not", "single.yaml"),
        ("gloo", LAPTOP, "ok", "processes on the CPU talk through it", ""),
        ("gloo", replace(LAPTOP, gloo=False), "fail", "built without it", "launch/single.yaml"),
        ("nccl", BOX, "ok", "2.30.7, not needed for one GPU", ""),
        ("nccl", SERVER, "ok", "2.30.7; all 8 GPUs read each other's memory", ""),
        ("nccl", replace(SERVER, nccl=""), "fail", "built without it; 8 GPUs", "--num_processes 1"),
        ("nccl", replace(SERVER, no_peer=((0, 4), (1, 4))), "warn", "GPUs 0-4, 1-4 cannot read", "nvidia-smi topo"),
        (
            "nccl",
            replace(SERVER, iommu=True),
            "warn",
            "an IOMMU stands between",
            "NCCL_P2P_DISABLE=1 accelerate launch",
        ),
        ("nccl", replace(SERVER, iommu=True, nvlink=True), "ok", "all 8 GPUs", ""),
        ("nccl", replace(SERVER, nccl="", system="Windows"), "warn", "built without it", "--num_processes 1"),
        ("nccl", replace(SERVER, no_peer=((0, 1), (0, 2), (1, 2))), "warn", "GPUs 0-1, 0-2, 1-2 cannot", "topo"),
        (
            "nccl",
            replace(SERVER, no_peer=((0, 1), (0, 2), (1, 2), (1, 3))),
            "warn",
            "0-1, 0-2, 1-2, ... cannot",
            "topo",
        ),
        # launcher and weights
        ("launcher", LAPTOP, "ok", "no default configuration", ""),
        ("launcher", replace(LAPTOP, accelerate=""), "fail", "accelerate is not installed; 1.13", "accelerate>=1.13"),
        ("launcher", replace(LAPTOP, accelerate="1.4.0"), "fail", "accelerate 1.4.0; 1.13 is", "accelerate>=1.13"),
        (
            "launcher",
            replace(SERVER, default_config={"distributed_type": "FSDP", "mixed_precision": "fp8"}),
            "warn",
            "asks for FSDP, mixed_precision fp8",
            "--config_file launch/ddp.yaml",
        ),
        ("launcher", replace(BOX, default_config={"num_processes": 8}), "warn", "8 processes on 1 GPU", "single.yaml"),
        ("launcher", replace(BOX, default_config={"use_cpu": True}), "warn", "asks for the CPU", "single.yaml"),
        ("launcher", replace(LAPTOP, default_config={}), "warn", "something unreadable", "launch/cpu.yaml"),
        # unquoted NO and no are False in yaml
        (
            "launcher",
            replace(BOX, default_config={"distributed_type": False, "mixed_precision": False}),
            "ok",
            "not int",
            "",
        ),
        ("launcher", replace(LAPTOP, accelerate="1.13.0"), "ok", "accelerate 1.13.0", ""),
        ("launcher", replace(SERVER, default_config={"num_processes": 8}), "ok", "does not interfere", ""),
        ("launcher", replace(BOX, default_config={"num_processes": 8, "num_machines": 8}), "ok", "does not int", ""),
        ("encoder", LAPTOP, "ok", "weights of resnet34 are in the cache", ""),
        (
            "encoder",
            replace(LAPTOP, encoder_cached=False),
            "warn",
            "are not in the cache",
            "model.encoder_weights=none",
        ),
    ],
)
def test_judgement(name, facts, level, words, fix):
    check = topic(name, facts)
    assert check.level == level and words in check.found and fix in check.fix, check
    assert bool(check.fix) == (level != "ok")


def test_what_means_nothing_on_a_machine_is_not_said():
    mac = replace(LAPTOP, system="Darwin", torch="2.15.0", cuda=None, archs=(), shm_gb=None, dali={}, dali_ran=())
    said = {check.topic for check in judge(mac)}
    assert said == {
        "python",
        "torch",
        "gpu",
        "dali",
        "precision",
        "cores",
        "memory",
        "port",
        "gloo",
        "launcher",
        "encoder",
    }
    without_torch = {check.topic for check in judge(replace(LAPTOP, torch="", precision=None))}
    assert not without_torch & {"gpu", "driver", "precision", "gloo", "nccl"}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (LAPTOP, "--config_file launch/cpu.yaml -m kits_dist.train \\\n  config=configs/demo.yaml data.store=S run=R"),
        (replace(LAPTOP, core_ids=(0,)), "launch/single.yaml -m"),
        (BOX, "launch/single.yaml -m kits_dist.train \\\n  config=configs/kidney.yaml data.store=S run=R"),
        (SERVER, "launch/ddp.yaml -m"),
        (OLD_DRIVER, "launch/ddp.yaml -m"),  # when the driver is mended
        (replace(OLD_DRIVER, visible="-1"), "launch/cpu.yaml -m"),
        (replace(OLD_DRIVER, smi_gpus=(A6000,)), "data.store=S run=R"),
        (replace(SERVER, gpus=(H100,) * 3), "launch/ddp.yaml --num_processes 3 -m"),
        (replace(BOX, gpus=(A6000._replace(total_gb=25.3),)), "run=R data.batch_size=64 optim.accumulate=2"),
    ],
)
def test_the_launch_for_a_machine(facts, words):
    command = host.launch_command(facts, "S", "R")
    assert words in command and ("accumulate" in words or "accumulate" not in command)
    assert (ROOT / command.split()[3]).is_file()


def test_what_is_needed_is_what_pyproject_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"torch>={devices.OLDEST_TORCH}" in project["dependencies"]
    assert f"accelerate>={host.OLDEST_ACCELERATE}" in project["dependencies"]
    assert project["requires-python"] == ">=3.11,<3.14"
    for cuda, wheel in devices.DALI_WHEELS.items():
        (extra,) = project["optional-dependencies"][f"dali-cuda{cuda}"]
        assert extra.startswith(f"{wheel}>={devices.OLDEST_DALI};")


def test_windows_has_no_dali_to_install():
    assert "dali-cuda120" not in topic("driver", replace(OLD_DRIVER, system="Windows", dali={})).fix


def test_lines_fit_and_commands_stay_whole():
    lines = [
        line
        for facts in (OLD_DRIVER, LAPTOP, SERVER)
        for check in judge(facts)
        for line in doctor.shown(check).split("\n")
    ]
    assert [line for line in lines if len(line) > 100 and "pip install" not in line] == []
    shown = doctor.shown(topic("driver", OLD_DRIVER))
    assert f"\n{' ' * 20}{PYTORCH_12}\n" in shown  # on a line of its own, in one piece
    short = Check("warn", "port", "taken", "--main_process_port 0")
    assert doctor.shown(short) == "warn  port       taken  -> --main_process_port 0"


# ---- the program


def test_a_real_look_at_this_machine(store, tmp_path, capsys):
    code = 0
    try:
        doctor.main(doctor.Args(store=str(store.path), run=str(tmp_path / "not" / "yet")))
    except doctor.JobFailed:
        code = 1
    said = capsys.readouterr().out
    checks = [line for line in said.splitlines() if line[:4] in ("ok  ", "warn", "fail")]
    assert code == any(line.startswith("fail") for line in checks)
    assert len(checks) >= 12
    assert "6 cases, 29 slices" in said  # the depths in conftest: 5 + 4 + 6 + 3 + 7 + 4
    assert "GB free where run= lies, written at" in said and "too little of it to time reading" in said
    assert said.splitlines()[-2].startswith("accelerate launch --config_file launch/")
    assert f"data.store={store.path} run={tmp_path / 'not' / 'yet'}" in said.splitlines()[-1]
    assert platform.node() not in said.replace(str(store.path), "").replace(str(tmp_path), "")
    assert not (tmp_path / "not").exists()


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.run(doctor.main, doctor.Args, list(arguments))
    return caught.value.code


def test_exit_codes(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "gather", lambda store, run: OLD_DRIVER)
    assert ended() == 1
    out, err = capsys.readouterr()
    assert err.count("2 of 15 checks failed: gpu, driver. Mend them first.") == 1
    assert PYTORCH_12 in out and out.rstrip().endswith("data.store=DIR run=DIR")
    monkeypatch.setattr(doctor, "gather", lambda store, run: SERVER)
    assert ended() == 0


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("store=/nowhere", "no store.json there"),
        ("run=FILE", "is no folder. Name another one"),
        ("--store", "Write store="),
    ],
)
def test_a_wrong_argument_is_answered_once(argument, words, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert ended(argument.replace("FILE", str(tmp_path / "file"))) == 2
    out, err = capsys.readouterr()
    assert err.count(words) == 1 and "Traceback" not in err and out == ""


def test_it_starts_where_torch_is_missing():
    """Importing the program loads neither torch nor accelerate: a machine where they are broken is its business."""
    code = (
        "import kits_dist.doctor, sys; print([m for m in ('torch', 'accelerate', 'nvidia.dali') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
