"""What the launcher asked for, and whether it fits what the configuration and the started processes say.

Accelerate's launcher speaks through environment variables, and drops some wishes without a word: `--num_processes 2`
without a GPU and without a "multi GPU" type starts one process, `--gradient_accumulation_steps` counts only for
DeepSpeed. So its command line is read too, where the system shows it (Linux).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from kits_dist.utils.errors import InputError

_OTHER_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism other than DDP",
}


class Asked(NamedTuple):
    """The launcher's wishes; None where it named none."""

    processes: int | None = None
    accumulate: int | None = None
    dynamo: str | None = None  # backend in lower case
    engine: str | None = None  # FSDP, DeepSpeed, ...


def asked(environ: Mapping[str, str] = os.environ, command: list[str] | None = None) -> Asked:
    """command: the launcher's own words; default: those of the parent process, if it is a launcher."""
    words = _parent_command() if command is None else command
    program = next((i for i, word in enumerate(words[:3]) if "accelerate" in word), None)
    flags = {} if program is None else _flags(words[program + 1 :])
    accumulate = flags.get("gradient_accumulation_steps") or environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    dynamo = environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    return Asked(
        processes=int(flags["num_processes"]) if "num_processes" in flags else None,
        accumulate=int(accumulate) if accumulate.isdigit() else None,
        dynamo=dynamo if dynamo != "no" else None,
        engine=next((name for key, name in _OTHER_ENGINES.items() if environ.get(key, "").lower() == "true"), None),
    )


def refuse_contradictions(wishes: Asked, accumulate: int, compile_model: bool) -> None:
    """Compare with optim.accumulate and train.compile. Raises InputError naming both sides."""
    if wishes.engine:
        raise InputError(
            f"the launcher asks for {wishes.engine}, which kits_dist does not use: a U-Net of 24 million weights fits "
            "every GPU, so DDP is enough. Launch with --config_file launch/ddp.yaml"
        )
    if wishes.accumulate not in (None, 1, accumulate):
        raise InputError(
            f"the launcher's gradient_accumulation_steps={wishes.accumulate} but optim.accumulate={accumulate}. "
            "Set optim.accumulate alone."
        )
    if wishes.dynamo and not (compile_model and wishes.dynamo == "inductor"):
        raise InputError(
            f"the launcher's dynamo_backend={wishes.dynamo} but train.compile={str(compile_model).lower()} "
            f"{'uses inductor' if compile_model else ''}".rstrip()
            + ". Set train.compile alone, and no dynamo_backend in the launcher."
        )


def refuse_other_world_size(wishes: Asked, launched: int, joined: int) -> None:
    """launched: WORLD_SIZE of the environment; joined: processes that found each other."""
    if launched != joined:
        raise InputError(f"the launcher started {launched} processes but {joined} found each other.")
    if wishes.processes not in (None, joined):
        raise InputError(
            f"the launcher was asked for {wishes.processes} processes but started {joined}. Name a file that says how: "
            "--config_file launch/cpu.yaml without a GPU, launch/ddp.yaml with several; on several machines, "
            "launch/multinode.yaml, whose num_processes is equally many on each."
        )


def started_by(environ: Mapping[str, str] = os.environ) -> Literal["torchrun", "accelerate"] | None:
    """The launcher that this process is a child of: torchrun's, which accelerate uses for several processes, or the
    plain one that accelerate has for a single process; None for a process that was started directly."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    return "accelerate" if "ACCELERATE_DYNAMO_MODE" in environ else None  # always set, and by nobody else


def restarts(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher starts all processes again when one of them fails (--max_restarts)."""
    return environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def refuse_restarts_without_resume(resume: str, environ: Mapping[str, str] = os.environ) -> None:
    if restarts(environ) and resume != "auto":
        raise InputError(
            f"the launcher's max_restarts={environ['TORCHELASTIC_MAX_RESTARTS']} starts the processes again after a "
            f"failure, but with resume={resume} they would find their own run in the way. Add resume=auto."
        )


def whole_number(name: str, default: int | None = None) -> int:
    """What the launcher set in the environment. Raises InputError when it is no number, or missing with no default."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise InputError(f"{name}={text} in the environment is no number; the launcher sets it.")
    return int(text)


def _parent_command() -> list[str]:
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # not Linux, or not ours to see
        return []


def _flags(words: list[str]) -> dict[str, str]:
    """Options before the program's own arguments; those of --config_file below those of the command line."""
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("-m", "--module") or word.endswith(".py") and found:
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name.replace("-", "_")] = value if equals else following
    try:
        content = yaml.safe_load(Path(found["config_file"]).read_text()) if "config_file" in found else {}
    except (OSError, yaml.YAMLError):  # the launcher has read it; this is only a second look
        content = {}
    from_file = {k: str(v) for k, v in (content or {}).items() if k == "num_processes" and str(v).isdigit()}
    return from_file | {k: v for k, v in found.items() if v.isdigit()}
