"""A measurement as one line of JSON: value, spread, ceiling, machine and command. Written, read and described here."""

import dataclasses
import functools
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kits_dist.utils.environment import environment
from kits_dist.utils.errors import InputError, MissingInput

RESULTS = Path(__file__).parent.parent / "results"
QUICK_RESULTS = "runs/benchmarks"  # for lines that prove nothing but that they run
_PLACES = ("store", "truth", "labels", "slices", "against")  # arguments that name a place of this machine


class Ceiling(NamedTuple):
    """What a value is compared with, in the same unit; `value` None needs a reason."""

    name: str
    value: float | None
    reason: str = ""


class Baseline(NamedTuple):
    """Windows timed in turns with those of a value. The ratio is the median over rounds, not of the two medians."""

    name: str
    values: list[float]


def no_ceiling(reason: str) -> Ceiling:
    """Return a ceiling for a value that has none."""
    return Ceiling("none", None, reason)


A_RATIO = no_ceiling("a ratio of two figures of this run: more is better")


@dataclasses.dataclass(frozen=True)
class Line:
    """One measurement, complete enough to be read alone."""

    question: str
    value: float | None  # median over windows; None when the candidate failed: config.failed says why
    unit: str
    spread: tuple[float, float] | None  # smallest and largest window
    windows: int
    warmup_steps: int
    ceiling: Ceiling
    ratio: float | None  # value / ceiling
    config: dict[str, Any]
    env: dict[str, Any]  # machine, versions, commit, dirty
    command: str
    time_utc: str
    quick: bool
    answer: bool = False  # it answers the benchmark's question; the others explain the answer

    def __post_init__(self) -> None:
        if self.ceiling.value is None and not self.ceiling.reason:
            raise ValueError(f"{self.question}: ceiling {self.ceiling.name!r} is unknown and gives no reason")


class Recorder:
    """Writes the lines of one run of a benchmark; `common` is the configuration that they share."""

    def __init__(self, question: str, args: Any, common: dict[str, Any], unit: str = "images/s", warmup_steps: int = 0):
        self.question, self.args, self.common = question, args, common
        self.unit, self.warmup_steps = unit, warmup_steps

    def write(
        self,
        variant: str,
        values: list[float],
        ceiling: Ceiling | Baseline,
        config: dict[str, Any] | None = None,
        *,
        unit: str = "",
        answer: bool = False,
    ) -> Line:
        """Write the line of a variant to `args.out`, print it and return it.

        values   one for each window; empty for a variant that failed, whose config["failed"] says why
        config   of this variant; it wins over what is common
        unit     where it is not that of the other lines
        """
        config = {"variant": variant, **self.common, **(config or {})}
        asked = getattr(self.args, "windows", 0)
        if 0 < len(values) < asked:
            config["stopped_early"] = f"{len(values)} of {asked} windows"
        ratio = None
        if isinstance(ceiling, Baseline):
            if values:
                ratio, spread = median(rounds(values, ceiling.values))
                config["ratio_spread"] = [round(value, 4) for value in spread]
            ceiling = Ceiling(ceiling.name, median(ceiling.values)[0])
        made = line(self.question, values, unit or self.unit, ceiling, config, self.args, ratio=ratio, answer=answer)
        made = dataclasses.replace(made, warmup_steps=self.warmup_steps)
        record(made, self.args.out)
        return made


def median(values: list[float]) -> tuple[float, tuple[float, float]]:
    """Return the median, and (smallest, largest)."""
    return statistics.median(values), (min(values), max(values))


def rounds(ours: list[float], theirs: list[float]) -> list[float]:
    """Return the ratios of neighboring windows: what slows the machine down for a while slows both."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def line(
    question: str,
    values: list[float],
    unit: str,
    ceiling: Ceiling,
    config: dict[str, Any],
    args: Any,
    *,
    ratio: float | None = None,
    answer: bool = False,
) -> Line:
    """Return the line of a variant: median, spread and ratio of its windows, this machine and this command.

    values   one for each window; empty when the variant failed (then config["failed"] says why)
    args     the benchmark's arguments, with a field `quick`
    ratio    where a better one than value / ceiling is known, such as the median over rounds
    """
    value, spread = median(values) if values else (None, None)
    if ratio is None and value is not None and ceiling.value:
        ratio = value / ceiling.value
    return Line(
        question=question,
        value=None if value is None else rounded(value),
        unit=unit,
        spread=None if spread is None else (rounded(spread[0]), rounded(spread[1])),
        windows=len(values),
        warmup_steps=0,
        ceiling=ceiling._replace(value=None if ceiling.value is None else rounded(ceiling.value)),
        ratio=None if ratio is None else rounded(ratio),
        config=config,
        env=dict(machine()),
        command=command(args),
        time_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        quick=args.quick,
        answer=answer,
    )


def record(line: Line, out: str | Path = "") -> Path:
    """Append the line to OUT/<date>_<device>_<question>.jsonl and print it.

    Without `out`: to benchmarks/results, which is committed, or QUICK_RESULTS where it measures nothing.
    """
    folder = Path(out or (QUICK_RESULTS if line.quick else RESULTS))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{line.time_utc[:10]}_{slug(line.env['gpu'] or 'cpu')}_{line.question}.jsonl"
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(to_json(line), allow_nan=False) + "\n")
    print(describe(line), flush=True)
    return path


def to_json(line: Line) -> dict[str, Any]:
    """Return the line as JSON writes it; a ceiling without a reason leaves that key out."""
    ceiling = {name: value for name, value in line.ceiling._asdict().items() if name != "reason" or value}
    return {**vars(line), "ceiling": ceiling, "spread": None if line.spread is None else list(line.spread)}


def from_json(row: dict[str, Any]) -> Line:
    """Return the line that `to_json` wrote."""
    spread = None if row["spread"] is None else tuple(row["spread"])
    return Line(**row | {"ceiling": Ceiling(**row["ceiling"]), "spread": spread})


def read(path: Path) -> list[Line]:
    """Return all lines of a .jsonl file, in order. Raises InputError for one that no benchmark wrote."""
    found = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if text:
            try:
                found.append(from_json(json.loads(text)))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}, line {number}: this is not the line of a benchmark ({error}).") from error
    return found


def read_all(argument: str, where: str | Path) -> list[Line]:
    """Return the lines of a file, or of every .jsonl file of a folder. Raises MissingInput naming `argument`."""
    where = Path(where)
    paths = [where] if where.is_file() else sorted(where.glob("*.jsonl"))
    if not paths:
        raise MissingInput(f"{argument}={where}: there is no .jsonl file. Make one: python -m benchmarks.loader")
    return [line for path in paths for line in read(path)]


def key(line: Line) -> str:
    """Return what two lines must share to be answers to one question: the settings, none of the results."""
    return json.dumps([line.question, line.config.get("variant"), setting(line.config), line.unit])


def setting(config: dict[str, Any]) -> str:
    """Return size, batch, network, precision, kind of data and region, as far as the line has them."""
    model = config.get("model") or {}
    network = model.get("encoder")
    if model.get("arch") == "simple_unet":
        network = f"simple_unet width {model.get('width')}"
    parts = [
        "x".join(map(str, config.get("size_px", []))),
        f"batch {config['batch_size']}" if "batch_size" in config else "",
        network or "",
        str(config.get("precision", "")),
        "phantoms" if config.get("data") == "phantom" else "",
        str(config.get("region", "")),
    ]
    return ", ".join(filter(None, parts))


def name_of(line: Line) -> str:
    """Return "question variant"."""
    return f"{line.question} {line.config.get('variant', '')}".strip()


def describe(line: Line) -> str:
    """Return the line for a reader at the terminal."""
    if line.value is None:
        return f"{name_of(line)}: failed: {line.config.get('failed', 'no reason given')}"
    text = f"{name_of(line)}: {line.value:g} {line.unit} [{line.spread[0]:g} .. {line.spread[1]:g}]"
    if line.ratio is not None:
        text += f", {line.ratio:.3f} of {line.ceiling.name}"
    if "stopped_early" in line.config:
        text += f"  (stopped early: {line.config['stopped_early']})"
    return text + ("  (quick: proves that it runs, measures nothing)" if line.quick else "")


def noise(line: Line) -> float:
    """Return how far the windows lie from their median at most, as a share of it."""
    low, high = line.spread
    return max(high - line.value, line.value - low) / abs(line.value) if line.value else 0.0


@functools.lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """Return kits_dist.utils.environment, and the driver and power limit of a GPU. No host, user or folder names."""
    return environment() | _nvidia()


def command(args: Any) -> str:
    """Return `python -m benchmarks.x key=value ...` with what differs from the defaults, without folder names."""
    parts = []
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if value == field.default or field.name in ("out", "runs"):
            continue
        if field.name in _PLACES:
            value = "DIR"
        elif isinstance(value, tuple) and all(isinstance(part, int) for part in value):
            value = "x".join(map(str, value))
        elif isinstance(value, tuple):
            value = f"[{','.join(map(str, value))}]"
        elif isinstance(value, bool):
            value = str(value).lower()
        parts.append(f"{field.name}={value}")
    module = type(args).__module__
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return " ".join(["python -m", spec.name if spec else module, *parts])


def slug(name: str) -> str:
    """Return a name for files: 'NVIDIA H200' -> 'nvidia-h200'."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def rounded(value: float) -> float:
    """Round to five significant digits, more than any spread here deserves."""
    return float(f"{value:.5g}")


def _nvidia() -> dict[str, Any]:
    """Return {"driver", "power_limit_w"} of the first GPU; null without one, or where the driver does not tell."""
    unknown = {"driver": None, "power_limit_w": None}
    if not torch.cuda.is_available():
        return unknown
    ask = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader,nounits", "--id=0"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return unknown
    driver, _, watts = answer.strip().partition(", ")
    return {"driver": driver or None, "power_limit_w": float(watts) if re.fullmatch(r"[\d.]+", watts) else None}
