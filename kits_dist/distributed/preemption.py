"""A request to stop (TERM, INT, USR1) that every rank obeys at the same step, so that nothing is lost.

The handler only sets a flag: saving inside it could meet a collective half-way. At each step boundary the flags are
summed over ranks on a gloo group beside the training's own, asynchronously and looked at one step later: the host never
waits for a GPU, and all ranks learn of it at the same step.
"""

import ctypes
import datetime
import os
import signal
import sys

import torch
import torch.distributed as dist

from kits_dist.distributed import launcher

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
_PR_SET_PDEATHSIG = 1  # prctl(2)


class StopRequest:
    """While entered, a signal is a request, from `listen` on. Left by an error, signals end the process as always."""

    def __init__(self):
        self._asked = False
        self._former: dict = {}
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def __enter__(self) -> "StopRequest":
        follow_launcher()
        return self

    def listen(self, world: int, timeout_s: float) -> None:
        """All ranks call it as soon as they have met: to one that waits for the others a signal must stay the end.

        timeout_s: how long to wait for a rank that is silent; one that is gone is noticed at once.
        """
        timeout = datetime.timedelta(seconds=timeout_s)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world > 1 else None
        self._former = {number: signal.signal(number, self._note) for number in SIGNALS}

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is None:
            self._last()
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Once per step on every rank: whether any rank had been asked to stop at the step before."""
        if self._group is None:
            return self._asked
        if self._last():
            return True
        flag = torch.tensor([int(self._asked)])
        self._pending = (dist.all_reduce(flag, group=self._group, async_op=True), flag)
        return False

    def _last(self) -> bool:
        if self._pending is None:
            return False
        work, flag = self._pending
        self._pending = None
        work.wait()
        return bool(flag.item())

    def _note(self, number: int, frame: object) -> None:
        self._asked = True


def follow_launcher() -> None:
    """Receive TERM when the launcher dies (USR1 and KILL end it at once): no process is left behind. Linux only.

    Who was started directly (a shell, nohup, srun, a notebook) has no launcher, and outlives what started it.
    """
    kind = launcher.started_by()
    if kind is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # accelerate's single process shares its session: another one's means that it died during our imports
    if kind == "accelerate" and os.getsid(os.getppid()) != os.getsid(0):
        os.kill(os.getpid(), signal.SIGTERM)
