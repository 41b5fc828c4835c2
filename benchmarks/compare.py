"""Did it get slower? `python -m benchmarks.compare OLD NEW`: two files or folders of lines.

Each figure that both have, of the same machine: new / old, so that above 1 is better, and the noise: how far the
windows of both reach from their medians, as a share, added. Exit code 1 when something lost more than its noise, or
has no value any more.
"""

import sys
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.lib.lines import Line, asked, read_all
from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.utils.errors import InputError, JobFailed

LESS_IS_BETTER = ("HU", "batches that differ", "s", "ms", "%", "MB")  # units, or how they begin


@dataclass(frozen=True)
class Args:
    old: str = MISSING
    """File or folder of recorded lines."""
    new: str = MISSING
    """File or folder of recorded lines."""


class Change(NamedTuple):
    """Of one figure."""

    old: Line
    new: Line
    ratio: float | None  # above 1 is better; None where one has no value
    noise: float  # a ratio this far from 1 may be chance

    @property
    def lost(self) -> bool:
        return self.old.value is not None and (self.ratio is None or self.ratio < 1 - self.noise)


def main(args: Args) -> None:
    old, new = (_latest(read_all(key, getattr(args, key))) for key in ("old", "new"))
    common = [key for key in old if key in new]
    if not common:
        machines = [sorted({key[0] for key in lines}) for lines in (old, new)]
        raise InputError(
            f"old={args.old} and new={args.new} have no figure in common. Machines: {machines[0]} and {machines[1]}; "
            "quick lines do not count."
        )
    changes = [change(old[key], new[key]) for key in common]
    for one in changes:
        print(in_words(one))
    print(f"{len(changes)} figures in both; only in old: {len(old.keys() - new)}; only in new: {len(new.keys() - old)}")
    if lost := [_name(one.new) for one in changes if one.lost]:
        raise JobFailed(f"{len(lost)} of {len(changes)} lost more than their noise: {', '.join(lost)}.")


def change(old: Line, new: Line) -> Change:
    if old.value is None or new.value is None:
        return Change(old, new, None, 0.0)
    better, worse = (old.value, new.value) if _less_is_better(new.unit) else (new.value, old.value)
    ratio = better / worse if worse else (1.0 if better == worse else float("inf"))
    return Change(old, new, ratio, reach(old) + reach(new))


def reach(line: Line) -> float:
    """How far the windows lie from their median, at most, as a share of it."""
    low, high = line.spread
    return max(high - line.value, line.value - low) / abs(line.value) if line.value else 0.0


def in_words(one: Change) -> str:
    if one.ratio is None:
        why = "has no value any more" if one.old.value is not None else "had none before"
        return f"{_name(one.new)}: {why}: {one.new.config.get('failed', '')}".rstrip(": ")
    verdict = "LOST" if one.lost else "gained" if one.ratio > 1 + one.noise else "within noise"
    return (
        f"{_name(one.new)}: {one.old.value:g} -> {one.new.value:g} {one.new.unit}, {one.ratio:.3f} +- {one.noise:.3f}: "
        f"{verdict}"
    )


def _latest(lines: list[Line]) -> dict[tuple[str, str], Line]:
    """{(machine, what was asked): the latest line}."""
    found = {}
    for line in lines:
        if not line.quick:
            env = line.env
            machine = f"{env['gpus']} x {env['gpu'] or 'no GPU'}, {env['cpu_cores']} cores ({env['cpu']})"
            found[machine, asked(line)] = line
    return found


def _less_is_better(unit: str) -> bool:
    return any(unit == word or unit.startswith(f"{word} ") for word in LESS_IS_BETTER)


def _name(line: Line) -> str:
    return f"{line.question} {line.config.get('variant', '')}".strip()


if __name__ == "__main__":
    words = sys.argv[1:]
    if len(words) == 2 and not any("=" in word or word.startswith("-") for word in words):
        words = [f"old={words[0]}", f"new={words[1]}"]
    cli.run(main, Args, words)
