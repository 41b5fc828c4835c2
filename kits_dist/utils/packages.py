"""Optional packages: one that is missing, or installed and broken, is a message that says which of the two."""

import contextlib
from collections.abc import Iterator

from kits_dist.utils.errors import InputError, JobFailed, MissingPackage

NOT_INSTALLED = "is not installed"


@contextlib.contextmanager
def optional_package(
    module: str, need: str, instead: str, raised: tuple[type[Exception], ...] = (Exception,)
) -> Iterator[None]:
    """Turn what an import of `module` raises inside the block into MissingPackage with the true reason.

    need      who asks for what, as the message begins: "DICOM needs SimpleITK"
    instead   how to install it, and what to do without it
    raised    what counts as a failed import. All by default, which is right for a block that only imports: a broken
              shared library raises OSError, a package made for another NumPy ValueError or AttributeError
    """
    try:
        yield
    except (InputError, JobFailed):  # ours
        raise
    except raised as error:
        raise MissingPackage(f"{need}, which {why_missing(error, module)}. {instead}") from error


def why_missing(error: Exception, module: str) -> str:
    """Return NOT_INSTALLED, or that `module` is there and which error its import ended with."""
    absent = error.name if isinstance(error, ModuleNotFoundError) else None
    if absent and f"{module}.".startswith(f"{absent}."):
        return NOT_INSTALLED
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    reason = lines[-1]  # of an error in a worker process the text is its traceback
    if not reason.startswith(type(error).__name__):
        reason = f"{type(error).__name__}: {reason}"
    return f"is installed but does not work here ({reason.rstrip('.')})"
