"""Files that are never half-written: write to a temporary file, fsync, rename. A reader sees the old or the new one."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kits_dist.utils.errors import InputError


def temporary_path(path: Path) -> Path:
    """Return where this process writes what becomes `path`; `exclusive` removes it after the process was killed."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: cannot be read (not an object).")
    return content


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
    """Make the names in a folder durable: a rename is durable only after this."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path, key: str) -> None:
    """Create the folder that `key` names. Raises InputError when that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{key}={folder} cannot be made ({error.strerror}). Name another folder.") from error


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
                os.fsync(opened.fileno())
        sync_folder(temporary)

        # A rename cannot replace a folder that is not empty (errno 39): move the old one away, delete it last.
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
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

    The lock belongs to the process, so a kill releases it. A folder created here is removed again when nothing else
    was written to it. Raises InputError naming `key` when `folder` is a file or another process holds it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{key}={folder} is a file. Name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with open(lock, "a+") as file:
        if not _locked(file.fileno()):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(
                f"{key}={folder} is in use by another process ({holder}). Wait until it ends, or name another folder."
            )
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        _remove_leftovers(folder)
        try:
            yield
        finally:
            if os.listdir(folder) == [lock.name]:
                lock.unlink()
                folder.rmdir()


def _locked(handle: int) -> bool:
    """Return whether this process holds the lock now; True on network drives without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


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
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def _open_to_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file so that every OSError names it; that of a full disk does not."""
    try:
        with open(path, "wb") as file:
            yield file
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
