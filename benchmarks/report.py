"""Recorded lines -> the table of the README: `python -m benchmarks.report` prints markdown; nobody types a number.

Lines with quick=true never reach it: they prove that a benchmark runs and say nothing else. Rows of different machines
stand in different tables. Of lines that ask the same on the same machine and torch, the latest is taken.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, Line, read
from kits_dist import cli
from kits_dist.errors import MissingInput

HEAD = ["question", "variant", "setting", "value", "spread", "of its ceiling", "date", "commit"]


@dataclass(frozen=True)
class Args:
    results: str = ""  # folder or file of recorded lines; empty: benchmarks/results
    question: str = ""  # only this one; empty: all


def main(args: Args) -> None:
    where = Path(args.results) if args.results else RESULTS
    paths = [where] if where.is_file() else sorted(where.glob("*.jsonl"))
    if not paths:
        raise MissingInput(f"results={where}: no .jsonl file there. Make one: python -m benchmarks.loader")
    lines = [line for path in paths for line in read(path) if not args.question or line.question == args.question]
    print(
        table(line for line in lines if not line.quick)
        or "No lines but quick ones: run a benchmark without quick=true."
    )


def table(lines: Iterable[Line]) -> str:
    """One markdown table a machine, in the order of the lines; empty without lines."""
    machines: dict[str, dict[str, Line]] = {}
    for line in lines:
        machines.setdefault(_machine(line), {})[_asked(line)] = line
    parts = []
    for name, latest in machines.items():
        rows = [HEAD, ["---"] * len(HEAD), *(_row(line) for line in latest.values())]
        parts.append(f"{name}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts)


def _machine(line: Line) -> str:
    env = line.env
    gpu = f"{env['gpus']} x {env['gpu']}" if env["gpu"] else "no GPU"
    limit = f" ({env['power_limit_w']:g} W)" if env.get("power_limit_w") else ""
    driver = f", driver {env['driver']}" if env.get("driver") else ""
    return (
        f"**{gpu}{limit}, {env['cpu_cores']} cores ({env['cpu']}), torch {env['torch']}, DALI {env['dali']}{driver}**"
    )


def _asked(line: Line) -> str:
    """What makes two lines answers to one question: all settings, none of the findings."""
    return json.dumps([line.question, line.config.get("variant"), _setting(line.config), line.unit])


def _setting(config: dict[str, Any]) -> str:
    model = config.get("model") or {}
    network = {"simple_unet": f"simple_unet width {model.get('width')}"}.get(
        model.get("arch", ""), model.get("encoder")
    )
    size = "x".join(map(str, config.get("size_px", [])))
    words = [size, f"batch {config['batch_size']}" if "batch_size" in config else "", network or ""]
    words += [str(config.get("precision", "")), "phantoms" if config.get("data") == "phantom" else ""]
    return ", ".join(word for word in words if word)


def _row(line: Line) -> list[str]:
    name = str(line.config.get("variant", ""))
    when = [line.time_utc[:10], f"{line.env['commit']}{' (dirty)' if line.env['dirty'] else ''}"]
    if line.value is None:
        return [line.question, name, _setting(line.config), "failed", "", line.config.get("failed", ""), *when]
    share = f"{line.ratio:.3f} of {line.ceiling.name}" if line.ratio is not None else "-"
    value, spread = f"{line.value:g} {line.unit}", f"{line.spread[0]:g} .. {line.spread[1]:g}"
    return [line.question, name, _setting(line.config), value, spread, share, *when]


if __name__ == "__main__":
    cli.run(main, Args)
