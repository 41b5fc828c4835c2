"""A request to stop (TERM, INT, USR1) that every rank obeys at the same step, so that nothing is lost.

The handler only sets a flag: saving inside it could meet a collective half-way. At each step boundary the flags are
summed over ranks on a gloo group beside the training's own, asynchronously and looked at one step later: the host never
waits for a GPU, and all ranks learn of it at the same step.
"""

import ctypes
import datetime
import signal
import sys

import torch
import torch.distributed as dist

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
_PR_SET_PDEATHSIG = 1  # prctl(2)


class StopRequest:
    """While entered, a signal is a request. Left by an error, signals end the process at once, as they always do."""

    def __init__(self, world: int, timeout_s: float):
        """timeout_s: how long to wait for a rank that is silent; one that is gone is noticed at once."""
        self._asked = False
        self._former: dict = {}
        timeout = datetime.timedelta(seconds=timeout_s)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world > 1 else None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        if world > 1:
            follow_parent()

    def __enter__(self) -> "StopRequest":
        self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is None:
            self._last()
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Once per step on every rank: whether any rank had been asked to stop at the step before."""
        if self._group is None:
            return self._asked
        known = self._last()
        flag = torch.tensor([int(self._asked)])
        self._pending = (dist.all_reduce(flag, group=self._group, async_op=True), flag)
        return known

    def _last(self) -> bool:
        if self._pending is None:
            return False
        work, flag = self._pending
        self._pending = None
        work.wait()
        return bool(flag.item())

    def _note(self, number: int, frame: object) -> None:
        self._asked = True


def follow_parent() -> None:
    """Receive TERM when the launcher dies (USR1 and KILL end it at once): no rank is left behind. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
