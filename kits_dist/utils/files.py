"""Files that are never half-written: write to a temporary file, fsync, rename. A reader sees the old or the new one."""

import codecs
import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kits_dist.utils.errors import InputError, MissingInput

_LONG_NAME = 200  # bytes; most disks allow 255


def temporary_path(path: Path, ending: str = "part") -> Path:
    """Return where this process writes what becomes `path`; `exclusive` removes it after the process was killed."""
    name = path.name
    if len(os.fsencode(name)) > _LONG_NAME:  # with an ending it might be too long for the disk
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return path.with_name(f".{name}.{os.getpid()}.{ending}")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` in one step; the content is durable once this returns."""
    with _replaced(path) as file:
        file.write(content)


def write_hashed(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Replace `path` as `write_bytes` does, one piece after another, and return the SHA-256 of them in hexadecimal.

    Neither hashing nor writing a large piece holds Python's lock, so other threads go on meanwhile.
    """
    digest = hashlib.sha256()
    with _replaced(path) as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replace `path` as `write_bytes` does. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """Return the content of a JSON file. Raises ValueError for NaN and infinity, which JSON does not have."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict:
    """Return the object in a file. Raises InputError naming `path` when it is missing, unreadable or no object."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: cannot be read (not an object).")
    return content


def read_text(path: Path) -> str:
    """Return the text of a file that a person may have edited, in any encoding that editors use.

    UTF-8 and UTF-16 with a byte order mark, UTF-8 without, else the encoding of Windows in western Europe.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a csv file by column. Spreadsheets separate by semicolons or tabs as well as by commas."""
    text = read_text(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write as numpy.save does, but name a full disk: NumPy's message is `N requested and M written`."""
    array = np.ascontiguousarray(array)
    with _open_to_write(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the disk can: a rename is durable only after this.

    Network drives and shared folders of virtual machines refuse it (EINVAL, EIO, EACCES); the files in it are synced.
    """
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def require_export(path: Path) -> None:
    """Raise MissingInput where a run's exported weights are not there. Here, because torch is not needed to see it."""
    if not path.is_file():
        raise MissingInput(
            f"{path}: no such file. It is written at a run's first validation; is this the run's folder?"
        )


def make_folder(folder: Path, key: str) -> None:
    """Create the folder that `key` names, and try to write there. Raises InputError when that is impossible.

    To be called before the work whose results go there.
    """
    probe = temporary_path(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"{key}={folder} cannot be written to ({error.strerror}). Name another folder.") from error


def check_names(folder: Path, names: Iterable[str], key: str) -> None:
    """Raise InputError where a disk cannot hold these files: a name too long, or two names that are one there.

    folder   exists and can be written to
    key      argument that named it
    """
    with_case = set(names)
    longest = max(with_case, key=lambda name: len(os.fsencode(name)), default="")
    if len(os.fsencode(longest)) > _longest_name(folder):
        raise InputError(f"{key}={folder}: the name {longest} is too long for this disk. Rename the scan or case.")
    spellings: dict[str, str] = {}
    for name in sorted(with_case):
        other = spellings.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name and not _tells_case(folder):
            raise InputError(
                f"{key}={folder}: {other} and {name} would be one file, because this disk does not tell upper from "
                "lower case. Rename one, or name a folder on another disk."
            )


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        return 255


def _tells_case(folder: Path) -> bool:
    """Return whether `a` and `A` are two files in a folder."""
    probe = temporary_path(folder / "case")
    probe.write_bytes(b"")
    try:
        return not probe.with_name(probe.name.upper()).exists()
    finally:
        probe.unlink()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends, and is removed when the block raises."""
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb") as opened:
                _sync(opened.fileno())
        sync_folder(temporary)

        # A rename cannot replace a folder that is not empty (errno 39): move the old one away, delete it last.
        old = temporary_path(path, "old")
        if path.exists():
            os.rename(path, old)
        os.rename(temporary, path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def exclusive(folder: Path, key: str) -> Iterator[None]:
    """Hold `folder` for this process, and remove what killed processes left half-written in it.

    The lock belongs to the process, so a kill releases it. On a disk without locks, the process of this machine that is
    named in the file holds the folder while it lives. A folder created here is removed again when nothing else was
    written to it. Raises InputError naming `key` when `folder` is a file or another process holds it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{key}={folder} is a file. Name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with open(lock, "a+") as file:
        file.seek(0)
        holder = file.read().strip()
        if not _locked(file.fileno(), holder):
            who = holder.removesuffix(f" on {socket.gethostname()}") or "unknown"
            raise InputError(
                f"{key}={folder} is in use by another process ({who}). Wait until it ends, or name another folder."
            )
        file.truncate(0)
        file.write(_me())
        file.flush()
        _remove_leftovers(folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it would hide what ended the block
                file.truncate(0)
                if os.listdir(folder) == [lock.name]:
                    lock.unlink()
                    folder.rmdir()


def _locked(handle: int, holder: str) -> bool:
    """Return whether this process holds the lock now. holder: what the last process wrote that did not end well."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        pid = holder.removeprefix("pid ").partition(" ")[0]  # a network drive without locks
        same_machine = holder.endswith(f" on {socket.gethostname()}")
        return not (same_machine and pid.isdigit() and int(pid) != os.getpid() and _is_alive(int(pid)))
    return True


def _me() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


def _remove_leftovers(folder: Path) -> None:
    for leftover in (*folder.rglob(".*.part"), *folder.rglob(".*.old")):
        pid = leftover.name.split(".")[-2]
        if not pid.isdigit() or _is_alive(int(pid)):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)  # it may have been in a folder that is removed already


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # a process of another user
    return True


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that becomes `path`, durably, when the block ends, and is removed when the block raises."""
    temporary = temporary_path(path)
    try:
        with _open_to_write(temporary) as file:
            yield file
            file.flush()
            _sync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _sync(handle: int) -> None:
    """Make a file durable, unless its disk does not know the call."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):  # EBADF: open for reading only
            raise


@contextmanager
def _open_to_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file so that every OSError names it; that of a full disk does not."""
    try:
        with open(path, "wb") as file:
            yield file
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
