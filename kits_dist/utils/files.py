"""Files that are never seen half-written: write beside, fsync, rename. A reader sees the old content or the new."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kits_dist.utils.errors import InputError


def temporary_path(path: Path) -> Path:
    """Where this process writes what will become `path`; `exclusive` removes it when the process was killed."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` in one step; durable once this returns."""
    beside = temporary_path(path)
    try:
        with _opened(beside) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def make_folder(folder: Path, key: str) -> None:
    """`folder`, the value of `key`, where results will be written. Raises InputError when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{key}={folder} cannot be made ({error.strerror}). Name another folder.") from error


def read_json(path: Path) -> dict:
    """Raises InputError naming `path` when it is not there, not readable or holds no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
        return content
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` that becomes `path` when the block ends well, and vanishes when it does not.

    A non-empty folder cannot be replaced by rename (errno 39), so an old `path` is moved away first and deleted last.
    """
    beside = temporary_path(path)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for file in beside.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        sync_folder(beside)
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            os.rename(path, old)
        os.rename(beside, path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_array(path: Path, array: np.ndarray) -> None:
    """numpy.save, but a full disk is an OSError that says so: NumPy's own is `N requested and M written`."""
    array = np.ascontiguousarray(array)
    with _opened(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """For writing; a full disk, too, is named by its file."""
    try:
        with open(path, "wb") as file:
            yield file
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def exclusive(folder: Path, key: str) -> Iterator[None]:
    """Hold `folder` for this process: a second one that asks is refused, and leftovers of killed ones are removed.

    The lock belongs to the process, so nothing stays locked after a kill. A folder made for it is removed again when
    nothing else was written there. Raises InputError naming `key` (the argument that named the folder).
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{key}={folder} is a file. Name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with open(lock, "a+") as file:
        if not _locked(file):
            file.seek(0)
            raise InputError(
                f"{key}={folder} is in use by another process ({file.read().strip() or 'unknown'}). Wait until it "
                "ends, or name another folder."
            )
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        _sweep(folder)
        try:
            yield
        finally:
            if os.listdir(folder) == [lock.name]:
                lock.unlink()
                folder.rmdir()


def _sweep(folder: Path) -> None:
    """Remove what writers killed half-way left beside their targets; those still at work are let be."""
    for suffix in ("part", "old"):
        for leftover in folder.rglob(f".*.{suffix}"):
            pid = leftover.name.split(".")[-2]
            if pid.isdigit() and not _is_alive(int(pid)):
                shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # there signal 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _locked(file) -> bool:
    """Whether the lock is now ours; also where the system or the network drive knows no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)


def sync_folder(path: Path) -> None:
    """A rename is durable only after its folder is; Windows has no such call."""
    if os.name != "nt":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
