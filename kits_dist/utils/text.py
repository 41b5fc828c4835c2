"""Names in messages and on command lines: a long list shortened, paths as people type them, several in one argument."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from kits_dist.utils.errors import InputError, MissingInput

_QUOTES = "\"'\u201c\u201d\u2018\u2019"  # as on a keyboard, and as a text processor sets them


def listed(names: list[str], limit: int = 5) -> str:
    """Join the first `limit` names with commas, and say how many more there are."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def utf8(text: str) -> str:
    """Return text that every file and library takes: a byte that is not UTF-8 is written as its number."""
    return text.encode("utf-8", "backslashreplace").decode()


def typed_path(text: str, key: str) -> str:
    """Return the path that a person means by `text`, the value of `key`; text that is no path comes back as it is.

    Blanks and quotes around it are left out, ~ and $NAME replaced, file:// taken off; a backslash is a separator, or
    protects a blank. A path that exists as it was written is what was meant. So a path means the same in a yaml file
    and in shells that replace nothing after `key=`.

    Raises InputError for another kind of URL, a drive of Windows, and a variable or user that does not exist.
    """
    if os.path.lexists(text):
        return text
    path = text.strip().strip(_QUOTES).strip()
    local = re.match(r"file:(//(localhost)?)?(?=/[^/])", path, re.IGNORECASE)
    if local:
        path = unquote(path[local.end() :], errors="surrogateescape")
    elif re.match(r"[a-z][a-z0-9+.-]+:/", path, re.IGNORECASE):
        raise InputError(f"{key}={text}: is no folder or file of this machine. Copy or mount it, and name that.")
    if re.match(r"[a-z]:[\\/]", path, re.IGNORECASE):
        raise InputError(f"{key}={text} is a path of Windows. Here it is perhaps /mnt/{path[0].lower()}/...")
    path = re.sub(rf"\\([\s()&{_QUOTES}])", r"\1", path).replace("\\", "/")
    path = os.path.expandvars(os.path.expanduser(path))
    if path.startswith("~"):
        raise InputError(f"{key}={text}: the home folder of {path.split('/')[0]} is not known. Write the path in full.")
    unset = re.search(r"\$(\w+|\{\w+\})", path)
    if unset:
        raise InputError(f"{key}={text}: {unset[0]} is not set in the environment. Set it, or write the path in full.")
    return path


def parse_folders(value: str, key: str) -> list[Path]:
    """Split `A` or `[A,B]`, the value of `key` on a command line, into folders.

    A folder's own name may contain commas and brackets, so an existing folder is never split. Raises InputError for
    a list with an empty entry, MissingInput for several folders without brackets.
    """
    if Path(value).is_dir():
        return [Path(value)]
    if not (value.startswith("[") and value.endswith("]")):
        if "," in value:
            raise MissingInput(f"{key}={value}: no such folder. Several are written {key}=[A,B]")
        return [Path(value)]
    names = [name.strip(" \"'") for name in value[1:-1].split(",")]
    if not all(names):
        raise InputError(f"{key}={value} names an empty folder. Several are written {key}=[A,B]")
    return [Path(typed_path(name, key)) for name in names]
