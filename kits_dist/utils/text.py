"""Names in messages and on command lines: a long list shortened, several folders in one argument."""

from pathlib import Path

from kits_dist.utils.errors import InputError, MissingInput


def listed(names: list[str], limit: int = 5) -> str:
    """Join the first `limit` names with commas, and say how many more there are."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


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
    return [Path(name) for name in names]
