"""Machines that are not at hand, described by their facts."""

from dataclasses import replace
from pathlib import Path

import pytest

from kits_dist import cli, doctor
from kits_dist.diagnostics.checks import check_all, launch_command
from kits_dist.diagnostics.facts import Check, Facts, Gpu, StoreFacts

ROOT = Path(__file__).resolve().parents[3]
LAPTOP = Facts(
    torch="2.15.0+cu132",
    cuda="13.2",
    archs=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    precision=("fp32", "no GPU"),
    dali={"nvidia-dali-cuda130": "2.4.0"},
    dali_ran=("CPU",),
    core_ids=tuple(range(8)),
    memory_gb=12.0,
    shm_gb=8.0,
)
A6000 = Gpu("NVIDIA RTX A6000", (8, 6), 50.0)
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 84.0)
BOX = replace(
    LAPTOP,
    gpus=(A6000,),
    driver_gpus=1,
    driver_cuda=(13, 0),
    precision=("bf16", "NVIDIA RTX A6000 has it"),
    dali_ran=("CPU", "GPU"),
    core_ids=tuple(range(16)),
    memory_gb=60.0,
)
SERVER = replace(BOX, gpus=(H100,) * 8, driver_gpus=8, core_ids=tuple(range(96)), memory_gb=900.0)
OLD_DRIVER = replace(SERVER, gpus=(), gpu_error="driver too old", driver_cuda=(12, 4), dali_ran=("CPU",))
KITS = StoreFacts(300, 65164, 34.2, "kits")


def topic(name: str, facts: Facts) -> Check:
    (check,) = [check for check in check_all(facts) if check.topic == name]
    return check


def without(facts: Facts, error: str) -> Facts:
    """The last GPU cannot compute."""
    return replace(facts, gpus=(*facts.gpus[:-1], facts.gpus[-1]._replace(error=error)))


def test_good_machines_have_nothing_to_fix():
    def levels(facts: Facts) -> dict[str, str]:
        return {check.topic: check.level for check in check_all(facts) if check.level != "ok"}

    assert levels(SERVER) == {} and levels(BOX) == {}
    assert levels(LAPTOP) == {"gpu": "warn"}


@pytest.mark.parametrize(
    ("name", "facts", "level", "text", "fix"),
    [
        ("torch", Facts(torch_error="no libcudart"), "fail", "cannot be imported: no libcudart", "setup.sh"),
        # GPUs: present, some of them unusable, or none
        ("gpu", SERVER, "ok", "8 x NVIDIA H100 80GB HBM3", ""),
        ("gpu", LAPTOP, "warn", "on the CPU, fine for the demo", "launch/demo.sh"),
        ("gpu", without(SERVER, "out of memory"), "fail", "GPU 7 cannot compute: out of memory", "nvidia-smi"),
        (
            "gpu",
            without(BOX, "CUDA error: no kernel image is"),
            "fail",
            "8.6, this torch holds code for sm_75",
            "8.6: ",
        ),
        ("gpu", OLD_DRIVER, "fail", "the NVIDIA driver lists 8, but torch sees none: driver too old", "--gpus all"),
        ("gpu", replace(OLD_DRIVER, cuda=None), "fail", "a build without CUDA", "a CUDA build"),
        ("gpu", replace(OLD_DRIVER, visible=""), "warn", "hidden by CUDA_VISIBLE_DEVICES=''", "unset CUDA_VISIBLE"),
        ("gpu", replace(OLD_DRIVER, visible="9"), "fail", "hidden by CUDA_VISIBLE_DEVICES='9'", "unset CUDA_VISIBLE"),
        # the driver and the build of torch
        ("driver", SERVER, "ok", "up to 13.0; torch 2.15.0+cu132 is built for CUDA 13.2", ""),
        ("driver", OLD_DRIVER, "fail", "up to 12.4; torch 2.15.0+cu132 is built for CUDA 13.2", "dali-cuda120"),
        ("driver", replace(OLD_DRIVER, cuda="12.6"), "ok", "up to 12.4", ""),
        # DALI
        ("dali", SERVER, "ok", "nvidia-dali-cuda130 2.4.0; a small pipeline ran on CPU and GPU", ""),
        ("dali", replace(LAPTOP, dali={}), "fail", "DALI is not installed", "pip install nvidia-dali-cuda130"),
        ("dali", replace(LAPTOP, dali={}, cuda="12.6"), "fail", "not installed", "pip install nvidia-dali-cuda120"),
        ("dali", replace(LAPTOP, dali={}, system="Darwin"), "warn", "not exist for Darwin", "data.backend=opencv"),
        (
            "dali",
            replace(LAPTOP, dali={"nvidia-dali-cuda130": "2.4.0", "nvidia-dali-cuda120": "2.4.0"}),
            "fail",
            "nvidia-dali-cuda120 2.4.0, nvidia-dali-cuda130 2.4.0: they overwrite each other",
            "pip uninstall -y nvidia-dali-cuda120 nvidia-dali-cuda130 &&\npip install nvidia-dali-cuda130",
        ),
        ("dali", replace(BOX, cuda="12.6", dali_ran=("CPU",)), "fail", "torch is built for CUDA 12.6", "dali-cuda120"),
        ("dali", replace(BOX, cuda="12.6"), "warn", "torch is built for CUDA 12.6", "-y nvidia-dali-cuda130"),
        ("dali", replace(LAPTOP, dali_error="CPU: boom"), "fail", "a small pipeline fails: CPU: boom", "uninstall"),
        # precision and batch: (12 - 2) GB / (27.5/128 GB per slice) = 46 slices
        ("precision", BOX, "ok", "train.precision=auto selects bf16: NVIDIA RTX A6000 has it", ""),
        ("precision", replace(LAPTOP, bf16_cores=True), "ok", "no GPU; this CPU has bf16 instructions", ""),
        ("batch", BOX, "ok", "128 slices of 512x512 in bf16 take about 30 GB; 50 GB are free", ""),
        ("batch", replace(BOX, gpus=(A6000._replace(free_gb=12.0),)), "warn", "12 GB", "=32 optim.accumulate=4"),
        ("batch", replace(BOX, precision=("fp32", "")), "warn", "about 56 GB", "data.batch_size=64 optim.accumulate=2"),
        # cores: two for each GPU
        ("cores", SERVER, "ok", "96 for 8 processes", ""),
        ("cores", replace(SERVER, core_ids=tuple(range(16))), "ok", "16 for 8 processes", ""),
        ("cores", replace(SERVER, core_ids=tuple(range(15))), "warn", "fewer than 2 each", "--num_processes 7"),
        ("cores", replace(BOX, core_ids=(1, 9, 17), cpu_quota=2.5), "warn", "a quota of 2.5", "taskset -c 1,9 acc"),
        ("cores", replace(BOX, cpu_quota=16.0), "ok", "16 for 1 process", ""),
        ("cores", replace(LAPTOP, core_ids=(0,)), "ok", "1 for 1 process", ""),
        # memory: 3 GB for each GPU
        ("memory", BOX, "ok", "60.0 GB available; training takes about 3", ""),
        ("memory", replace(SERVER, memory_gb=23.0), "warn", "training takes about 24", "--num_processes 1"),
        ("memory", replace(LAPTOP, memory_gb=None), "ok", "unknown on this system", ""),
        # the store: 34.2 GB, and 3 GB for the process of the GPU
        ("store", replace(BOX, store=KITS), "ok", "300 cases, 65,164 slices, 34.20 GB, data: kits", ""),
        ("store", replace(BOX, store=KITS, memory_gb=37.0), "warn", "every epoch reads it", "on a local SSD"),
        ("store", replace(BOX, store=KITS, memory_gb=37.3), "ok", "34.20 GB", ""),
        ("store", replace(BOX, store=KITS, memory_gb=None), "ok", "34.20 GB", ""),
        ("run", replace(BOX, run_free_gb=2.0), "ok", "2.0 GB free", ""),
        (
            "run",
            replace(BOX, run_free_gb=1.5),
            "fail",
            "1.5 GB free; a run takes about 2 GB",
            "run=DIR on another disk",
        ),
        # shared memory, port
        ("shm", replace(SERVER, shm_gb=0.067), "warn", "has 0.07 GB: too little for NCCL", "--shm-size=1g"),
        ("shm", replace(SERVER, shm_gb=1.0), "ok", "/dev/shm has 1.00 GB", ""),
        ("port", LAPTOP, "ok", "29500 is free", ""),
        ("port", replace(LAPTOP, port_free=False), "warn", "29500 is in use. launch/*.yaml", "--main_process_port 0"),
    ],
)
def test_judgment(name, facts, level, text, fix):
    check = topic(name, facts)
    assert check.level == level and text in check.found and fix in check.fix, check
    assert bool(check.fix) == (level != "ok")


def test_topics_that_do_not_apply_are_left_out():
    mac = Facts(system="Darwin", torch="2.15.0", precision=("fp32", "no GPU"))
    topics = [check.topic for check in check_all(mac)]
    assert topics == ["torch", "gpu", "dali", "precision", "cores", "memory", "port"]


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (LAPTOP, "--config_file launch/cpu.yaml -m kits_dist.train \\\n  config=configs/demo.yaml data.store=S run=R"),
        (replace(LAPTOP, core_ids=(0,)), "launch/single.yaml -m"),
        (BOX, "launch/single.yaml -m kits_dist.train \\\n  config=configs/kidney.yaml data.store=S run=R"),
        (SERVER, "launch/ddp.yaml --num_processes 8 -m"),
        (OLD_DRIVER, "launch/ddp.yaml --num_processes 8 -m"),  # once the driver is updated
        (replace(OLD_DRIVER, visible="-1"), "launch/cpu.yaml -m"),
        (replace(BOX, gpus=(A6000._replace(free_gb=25.3),)), "run=R data.batch_size=64 optim.accumulate=2"),
    ],
)
def test_the_launch_for_a_machine(facts, text):
    command = launch_command(facts, "S", "R")
    assert text in command and ("accumulate" in text or "accumulate" not in command)
    assert (ROOT / command.split()[3]).is_file()


def test_lines_fit_and_commands_stay_whole():
    checks = [check for facts in (OLD_DRIVER, LAPTOP, SERVER) for check in check_all(facts)]
    lines = [line for check in checks for line in doctor.format_check(check).split("\n")]
    assert [line for line in lines if len(line) > 100 and "pip install" not in line and "docker" not in line] == []
    shown = doctor.format_check(topic("driver", OLD_DRIVER))
    assert f"\n{' ' * 20}pip install nvidia-dali-cuda120" in shown  # on a line of its own, in one piece
    short = Check("warn", "port", "taken", "--main_process_port 0")
    assert doctor.format_check(short) == "warn  port       taken  -> --main_process_port 0"


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.run(doctor.main, doctor.Args, list(arguments))
    return caught.value.code


def test_exit_codes(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "probe", lambda store, run: OLD_DRIVER)
    assert exit_code() == 1
    out, err = capsys.readouterr()
    assert err.count("2 of 9 checks failed: gpu, driver. Fix them first.") == 1
    assert out.rstrip().endswith("data.store=DIR run=DIR")
    monkeypatch.setattr(doctor, "probe", lambda store, run: SERVER)
    assert exit_code() == 0


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("store=/nowhere", "no store.json there"),
        ("run=FILE", "no folder can be made there. Name another one"),
        ("--store", "Write store="),
    ],
)
def test_a_wrong_argument_is_answered_once(argument, text, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert exit_code(argument.replace("FILE", str(tmp_path / "file"))) == 2
    out, err = capsys.readouterr()
    assert err.count(text) == 1 and "Traceback" not in err and out == ""
