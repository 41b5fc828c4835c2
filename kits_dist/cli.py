"""`key=value` command lines: defaults < `config=` yaml < arguments -> frozen dataclasses, or one clear message.

Every program is a dataclass of its arguments and a function:

    @dataclass(frozen=True)
    class Args:
        source: str = MISSING
        "Folder of the cases; `help` prints this line."

    def main(args: Args) -> None: ...

    if __name__ == "__main__":
        cli.run(main, Args)

Exit codes: 0 done; 1 the job ran and failed; 2 a wrong argument, key, folder or file; 75 stopped and saved, start again
to continue.
"""

import ast
import dataclasses
import errno
import functools
import inspect
import itertools
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar, get_args, get_origin

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from kits_dist.distributed import gpu_memory, launcher
from kits_dist.utils import files, output
from kits_dist.utils.errors import InputError, JobFailed, MissingInput, Preempted
from kits_dist.utils.text import typed_path

T = TypeVar("T")

_NAME_ANOTHER = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
_BAD_NAME = {errno.EINVAL, errno.EILSEQ, errno.ELOOP}  # a character that the disk does not allow; links in a circle
_MAKE_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MORE_PROCESSES = "Allow more: ulimit -u, or the container's limit of processes."

__all__ = ["MISSING", "from_plain", "help_table", "load", "run"]


def run(main: Callable[[Any], None], schema: type, argv: list[str] | None = None) -> NoReturn:
    """Parse the arguments, run `main`, and exit; the only place that turns an exception into an exit code."""
    argv = sys.argv[1:] if argv is None else argv
    module = sys.modules[main.__module__]
    program = module.__spec__.name if module.__spec__ else module.__name__
    output.protect_output()
    try:
        launcher.settle_environment()
        if {"help", "--help", "-h"} & set(argv):
            doc = (module.__doc__ or "").strip()
            print(f"{doc}\n\nusage: python -m {program} key=value ...\n\n{help_table(schema)}")
        else:
            main(load(schema, argv))
    except InputError as error:
        _exit(f"{program}: {error}", 2)
    except JobFailed as error:
        _exit(f"{program}: {error}", 1)
    except Preempted as error:
        # A launcher that restarts failed processes would start the job again at once.
        _exit(f"{program}: {error}", 0 if launcher.restarts() else 75)
    except OSError as error:
        message, code = _explain(error)
        if not message:
            raise
        _exit(f"{program}: {message}", code)
    except (RuntimeError, MemoryError) as error:
        _exit_if_gpu_is_full(program, schema, error)
        if "can't start new thread" in str(error):
            _exit(f"{program}: no further thread can be started. {_MORE_PROCESSES}", 1)
        raise
    except KeyboardInterrupt:
        _exit(f"{program}: interrupted.", 130)
    finally:
        sys.stdout.flush()
    sys.exit(0)


def load(schema: type[T], argv: list[str]) -> T:
    """Merge, weakest first: defaults of `schema`, the yaml named by `config=`, the other `key=value` arguments.

    Returns an instance with types checked and every `__post_init__` run. Raises InputError naming the full key, and
    MissingInput when the file named by `config=` does not exist.
    """
    keys = _keys(schema)
    arguments = _split(argv, keys)
    config = OmegaConf.structured(schema)
    if "config" not in keys:  # some programs have a key of that name
        for _, value in [pair for pair in arguments if pair[0] == "config"]:
            config = _merge(config, _read_yaml(typed_path(value, "config")), f"config={value}")
        arguments = [pair for pair in arguments if pair[0] != "config"]
    for name, text in arguments:
        key = keys.get(name, _Key(Any, None, ""))
        config = _merge(config, _nested(name, _parse(name, text, key.kind)), f"{name}={text}", key.meaning)

    for name, key in keys.items():
        if key.default == MISSING and OmegaConf.select(config, name, throw_on_missing=False) == "":
            raise InputError(f"{name}= is empty: {key.meaning}")
    try:
        return OmegaConf.to_object(config)  # pyright: ignore[reportReturnType]  an instance of the structured class
    except MissingMandatoryValue as error:
        name = getattr(error, "full_key", None) or "?"
        meaning = keys[name].meaning if name in keys else "A value."
        raise InputError(f"{name}= is missing: {meaning} Example: {name}=VALUE; all keys: help") from error
    except OmegaConfBaseException as error:
        raise InputError(_one_line(error)) from error


def from_plain(schema: type[T], values: dict) -> T:
    """Return a saved configuration (nested dict, as in yaml) as `schema`. Raises InputError naming a wrong key."""
    try:
        config = OmegaConf.merge(OmegaConf.structured(schema), values)
        return OmegaConf.to_object(config)  # pyright: ignore[reportReturnType]  an instance of the structured class
    except OmegaConfBaseException as error:
        raise InputError(f"saved configuration: {_one_line(error)}") from error


def help_table(schema: type) -> str:
    """Return one line per key: name, default, meaning."""
    rows = [(name, _shown(key.default), key.meaning) for name, key in _keys(schema).items()]
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    return "\n".join(
        f"  {name:<{widths[0]}}  {default:<{widths[1]}}  {meaning}".rstrip() for name, default, meaning in rows
    )


def _explain(error: OSError) -> tuple[str, int]:
    """Return what an error of the system means and its exit code; an empty message where the traceback says more."""
    what = error.strerror or str(error)
    where = f"{what}: {error.filename}" if error.filename else what
    if error.errno in _NAME_ANOTHER or (error.errno in _BAD_NAME and error.filename):
        return f"{where}. Name another file or folder, or change its permissions.", 2
    if error.errno in _MAKE_ROOM:
        return f"{where}. Finished parts are kept; free some space and run again.", 1
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where}. Raise the limit of open files: ulimit -n", 1
    if "temporary directory" in what:  # importing torch needs one
        return f"{what}. Name a folder that can be written to: export TMPDIR=DIR", 2
    if error.errno == errno.EAGAIN:
        return f"{where}. {_MORE_PROCESSES}", 1
    if error.filename:
        return f"{where}. Finished parts are kept; look at the disk and run again.", 1
    return "", 1


def _exit_if_gpu_is_full(program: str, schema: type, error: Exception) -> None:
    full = gpu_memory.out_of_memory(error)
    if full:
        advice = "Try a smaller batch_size. " if "batch_size" in _keys(schema) else ""
        _exit(f"{program}: out of GPU memory ({full}). {advice}nvidia-smi shows what else is on the GPU.", 1)


def _exit(message: str, code: int) -> NoReturn:
    """Print the message once, and exit.

    Under a launcher rank 0 prints. The others wait until the launcher ends them, and print if they failed alone: first
    one rank of each machine, because its launcher does not hear of rank 0.
    """
    rank = launcher.claimed_rank()
    if rank and code in (0, 75):  # all ranks stop together
        time.sleep(1)
        sys.exit(code)
    if rank:
        time.sleep(5 if os.environ.get("LOCAL_RANK") == "0" else 10)
        message = f"[rank {rank}] {message}"
    closing = launcher.closing_line() if code else ""
    print("\n".join(filter(None, [message, closing])), file=sys.stderr, flush=True)
    sys.exit(code)


# ---- arguments and yaml


def _split(argv: list[str], keys: dict[str, "_Key"]) -> list[tuple[str, str]]:
    pairs = []
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        key, equals, value = word.partition("=")
        if word == "\r":
            raise InputError("the script has line ends of Windows, which cut this command: sed -i 's/\\r$//' FILE")
        if word.startswith("-"):
            name = key.lstrip("-").replace("-", "_")
            name = next((full for full in keys if full.split(".")[-1] == name), name)
            value = value or ("VALUE" if following.startswith("-") else following or "VALUE")
            raise InputError(f"unknown option {word}. Write {name}={value}; all keys: help")
        if not equals or not key:
            raise InputError(f"cannot read {word!r}. Arguments are key=value; all keys: help")
        pairs.append((key, value))
    return pairs


def _read_yaml(path: str) -> Any:
    if not Path(path).is_file():
        near = ", ".join(sorted(str(p) for p in Path(path).parent.glob("*.yaml")))
        raise MissingInput(f"config={path}: no such file.{f' There are: {near}' if near else ''}")
    try:
        content = yaml.safe_load(files.read_text(Path(path)))
    except yaml.YAMLError as error:
        raise InputError(f"config={path} is not readable as yaml: {_one_line(error)}") from error
    if content is not None and not isinstance(content, dict):
        raise InputError(f"config={path} must hold `key: value` lines, found {type(content).__name__}.")
    return _with_typed_paths(content or {}, "")


def _with_typed_paths(value: Any, name: str) -> Any:
    """Return the content of a yaml file with its texts read as those of a command line; name: of the key, with dots."""
    if isinstance(value, dict):
        return {key: _with_typed_paths(inner, f"{name}.{key}".lstrip(".")) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_typed_paths(inner, name) for inner in value]
    return typed_path(value, name) if isinstance(value, str) else value


def _merge(config: Any, update: Any, origin: str, meaning: str = "") -> Any:
    try:
        return OmegaConf.merge(config, update)
    except OmegaConfBaseException as error:
        hint = f"It means: {meaning}" if meaning else "All keys: help"
        raise InputError(f"{origin}: {_one_line(error)}. {hint}") from error


def _parse(name: str, text: str, kind: Any) -> Any:
    """Return the value that a text means to a key of type `kind`. Raises InputError naming the key."""
    members = get_args(kind) if get_origin(kind) is tuple else ()
    if kind is str:  # a folder may be called 1e3
        return typed_path(text, name)
    if text.lower() == "none" and type(None) in get_args(kind):
        return None
    if re.fullmatch(r"\d+(x\d+)+", text):  # a size, as in 256x256
        return [int(number) for number in text.split("x")]
    if members == (str, ...):  # brackets are optional, and members stay text: a case may be called 001
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [typed_path(part.strip().strip("'\""), name) for part in inner.split(",")] if inner.strip() else []

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name}={text}: cannot read the value: {_one_line(error)}") from error
    is_list_of_right_length = isinstance(value, list) and len(value) == len(members)
    if members and members[-1] is not Ellipsis and not is_list_of_right_length:
        member = "1" if value is None or isinstance(value, list) else text
        example = ",".join([member] * len(members))
        raise InputError(f"{name}={text}: takes {len(members)} values, written {name}=[{example}]")
    return value


def _nested(name: str, value: Any) -> dict:
    """Return `{"a": {"b": value}}` for the name a.b."""
    *outer, last = name.split(".")
    nested = {last: value}
    for part in reversed(outer):
        nested = {part: nested}
    return nested


# ---- keys of a schema


class _Key(NamedTuple):
    kind: Any  # type annotation
    default: Any
    meaning: str


@functools.cache  # parsing the source takes 30 ms per dataclass
def _keys(schema: type, prefix: str = "") -> dict[str, _Key]:
    """Return every key with its full name; the meaning is the docstring under the field."""
    meanings = _field_docstrings(schema)
    keys: dict[str, _Key] = {}
    for field in dataclasses.fields(schema):
        factory = field.default_factory
        if dataclasses.is_dataclass(factory):
            keys |= _keys(factory, f"{prefix}{field.name}.")
        else:
            default = field.default if factory is dataclasses.MISSING else factory()
            keys[prefix + field.name] = _Key(field.type, default, meanings.get(field.name, ""))
    return keys


def _field_docstrings(schema: type) -> dict[str, str]:
    """Return {field: the string that follows it in the class body}, on one line; a class wins over its bases."""
    found = {}
    for owner in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in itertools.pairwise(definition.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
    return found


def _shown(default: Any) -> str:
    if default == MISSING:
        return "(required)"
    if isinstance(default, tuple):
        return "[" + ",".join(map(str, default)) + "]"
    return "none" if default is None else str(default)


def _one_line(error: Exception) -> str:
    """Return OmegaConf's first line, which names the problem, with the key from its `full_key:` line."""
    lines = str(error).splitlines() or [type(error).__name__]
    where = next((line.split(":", 1)[1].strip() for line in lines if line.strip().startswith("full_key:")), "")
    return f"{lines[0].rstrip('.')} (key {where})" if where else lines[0].rstrip(".")
