"""How a program may fail: `cli.run` alone turns the type of an exception into an exit code."""


class InputError(ValueError):
    """A key, value, folder or file that the user named cannot be used; the message says how to fix it. Exit code 2."""


class MissingInput(InputError, FileNotFoundError):
    """A file or folder that the user named does not exist. Exit code 2."""

    __str__ = Exception.__str__  # OSError would print an errno


class MissingPackage(InputError, ImportError):
    """The choice needs an optional package that is not installed. Exit code 2."""


class JobFailed(RuntimeError):
    """The job ran and a part of it failed, such as one of many cases. Exit code 1."""


class Preempted(RuntimeError):
    """A requested stop; everything is saved, and the same command with resume=auto continues. Exit code 75."""
