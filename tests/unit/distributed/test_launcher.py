import pytest

from kits_dist.distributed.launcher import (
    LauncherOptions,
    environ_int,
    launcher_options,
    refuse_contradictions,
    refuse_other_world_size,
    refuse_restarts_without_resume,
    settle_environment,
    started_by,
)
from kits_dist.utils.errors import InputError

PROGRAM = ["-m", "kits_dist.train", "run=r", "--num_processes", "99"]  # what follows the program is not the launcher's


def test_options_are_read_from_the_environment_and_the_command_line(tmp_path):
    yaml = tmp_path / "a.yaml"
    yaml.write_text("num_processes: 4\n")
    start = ["python", "/bin/accelerate", "launch"]
    assert launcher_options({}, []) == LauncherOptions()
    assert (
        launcher_options({}, ["python", "train.py", "--num_processes", "3"]) == LauncherOptions()
    )  # no launcher of accelerate
    assert launcher_options({}, [*start, "--num_processes=2", *PROGRAM]).processes == 2
    assert launcher_options({}, [*start, "--num-processes", "2", "--gradient_accumulation_steps", "8", *PROGRAM])[
        :2
    ] == (2, 8)
    assert launcher_options({}, [*start, "--config_file", str(yaml), *PROGRAM]).processes == 4
    assert launcher_options({}, [*start, "--config_file", str(yaml), "--num_processes", "2", *PROGRAM]).processes == 2
    assert launcher_options({}, [*start, *PROGRAM]).processes is None
    module = ["python", "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", *PROGRAM]
    assert launcher_options({}, module).processes == 2
    assert launcher_options({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}, []).accumulate is None
    assert launcher_options({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, []).dynamo == "inductor"
    assert launcher_options({"ACCELERATE_DYNAMO_BACKEND": "NO"}, []).dynamo is None
    assert launcher_options({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, []).accumulate == 4
    assert launcher_options({"ACCELERATE_USE_DEEPSPEED": "true"}, []).engine == "DeepSpeed"


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (LauncherOptions(engine="FSDP"), "asks for FSDP, which kits_dist does not use"),
        (LauncherOptions(engine="DeepSpeed"), "asks for DeepSpeed"),
        (
            LauncherOptions(accumulate=4),
            "gradient_accumulation_steps=4 but optim.accumulate=2. Set optim.accumulate",
        ),
        (
            LauncherOptions(dynamo="inductor"),
            "dynamo_backend=inductor but train.compile=false. Set train.compile",
        ),
    ],
)
def test_contradictions_are_refused_by_name(wishes, words):
    with pytest.raises(InputError) as caught:
        refuse_contradictions(wishes, accumulate=2, compile_model=False)
    assert words in str(caught.value)


def test_what_agrees_passes():
    refuse_contradictions(LauncherOptions(accumulate=2, dynamo="inductor"), accumulate=2, compile_model=True)
    refuse_contradictions(LauncherOptions(accumulate=1), accumulate=2, compile_model=False)
    with pytest.raises(InputError, match="dynamo_backend=aot_eager but train.compile=true uses inductor"):
        refuse_contradictions(LauncherOptions(dynamo="aot_eager"), accumulate=1, compile_model=True)


def test_another_world_size_than_asked_for_is_refused():
    refuse_other_world_size(LauncherOptions(), launched=2, joined=2)
    refuse_other_world_size(LauncherOptions(processes=2), launched=2, joined=2)
    with pytest.raises(InputError, match="started 2 processes but 1 found each other"):
        refuse_other_world_size(LauncherOptions(), launched=2, joined=1)
    with pytest.raises(InputError, match="asked for 2 processes but started 1.*launch/cpu.yaml"):
        refuse_other_world_size(LauncherOptions(processes=2), launched=1, joined=1)


def test_a_launcher_that_restarts_needs_resume():
    refuse_restarts_without_resume("none", {})
    refuse_restarts_without_resume("none", {"TORCHELASTIC_MAX_RESTARTS": "0"})
    refuse_restarts_without_resume("auto", {"TORCHELASTIC_MAX_RESTARTS": "3"})
    with pytest.raises(InputError, match="max_restarts=3 starts the processes again .* Add resume=auto"):
        refuse_restarts_without_resume("none", {"TORCHELASTIC_MAX_RESTARTS": "3"})


def test_which_launcher_started_this_process():
    assert started_by({"ACCELERATE_MIXED_PRECISION": "bf16", "SLURM_JOB_ID": "7"}) is None  # set by hand, under srun
    assert started_by({"ACCELERATE_DYNAMO_MODE": "default"}) == "accelerate"
    assert started_by({"ACCELERATE_DYNAMO_MODE": "default", "TORCHELASTIC_RUN_ID": "none"}) == "torchrun"


def test_numbers_of_the_environment(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    assert environ_int("WORLD_SIZE") == 4 and environ_int("RANK", 0) == 0
    monkeypatch.setenv("WORLD_SIZE", "-1")
    with pytest.raises(InputError, match="WORLD_SIZE=-1 in the environment is not a number"):
        environ_int("WORLD_SIZE", 1)
    for text in ("", " "):
        monkeypatch.setenv("WORLD_SIZE", text)
        assert environ_int("WORLD_SIZE", 1) == 1
        with pytest.raises(InputError, match="no WORLD_SIZE in the environment.*unset WORLD_SIZE"):
            environ_int("WORLD_SIZE")


OF_TWO = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"}


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}),
        ({"PMI_SIZE": "2", "PMI_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "x"}, {}),
        ({"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "", "OMP_NUM_THREADS": "4,2"}, {}),
        ({"WORLD_SIZE": "", "RANK": " ", "MASTER_PORT": "", "ACCELERATE_USE_CPU": "", "OMP_NUM_THREADS": ""}, {}),
        ({"RANK": "3", "LOCAL_RANK": "abc", "MASTER_PORT": "tcp://10.0.0.1:80"}, {}),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "3"}),
        (OF_TWO, OF_TWO),
        (OF_TWO | {"PMI_SIZE": "8"}, OF_TWO),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a"},  # of Kubernetes' PyTorchJob
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        ),
    ],
)  # fmt: skip
def test_what_other_launchers_left_is_removed(found, left):
    environ = dict(found)
    settle_environment(environ)
    assert environ == left


def test_empty_options_of_the_launcher_are_none():
    assert launcher_options({"ACCELERATE_DYNAMO_BACKEND": "", "ACCELERATE_USE_FSDP": ""}, []) == LauncherOptions()
    refuse_restarts_without_resume("none", {"TORCHELASTIC_MAX_RESTARTS": ""})


@pytest.mark.parametrize("content", [b"\xff\xfen\x00u\x00", b"num_processes: 4\r\nname: M\xfcller\r\n", b"- a list"])
def test_a_configuration_of_the_launcher_in_any_encoding_is_no_error(tmp_path, content):
    (tmp_path / "a.yaml").write_bytes(content)
    launcher_options({}, ["python", "/bin/accelerate", "launch", "--config_file", str(tmp_path / "a.yaml"), *PROGRAM])
