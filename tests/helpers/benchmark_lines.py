"""Made-up lines of benchmarks, and a clock that only `sleep` moves."""

import time
from dataclasses import dataclass

from benchmarks.lib import lines


@dataclass(frozen=True)
class Args:
    store: str = ""
    size_px: tuple[int, int] = (0, 0)
    variants: tuple[str, ...] = ()
    out: str = ""
    windows: int = 0
    quick: bool = False


def made(values: list[float], *, quick: bool = False, unit: str = "images/s", answer: bool = False, **config):
    """Return a line of the question "demo"."""
    return lines.line("demo", values, unit, lines.Ceiling("roof", 40.0), config, Args(quick=quick), answer=answer)


class Clock:
    """Stands still except in `sleep`."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
