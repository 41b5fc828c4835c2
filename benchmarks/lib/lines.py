"""A measurement as one line of JSON: its figure, spread, ceiling, machine and command; written, read, put in words."""

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
_PLACES = {"store": "DIR", "truth": "DIR", "sheet": "FILE.png"}  # arguments whose value is this machine's own


class Ceiling(NamedTuple):
    """What the figure is compared with, in the figure's own unit; `value` None needs a reason."""

    name: str
    value: float | None
    reason: str = ""


A_RATIO = Ceiling("none", None, "a ratio of two figures of this run: more is better")


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
    env: dict[str, Any]  # machine, versions, commit, dirty
    command: str
    time_utc: str
    quick: bool
    answer: bool = False  # it answers the file's question; the others say how it comes about

    def __post_init__(self) -> None:
        if self.ceiling.value is None and not self.ceiling.reason:
            raise ValueError(f"{self.question}: ceiling {self.ceiling.name!r} is unknown and gives no reason")


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
    answer: bool = False,
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
        None if value is None else rounded(value),
        unit,
        None if spread is None else (rounded(spread[0]), rounded(spread[1])),
        len(values),
        warmup_steps,
        ceiling._replace(value=None if ceiling.value is None else rounded(ceiling.value)),
        None if ratio is None else rounded(ratio),
        config,
        dict(machine()),
        command(args),
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        args.quick,
        answer,
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
    """All lines of a .jsonl file, in order. Raises InputError for one that is no line of a benchmark."""
    found = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if text:
            try:
                found.append(from_json(json.loads(text)))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}, line {number}: no line of a benchmark ({error}).") from error
    return found


def read_all(key: str, where: str | Path) -> list[Line]:
    """The lines of a file, or of every .jsonl of a folder. Raises MissingInput naming `key`, the argument."""
    where = Path(where)
    paths = [where] if where.is_file() else sorted(where.glob("*.jsonl"))
    if not paths:
        raise MissingInput(f"{key}={where}: no .jsonl file there. Make one: python -m benchmarks.loader")
    return [line for path in paths for line in read(path)]


def asked(line: Line) -> str:
    """What makes two lines answers to one question: all settings, none of the findings."""
    return json.dumps([line.question, line.config.get("variant"), setting(line.config), line.unit])


def setting(config: dict[str, Any]) -> str:
    """Size, batch, network, precision, kind of data and region, as far as the line has them."""
    model = config.get("model") or {}
    network = {"simple_unet": f"simple_unet width {model.get('width')}"}.get(
        model.get("arch", ""), model.get("encoder")
    )
    size = "x".join(map(str, config.get("size_px", [])))
    words = [size, f"batch {config['batch_size']}" if "batch_size" in config else "", network or ""]
    words += [str(config.get("precision", "")), "phantoms" if config.get("data") == "phantom" else ""]
    words += [str(config.get("region", ""))]
    return ", ".join(word for word in words if word)


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
    """kits_dist.utils.environment, and on a GPU its driver and power limit. No host, user or path names."""
    return environment() | _nvidia()


def command(args: Any) -> str:
    """`python -m benchmarks.x key=value ...` with what differs from the defaults, no place of this machine among it."""
    words = []
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if value == field.default or field.name in ("out", "runs"):
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


def rounded(value: float) -> float:
    """Five significant digits: more than any spread here deserves."""
    return float(f"{value:.5g}")


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
