"""The two ways a program may end badly, told apart by type; `cli.run` alone turns them into exit codes."""


class InputError(ValueError):
    """What the user named (key, value, folder, file) cannot be used. Says what, where, how to fix. Exit code 2."""


class MissingInput(InputError, FileNotFoundError):
    """The user named a file or folder that is not there. Exit code 2."""

    __str__ = Exception.__str__  # OSError would print its errno form


class MissingPackage(InputError, ImportError):
    """The choice needs an optional package that is not installed. Exit code 2."""


class JobFailed(RuntimeError):
    """The job ran and something in it failed, e.g. one bad case among good ones. Exit code 1."""


class Preempted(RuntimeError):
    """Asked to stop, everything is saved; the same command with resume=auto goes on. Exit code 75 (EX_TEMPFAIL)."""
