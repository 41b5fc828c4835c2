"""Numba, with one way to compile and to keep what was compiled."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(signature: Any = None, **options: Any) -> Callable[[Callable], Any]:
    """Compile a function once per machine, without the interpreter's lock.

    signature   of the arguments, compiled at import; None: of the first call's
    options     further ones of numba.njit

    The result is cached next to the source, or in the user's cache folder where that is read-only.
    """
    given = () if signature is None else (signature,)

    def decorate(function: Callable) -> Any:
        try:
            return numba.njit(*given, cache=True, nogil=True, error_model="numpy", **options)(function)
        except (RuntimeError, OSError):  # no cache folder is writable, or its disk is full: each process compiles
            return numba.njit(*given, nogil=True, error_model="numpy", **options)(function)

    return decorate
