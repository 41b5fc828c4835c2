"""`key=value` command lines: defaults < `config=` yaml < arguments -> frozen dataclasses, or one clear message.

Every program is a dataclass of its arguments and a function:

    @dataclass(frozen=True)
    class Args:
        source: str = MISSING
        "Folder of the cases; `help` prints this line."

    def main(args: Args) -> None: ...

    if __name__ == "__main__":
        cli.run(main, Args)

Exit codes: 0 done; 1 the job ran and failed; 2 a wrong argument, key, folder or file; 75 stopped and saved, to go on.
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
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from kits_dist.distributed import launcher
from kits_dist.utils.errors import InputError, JobFailed, MissingInput, Preempted

T = TypeVar("T")

_NAME_ANOTHER = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
_MAKE_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

__all__ = ["MISSING", "from_plain", "help_table", "load", "run"]


def run(main: Callable[[Any], None], schema: type, argv: list[str] | None = None) -> NoReturn:
    """Parse, run, and leave with the exit code of the contract; the only place that turns an exception into a code."""
    argv = sys.argv[1:] if argv is None else argv
    program = _program_name(main)
    try:
        if any(word in ("help", "--help", "-h") for word in argv):
            print(_usage(program, inspect.getmodule(main).__doc__, schema))
            sys.exit(0)
        main(load(schema, argv))
    except InputError as error:
        _leave(f"{program}: {error}", 2)
    except JobFailed as error:
        _leave(f"{program}: {error}", 1)
    except Preempted as error:
        _leave(f"{program}: {error}", 0 if launcher.restarts() else 75)  # a launcher that restarts would do it at once
    except OSError as error:
        if error.errno in _NAME_ANOTHER:
            where = f"{error.strerror}: {error.filename}"
            _leave(f"{program}: {where}. Name another file or folder, or change its rights.", 2)
        if error.errno in _MAKE_ROOM:
            where = f"{error.strerror}" + (f": {error.filename}" if error.filename else "")
            _leave(f"{program}: {where}. What was finished is kept; make room and run again.", 1)
        raise
    except KeyboardInterrupt:
        _leave(f"{program}: interrupted.", 130)
    sys.exit(0)


def load(schema: type[T], argv: list[str]) -> T:
    """Merge, weakest first: defaults of `schema`, the yaml named by `config=`, the other `key=value` arguments.

    Returns an instance with types checked and every `__post_init__` run.
    Raises InputError naming the full key; MissingInput for a `config=` that is not there.
    """
    pairs = [_split(word, following, schema) for word, following in zip_longest(argv, argv[1:], fillvalue="")]
    config = OmegaConf.structured(schema)
    has_config_key = "config" in {field.name for field in dataclasses.fields(schema)}
    for key, value in pairs:
        if key == "config" and not has_config_key:
            config = _merge(config, _read_yaml(value), f"config={value}", "")
    for key, value in pairs:
        if key != "config" or has_config_key:
            meaning = _flat(schema).get(key, ("", "", ""))[2]
            config = _merge(config, _nested(key, _value(schema, key, value)), f"{key}={value}", meaning)
    for key, (_, default, meaning) in _flat(schema).items():
        if default == MISSING and OmegaConf.select(config, key, throw_on_missing=False) == "":
            raise InputError(f"{key}= is empty: {meaning}")
    try:
        return OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or "?"
        meaning = _flat(schema).get(key, ("", "", "A value."))[2]
        raise InputError(f"{key}= is missing: {meaning} Example: {key}=VALUE; all keys: help") from error
    except OmegaConfBaseException as error:
        raise InputError(_one_line(error)) from error


def from_plain(schema: type[T], values: dict) -> T:
    """A saved configuration (nested dict, as in yaml) -> `schema`. Raises InputError naming a key that does not fit."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise InputError(f"saved configuration: {_one_line(error)}") from error


def help_table(schema: type) -> str:
    """One line a key: name, default, meaning (the docstring under the field)."""
    rows = [(key, _shown(default), meaning) for key, (_, default, meaning) in _flat(schema).items()]
    wide = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    return "\n".join(f"  {key:<{wide[0]}}  {default:<{wide[1]}}  {meaning}".rstrip() for key, default, meaning in rows)


def _program_name(main: Callable) -> str:
    module = inspect.getmodule(main)
    spec = getattr(module, "__spec__", None)
    return spec.name if spec else module.__name__


def _usage(program: str, doc: str | None, schema: type) -> str:
    return f"{(doc or '').strip()}\n\nusage: python -m {program} key=value ...\n\n{help_table(schema)}"


def _leave(message: str, code: int) -> NoReturn:
    """Print once. Under a launcher rank 0 speaks; the others wait to be ended by it, and speak if they failed alone:
    first one of each machine, for its launcher does not hear of rank 0."""
    rank = int(os.environ.get("RANK", 0))
    if rank and code in (0, 75):  # all of them stopped together
        time.sleep(1)
        sys.exit(code)
    if rank:
        time.sleep(5 if os.environ.get("LOCAL_RANK") == "0" else 10)
        message = f"[rank {rank}] {message}"
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def _split(word: str, following: str, schema: type) -> tuple[str, str]:
    if word.startswith("-"):
        name, _, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        value = value or (following if following and not following.startswith("-") else "VALUE")
        matching = [key for key in _flat(schema) if key.split(".")[-1] == name]
        raise InputError(f"unknown option {word}. Write {(matching or [name])[0]}={value}; all keys: help")
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise InputError(f"cannot read {word!r}. Arguments are key=value; all keys: help")
    return key, value


def _read_yaml(path: str) -> Any:
    if not Path(path).is_file():
        near = sorted(str(p) for p in Path(path).parent.glob("*.yaml"))
        raise MissingInput(f"config={path}: no such file." + (f" There are: {', '.join(near)}" if near else ""))
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config={path} is not readable as yaml: {_one_line(error)}") from error
    if content is not None and not isinstance(content, dict):
        raise InputError(f"config={path} must hold `key: value` lines, found {type(content).__name__}.")
    return content or {}


def _merge(config: Any, update: Any, origin: str, meaning: str) -> Any:
    try:
        return OmegaConf.merge(config, update)
    except OmegaConfBaseException as error:
        hint = f"It means: {meaning}" if meaning else "All keys: help"
        raise InputError(f"{origin}: {_one_line(error)}. {hint}") from error


def _value(schema: type, key: str, text: str) -> Any:
    """Text of a string key stays text (a folder may be called 1e3); sizes may be written 256x256, a list of one without
    brackets; the rest is yaml. Raises InputError."""
    kind = _flat(schema).get(key, ("",))[0]
    if kind is str:
        return text
    if text.lower() == "none" and type(None) in get_args(kind):
        return None
    if re.fullmatch(r"\d+(x\d+)+", text):
        return [int(n) for n in text.split("x")]
    members = get_args(kind) if get_origin(kind) is tuple else ()
    if members == (str, ...):  # as text: a case may be called 001
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [part.strip().strip("'\"") for part in inner.split(",")] if inner.strip() else []
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{key}={text}: cannot read the value: {_one_line(error)}") from error
    if members and members[-1] is not Ellipsis and (not isinstance(value, list) or len(value) != len(members)):
        example = ",".join([text if value is not None and not isinstance(value, list) else "1"] * len(members))
        raise InputError(f"{key}={text}: takes {len(members)} values, written {key}=[{example}]")
    return value


def _nested(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@functools.cache  # parsing the source costs 30 ms a dataclass
def _flat(schema: type, prefix: str = "") -> dict[str, tuple[Any, Any, str]]:
    """Return {full key: (type, default, meaning)}; the meaning is the docstring under the field."""
    meanings = _field_docstrings(schema)
    keys: dict[str, tuple[Any, Any, str]] = {}
    for field in dataclasses.fields(schema):
        factory = field.default_factory
        if dataclasses.is_dataclass(factory):
            keys |= _flat(factory, f"{prefix}{field.name}.")
        else:
            default = field.default if factory is dataclasses.MISSING else factory()
            keys[prefix + field.name] = (field.type, default, meanings.get(field.name, ""))
    return keys


def _field_docstrings(schema: type) -> dict[str, str]:
    """Return {field: the string literal that follows it in the class body}, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    found = {}
    for field, below in itertools.pairwise(body.body):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and is_text and isinstance(below.value.value, str):
            found[field.target.id] = " ".join(below.value.value.split())
    return found


def _shown(default: Any) -> str:
    if default == MISSING:
        return "(required)"
    if isinstance(default, tuple):
        return "[" + ",".join(map(str, default)) + "]"
    return "none" if default is None else str(default)


def _one_line(error: Exception) -> str:
    """OmegaConf's first line says what; its `full_key:` line says where."""
    lines = str(error).splitlines() or [type(error).__name__]
    where = next((line.split(":", 1)[1].strip() for line in lines if line.strip().startswith("full_key:")), "")
    return f"{lines[0].rstrip('.')} (key {where})" if where else lines[0].rstrip(".")
