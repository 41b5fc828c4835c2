"""`accelerate launch` that ends with the program's own last line: `kits-dist launch OPTIONS -m kits_dist.train ...`.

Takes the options of `accelerate launch`, which prints a traceback of its own whenever a program ends with another code
than 0, as after "stopped as asked, saved at step 51" (75). This one prints none, and ends with the program's code.
"""

import logging
import os
import signal
import subprocess
import sys

from kits_dist.distributed.launcher import QUIET
from kits_dist.utils.output import protect_output


def main(argv: list[str] | None = None) -> None:
    """Launch, and exit with the code of the process that ended first."""
    from accelerate.commands.launch import launch_command, launch_command_parser  # imports torch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    protect_output()
    os.environ[QUIET] = "1"
    logging.disable(logging.ERROR)  # torchrun's agent logs what the program has said, with its own stack
    try:
        launch_command(launch_command_parser().parse_args(argv))
    except subprocess.CalledProcessError as error:
        _exit(error.returncode)
    except ChildFailedError as error:
        _exit(min(error.failures.values(), key=lambda failure: failure.timestamp).exitcode)
    except KeyboardInterrupt:  # the processes have got it, too, and save
        _exit(_wait_for_children())


def _exit(code: int) -> None:
    """Exit as the program did; say which signal killed it, since it could not."""
    if code < 0:
        print(f"kits_dist.launch: the program was killed by {signal.Signals(-code).name}.", file=sys.stderr)
        code = 128 - code
    sys.exit(code)


def _wait_for_children() -> int:
    """Return the exit code of the last child process; 130 where there is none, as for an interrupted shell command."""
    code = 130
    while True:
        try:
            code = os.waitstatus_to_exitcode(os.wait()[1])
        except ChildProcessError:
            return code
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    main()
