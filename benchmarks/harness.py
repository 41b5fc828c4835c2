"""How every benchmark here measures and writes: warm up, time whole windows with the device drained at both ends.

Variants are interleaved round by round (A B C A B C ...), so that a machine that slows down meets all of them alike.
A `Line` is one figure with its spread, its ceiling and the machine it was taken on; `record` appends it as JSON.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from kits_dist import phantom, prepare
from kits_dist.config import as_plain
from kits_dist.data.store import Store
from kits_dist.runtime import environment

RESULTS = Path(__file__).parent / "results"
_PLACES = {"store": "DIR", "truth": "DIR", "sheet": "FILE.png"}  # arguments whose value is this machine's own
MIN_WINDOWS = 5  # a median of fewer says little


def _nothing() -> None:
    pass


class Variant(NamedTuple):
    """One way of doing the work."""

    step: Callable[[], object]  # one unit of work; may return before the device has finished it
    before: Callable[[], object] = _nothing  # just before a window's clock starts
    after: Callable[[], object] = _nothing  # just after it has stopped


class Windows(NamedTuple):
    """What was timed of one variant: each window is `steps` steps, from a drained device to a drained device."""

    seconds: list[float]
    steps: int

    def rates(self, items_per_step: float) -> list[float]:
        """Items per second, a figure a window."""
        return [items_per_step * self.steps / s for s in self.seconds]


class Ceiling(NamedTuple):
    """What the figure is compared with, in the figure's own unit; `value` None needs a reason."""

    name: str
    value: float | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """One measurement, complete enough to be read on its own."""

    question: str
    value: float | None  # median over windows; None when the variant failed: config.failed says how
    unit: str
    spread: tuple[float, float] | None  # least and greatest window
    windows: int
    warmup_steps: int
    ceiling: Ceiling
    ratio: float | None  # value / ceiling
    config: dict[str, Any]
    env: dict[str, Any]
    command: str
    time_utc: str
    quick: bool

    def __post_init__(self) -> None:
        if self.ceiling.value is None and not self.ceiling.reason:
            raise ValueError(f"{self.question}: ceiling {self.ceiling.name!r} is unknown and gives no reason")


def drain(device: torch.device) -> None:
    """Wait until the device has done all it was given; called at the two ends of a window and nowhere inside."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # sync


def settle(limit_s: float = 120) -> None:
    """Wait until this process and its children rest: what one variant prepares ahead is not made under the clock of the
    next. Raises RuntimeError when something goes on computing."""
    deadline, used = time.perf_counter() + limit_s, _cpu_seconds()
    while True:
        time.sleep(0.05)
        before, used = used, _cpu_seconds()
        if used - before < 0.015:  # a third of a core; children's clocks tick every 10 ms
            return
        if time.perf_counter() > deadline:
            raise RuntimeError(f"after {limit_s:g} s this process or one of its workers still computes")


def _cpu_seconds() -> float:
    """CPU time of this process' threads and of its children so far."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def time_window(variant: Variant, steps: int, device: torch.device, lead_in: int = 0) -> float:
    """Seconds of `steps` steps. `lead_in` untimed ones go first: they bring queues to where a long run has them."""
    for _ in range(lead_in):
        variant.step()
    drain(device)
    variant.before()
    begin = time.perf_counter()
    for _ in range(steps):
        variant.step()
    drain(device)
    seconds = time.perf_counter() - begin
    variant.after()
    return seconds


def interleave(
    variants: dict[str, Variant],
    device: torch.device,
    *,
    windows: int,
    window_s: float,
    warmup_steps: int,
    lead_in: int = 0,
) -> dict[str, Windows]:
    """Warm every variant up, then time one window of each, `windows` times over.

    A window of each variant has the same number of steps each time, chosen so that it lasts about `window_s`.
    """
    if windows < MIN_WINDOWS:
        raise ValueError(f"windows={windows}: a median and a spread need at least {MIN_WINDOWS}.")
    steps = {}
    for name, variant in variants.items():
        for _ in range(warmup_steps):
            variant.step()
        once = time_window(variant, 2, device, lead_in) / 2
        steps[name] = max(1, math.ceil(window_s / max(once, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(windows):
        for name, variant in variants.items():
            seconds[name].append(time_window(variant, steps[name], device, lead_in))
    return {name: Windows(seconds[name], steps[name]) for name in variants}


def median(values: list[float]) -> tuple[float, tuple[float, float]]:
    """Median and (least, greatest)."""
    return statistics.median(values), (min(values), max(values))


def line(
    question: str,
    values: list[float],
    unit: str,
    ceiling: Ceiling,
    config: dict[str, Any],
    args: Any,
    *,
    warmup_steps: int = 0,
    ratio: float | None = None,
) -> Line:
    """Median, spread and ratio of a figure's windows. `args` are the benchmark's arguments, with a field `quick`.

    values   one a window; none when the variant failed (then config["failed"] says how)
    ratio    where a better one than value / ceiling was taken, such as the median over rounds
    """
    value, spread = median(values) if values else (None, None)
    if ratio is None and value is not None and ceiling.value:
        ratio = value / ceiling.value
    return Line(
        question,
        None if value is None else _rounded(value),
        unit,
        None if spread is None else (_rounded(spread[0]), _rounded(spread[1])),
        len(values),
        warmup_steps,
        ceiling._replace(value=None if ceiling.value is None else _rounded(ceiling.value)),
        None if ratio is None else _rounded(ratio),
        config,
        dict(machine()),
        command(args),
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        args.quick,
    )


def record(line: Line, out: str | Path = "") -> Path:
    """Append the line to OUT/<date>_<device>_<question>.jsonl (default: benchmarks/results) and print it for people."""
    folder = Path(out) if out else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{line.time_utc[:10]}_{slug(line.env['gpu'] or 'cpu')}_{line.question}.jsonl"
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(to_json(line), allow_nan=False) + "\n")
    print(in_words(line), flush=True)
    return path


def to_json(line: Line) -> dict[str, Any]:
    plain = {field.name: getattr(line, field.name) for field in dataclasses.fields(line)}
    ceiling = {"name": line.ceiling.name, "value": line.ceiling.value}
    if line.ceiling.reason:
        ceiling["reason"] = line.ceiling.reason
    return plain | {"ceiling": ceiling, "spread": None if line.spread is None else list(line.spread)}


def from_json(row: dict[str, Any]) -> Line:
    spread = None if row["spread"] is None else tuple(row["spread"])
    return Line(**row | {"ceiling": Ceiling(**row["ceiling"]), "spread": spread})


def read(path: Path) -> list[Line]:
    """All lines of a .jsonl file, in order."""
    return [from_json(json.loads(text)) for text in path.read_text(encoding="utf-8").splitlines() if text]


def in_words(line: Line) -> str:
    name = line.config.get("variant", "")
    if line.value is None:
        return f"{line.question} {name}: failed: {line.config.get('failed', 'no reason given')}"
    words = f"{line.question} {name}: {line.value:g} {line.unit} [{line.spread[0]:g} .. {line.spread[1]:g}]"
    if line.ratio is not None:
        words += f", {line.ratio:.3f} of {line.ceiling.name}"
    return words + ("  (quick: proves that it runs, says nothing else)" if line.quick else "")


@functools.lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """kits_dist.runtime.environment, and on a GPU its driver and power limit. No host, user or path names."""
    return environment() | _nvidia()


def command(args: Any) -> str:
    """`python -m benchmarks.x key=value ...` with what differs from the defaults, no place of this machine among it."""
    words = []
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if value == field.default or field.name == "out":
            continue
        if field.name in _PLACES:
            value = _PLACES[field.name]
        elif isinstance(value, tuple):
            joint = "x" if all(isinstance(part, int) for part in value) else ","
            value = joint.join(map(str, value)) if joint == "x" else f"[{joint.join(map(str, value))}]"
        words.append(f"{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    module = type(args).__module__
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return " ".join(["python -m", spec.name if spec else module, *words])


def slug(name: str) -> str:
    """'NVIDIA H200' -> 'nvidia-h200'."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def pick_device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def plain(config: Any) -> dict[str, Any]:
    """A configuration for a line, without its folders."""
    return {key: value for key, value in as_plain(config).items() if key != "store"}


@contextlib.contextmanager
def store_or_phantoms(store: str, cases: int, size: tuple[int, int, int]) -> Iterator[Store]:
    """The store named, or one of phantoms in a folder that vanishes. size: (slices, rows, columns)."""
    if store:
        yield Store(store)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield make_store(Path(folder), cases, size)


def make_store(folder: Path, cases: int, size: tuple[int, int, int]) -> Store:
    """Phantoms in FOLDER/raw, prepared into FOLDER/store."""
    workers = 1 if cases * math.prod(size) < 2e6 else 0  # starting a process costs more than a small case
    raw, path = folder / "raw", folder / "store"
    phantom.main(phantom.Args(output=str(raw), cases=cases, size=size, workers=workers))
    prepare.main(prepare.Args(source=str(raw), store=str(path), workers=workers))
    return Store(path)


def _nvidia() -> dict[str, Any]:
    """{"driver", "power_limit_w"} of the first GPU; null without one, or where the driver does not tell."""
    if not torch.cuda.is_available():
        return {"driver": None, "power_limit_w": None}
    ask = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader,nounits", "--id=0"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout
        driver, _, watts = said.strip().partition(", ")
    except (OSError, subprocess.SubprocessError):
        return {"driver": None, "power_limit_w": None}
    return {"driver": driver or None, "power_limit_w": float(watts) if re.fullmatch(r"[\d.]+", watts) else None}


def _rounded(value: float) -> float:
    """Five significant digits: more than any spread here deserves."""
    return float(f"{value:.5g}")
