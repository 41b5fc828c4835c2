"""Standard output that cannot end a program: text that cannot be written or encoded is no error.

The reader of a pipe may leave (`| head`), a terminal may close, the disk of a log may be full, and a stream may be
closed from the beginning (`>&-`). Then text is lost, never work.
"""

import contextlib
import io
import os
import select
import sys
from typing import Any, TextIO, cast


def protect_output() -> None:
    """Replace sys.stdout and sys.stderr by streams on the same files whose writes do not fail."""
    _open_missing_files()
    sys.stdout = _protected(sys.stdout, 1)
    sys.stderr = _protected(sys.stderr, 2)


class _LenientFile(io.RawIOBase):
    """A file that is open for writing, where a write that fails is left out."""

    def __init__(self, handle: int):
        self._handle = handle

    def fileno(self) -> int:
        return self._handle

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._handle)

    def write(self, content) -> int:
        rest = memoryview(content).cast("B")
        while rest:
            try:
                rest = rest[os.write(self._handle, rest) :]
            except BlockingIOError:  # a pipe that another program made non-blocking is full: wait as for others
                select.select([], [self._handle], [])
            except OSError:
                break
        return len(content)


def _open_missing_files() -> None:
    """Let files 0 to 2 be /dev/null where they are closed: else messages would go into the next file that is opened."""
    while True:
        handle = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if handle > 2:
            os.close(handle)
            return
        os.set_inheritable(handle, True)  # by worker processes, too


def _protected(stream: TextIO | None, handle: int) -> TextIO:
    """Return a stream on the same file; one that is no file (of a notebook, of a test) as it is.

    stream   None where the file was closed when Python started
    handle   its number in that case
    """
    if stream is not None:
        try:
            handle = stream.fileno()
        except (OSError, ValueError):
            return stream
        with contextlib.suppress(OSError):
            stream.flush()
    unbuffered = getattr(stream, "write_through", False)  # PYTHONUNBUFFERED
    file = _LenientFile(handle)
    return io.TextIOWrapper(
        cast(Any, file) if unbuffered else io.BufferedWriter(file),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors="backslashreplace",  # a name that is not UTF-8, or output that is ASCII only
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=unbuffered,
    )
