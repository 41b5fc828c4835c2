"""What the launcher was asked for, and whether it fits the configuration and the processes that were started.

Accelerate passes its options in environment variables, but drops two of them: `--num_processes 2` without a GPU and
without a multi-GPU type starts one process, and `--gradient_accumulation_steps` is passed on for DeepSpeed only. So the
launcher's command line is read, too, by the processes it started and where the system shows it (Linux).
"""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from kits_dist.utils import files
from kits_dist.utils.errors import InputError

QUIET = "KITS_DIST_LAUNCH"  # set in the environment by kits_dist.launch

_OTHER_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism other than DDP",
}
_PLACE = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PREFIXES = (*_PLACE, "ACCELERATE_", "TORCHELASTIC_", "OMP_", "CUDA_DEVICE_ORDER")
_MPI = ("PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "MPI_LOCAL")


class LauncherOptions(NamedTuple):
    """Options of the launcher; None where none was given."""

    processes: int | None = None
    accumulate: int | None = None
    dynamo: str | None = None  # backend in lower case
    engine: str | None = None  # FSDP, DeepSpeed, ...


def launcher_options(environ: Mapping[str, str] = os.environ, command: list[str] | None = None) -> LauncherOptions:
    """Return what the launcher was asked for.

    command   the launcher's command line; None reads that of the parent process if it is a launcher
    """
    if command is None:
        command = _parent_command() if started_by(environ) else []
    words = ("accelerate", "kits_dist.launch", "kits-dist")
    program = next((i for i, word in enumerate(command[:3]) if any(name in word for name in words)), None)
    flags = {} if program is None else _flags(command[program + 1 :])

    accumulate = flags.get("gradient_accumulation_steps") or environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    dynamo = environ.get("ACCELERATE_DYNAMO_BACKEND", "").lower() or "no"
    return LauncherOptions(
        processes=int(flags["num_processes"]) if "num_processes" in flags else None,
        accumulate=int(accumulate) if accumulate.isdigit() else None,
        dynamo=dynamo if dynamo != "no" else None,
        engine=next((name for key, name in _OTHER_ENGINES.items() if environ.get(key, "").lower() == "true"), None),
    )


def refuse_contradictions(options: LauncherOptions, accumulate: int, compile_model: bool) -> None:
    """Compare with optim.accumulate and train.compile. Raises InputError naming both sides."""
    if options.engine:
        raise InputError(
            f"the launcher asks for {options.engine}, which kits_dist does not use: a U-Net of 24 million weights fits "
            "every GPU, so DDP is enough. Launch with --config_file launch/ddp.yaml"
        )
    if options.accumulate not in (None, 1, accumulate):
        raise InputError(
            f"the launcher's gradient_accumulation_steps={options.accumulate} but optim.accumulate={accumulate}. "
            "Set optim.accumulate alone."
        )
    if options.dynamo and not (compile_model and options.dynamo == "inductor"):
        ours = "true uses inductor" if compile_model else "false"
        raise InputError(
            f"the launcher's dynamo_backend={options.dynamo} but train.compile={ours}. Set train.compile alone, and no "
            "dynamo_backend in the launcher."
        )


def refuse_other_world_size(options: LauncherOptions, launched: int, joined: int) -> None:
    """Raise InputError when there are not as many processes as asked for.

    launched   WORLD_SIZE of the environment
    joined     processes that found each other
    """
    if launched != joined:
        raise InputError(f"the launcher started {launched} processes but {joined} found each other.")
    if options.processes not in (None, joined):
        raise InputError(
            f"the launcher was asked for {options.processes} processes but started {joined}. Name a file that says "
            "how: --config_file launch/cpu.yaml without a GPU, launch/ddp.yaml with several; on several machines, "
            "launch/multinode.yaml, whose num_processes is equally many on each."
        )


def started_by(environ: Mapping[str, str] = os.environ) -> Literal["torchrun", "accelerate"] | None:
    """Return which launcher started this process; None for a process that was started directly.

    Accelerate uses torchrun's agent for several processes and a launcher of its own for a single one.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    return "accelerate" if "ACCELERATE_DYNAMO_MODE" in environ else None  # accelerate always sets it, nothing else does


def closing_line(environ: Mapping[str, str] = os.environ) -> str:
    """Return what to say of the traceback with which the launcher follows every exit code but 0; "" where none does."""
    if started_by(environ) is None or QUIET in environ:
        return ""
    return "What follows is the launcher's traceback, not an error of its own; `kits-dist launch` leaves it out."


def restarts(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the launcher starts all processes again when one of them fails (--max_restarts)."""
    return environ.get("TORCHELASTIC_MAX_RESTARTS", "") not in ("", "0")


def refuse_restarts_without_resume(resume: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise InputError when the launcher restarts processes that would then refuse their own run folder."""
    if restarts(environ) and resume != "auto":
        raise InputError(
            f"the launcher's max_restarts={environ['TORCHELASTIC_MAX_RESTARTS']} starts the processes again after a "
            f"failure, but with resume={resume} they would refuse their own run folder. Add resume=auto."
        )


def environ_int(name: str, default: int | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Return an integer that the launcher set in the environment; a variable that is empty counts as absent.

    Raises InputError when it is not a number, or missing without a default.
    """
    text = environ.get(name, "").strip()
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit()):
        wrong = f"{name}={text} in the environment is not a number" if text else f"no {name} in the environment"
        raise InputError(
            f"{wrong}. A launcher sets WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT together; to start one process "
            "alone: unset WORLD_SIZE"
        )
    return int(text)


def claimed_rank() -> int:
    """Return this process's number for messages and progress bars: 0 where the environment says nothing sensible."""
    text = os.environ.get("RANK", "")
    return int(text) if text.isascii() and text.isdigit() else 0


def settle_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Remove what other launchers and other jobs left in the environment, which accelerate would take for its own.

    MPI's variables always; those of torchrun where no WORLD_SIZE above 1 says that there are other processes; and all
    that are empty. A process that is given WORLD_SIZE and RANK alone, as by Kubernetes' PyTorchJob, is the only one of
    its machine.

    Raises InputError for a WORLD_SIZE that is no number.
    """
    for name, value in list(environ.items()):
        empty = name.startswith(_PREFIXES) and not value.strip()
        if empty or name.startswith(_MPI):
            del environ[name]
    if not environ.get("OMP_NUM_THREADS", "").isdigit():  # OpenMP also allows a list, accelerate does not
        environ.pop("OMP_NUM_THREADS", None)
    if environ_int("WORLD_SIZE", 1, environ) == 1:
        for name in _PLACE:
            environ.pop(name, None)
    elif "LOCAL_RANK" not in environ:
        environ["LOCAL_RANK"] = "0"
        environ.setdefault("LOCAL_WORLD_SIZE", "1")


def _parent_command() -> list[str]:
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # not Linux, or hidden from this user
        return []


def _flags(words: list[str]) -> dict[str, str]:
    """Return the launcher's numeric options, those of its --config_file included; the command line wins."""
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("-m", "--module") or (word.endswith(".py") and found):
            break  # what follows are the program's own arguments
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name.replace("-", "_")] = value if equals else following
    try:
        content = yaml.safe_load(files.read_text(Path(found["config_file"]))) if "config_file" in found else {}
    except (OSError, yaml.YAMLError):  # the launcher itself could read it; this is only a second look
        content = {}
    pairs = content.items() if isinstance(content, dict) else ()
    from_file = {k: str(v) for k, v in pairs if k == "num_processes" and str(v).isdigit()}
    return from_file | {k: v for k, v in found.items() if v.isdigit()}
