"""A request to stop, by any signal that asks for it, that every rank obeys at the same step, so that nothing is lost.

The handler only sets a flag: saving inside it could interrupt a collective. At each step boundary the flags are summed
over ranks in a gloo group of their own, asynchronously, and read one step later: the host never waits for a GPU, and
all ranks learn of the request at the same step.
"""

import ctypes
import datetime
import os
import signal
import sys
from typing import cast

import torch
import torch.distributed as dist

from kits_dist.distributed import launcher

# of users and schedulers, of a terminal that is closed, and of a limit of CPU time
_USUAL = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]
# Whatever else ends a process and is no fault of its own: timers, a power supply that fails, and what containers are
# stopped with (SIGQUIT, SIGRTMIN+3). A profiler may use one of them, so those with a handler are left alone.
_RARE = [getattr(signal, f"SIG{name}", 0) for name in ("QUIT", "ALRM", "VTALRM", "PROF", "PWR", "IO", "STKFLT")]
_RARE += range(getattr(signal, "SIGRTMIN", 0), getattr(signal, "SIGRTMAX", -1) + 1)
SIGNALS = [*_USUAL, *filter(None, _RARE)]
_PR_SET_PDEATHSIG = 1  # prctl(2)


class StopRequest:
    """Context manager in which a signal is a request, from `listen` on. After it signals end the process again."""

    def __init__(self):
        self._asked = False
        self._previous_handlers: dict = {}
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def __enter__(self) -> "StopRequest":
        follow_launcher()
        return self

    def listen(self, world: int, timeout_s: float) -> None:
        """Start to take signals as requests. All ranks call it once they have met: before, a signal must end a rank.

        timeout_s   how long to wait for a rank that does not answer; one that is gone is noticed at once
        """
        timeout = datetime.timedelta(seconds=timeout_s)
        if world > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
        self._previous_handlers = {number: signal.signal(number, self._note) for number in SIGNALS if _is_free(number)}

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is None:
            self._finish_pending()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Return whether any rank was asked to stop before the previous step. Every rank calls it once per step."""
        if self._group is None:
            return self._asked
        if self._finish_pending():
            return True
        flag = torch.tensor([int(self._asked)])
        self._pending = (dist.all_reduce(flag, group=self._group, async_op=True), flag)
        return False

    def _finish_pending(self) -> bool:
        if self._pending is None:
            return False
        work, flag = self._pending
        self._pending = None
        work.wait()
        return bool(flag.item())

    def _note(self, number: int, frame: object) -> None:
        self._asked = True


def _is_free(number: int) -> bool:
    """Return whether a signal can be taken as a request: under nohup SIGHUP cannot."""
    handler = signal.getsignal(number)
    if number == signal.SIGHUP:
        return handler is not signal.SIG_IGN
    return number in _USUAL or handler is signal.SIG_DFL


def follow_launcher() -> None:
    """Ask the kernel for TERM when the launcher dies, which USR1 and KILL end at once. Linux only.

    So no process is left behind. A process that was started directly (shell, nohup, srun, notebook) has no launcher and
    outlives its parent.
    """
    kind = launcher.started_by()
    if kind is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # accelerate's single process shares the launcher's session; another session means it died during our imports
    if kind == "accelerate" and os.getsid(os.getppid()) != os.getsid(0):
        os.kill(os.getpid(), signal.SIGTERM)
