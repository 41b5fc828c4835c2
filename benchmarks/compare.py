"""Did it get slower? `python -m benchmarks.compare OLD NEW`: two files or folders of lines.

For each value that both have from the same machine it prints new / old, inverted where less is better, and the noise:
how far the windows of both reach from their medians, as shares, added. Exit code 1 when a value lost more than its
noise, or is missing now.
"""

import sys
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.lib.lines import Line, key, name_of, noise, read_all
from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.utils.errors import InputError, JobFailed

LESS_IS_BETTER = ("HU", "batches that differ", "s", "ms", "%", "MB")  # units, or their first words


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    old: str = MISSING
    """File or folder of recorded lines."""
    new: str = MISSING
    """File or folder of recorded lines."""


class Change(NamedTuple):
    """Change of one value."""

    old: Line
    new: Line
    ratio: float | None  # above 1 is better; None where one has no value
    noise: float  # a ratio this far from 1 may be chance

    @property
    def lost(self) -> bool:
        """True for a loss beyond the noise, and for a value that is missing now."""
        return self.old.value is not None and (self.ratio is None or self.ratio < 1 - self.noise)


def main(args: Args) -> None:
    """Print all changes. Raises JobFailed for losses."""
    old, new = _latest(read_all("old", args.old)), _latest(read_all("new", args.new))
    common = [name for name in old if name in new]
    if not common:
        machines = [sorted({name[0] for name in lines}) for lines in (old, new)]
        raise InputError(
            f"old={args.old} and new={args.new} have no value in common. Machines: {machines[0]} and {machines[1]}; "
            "quick lines do not count."
        )
    changes = [change(old[name], new[name]) for name in common]
    for one in changes:
        print(describe(one))
    print(f"{len(changes)} values in both; only in old: {len(old.keys() - new)}; only in new: {len(new.keys() - old)}")
    lost = [name_of(one.new) for one in changes if one.lost]
    if lost:
        raise JobFailed(f"{len(lost)} of {len(changes)} lost more than their noise: {', '.join(lost)}.")


def change(old: Line, new: Line) -> Change:
    """Compare two lines that answer one question."""
    if old.value is None or new.value is None:
        return Change(old, new, None, 0.0)
    less_is_better = any(new.unit == unit or new.unit.startswith(f"{unit} ") for unit in LESS_IS_BETTER)
    better, worse = (old.value, new.value) if less_is_better else (new.value, old.value)
    ratio = better / worse if worse else (1.0 if better == worse else float("inf"))
    return Change(old, new, ratio, noise(old) + noise(new))


def describe(one: Change) -> str:
    """Return the change for a reader at the terminal."""
    if one.ratio is None:
        why = "has no value now" if one.old.value is not None else "had none before"
        return f"{name_of(one.new)}: {why}: {one.new.config.get('failed', '')}".rstrip(": ")
    verdict = "LOST" if one.lost else "gained" if one.ratio > 1 + one.noise else "within noise"
    values = f"{one.old.value:g} -> {one.new.value:g} {one.new.unit}"
    return f"{name_of(one.new)}: {values}, {one.ratio:.3f} +- {one.noise:.3f}: {verdict}"


def _latest(lines: list[Line]) -> dict[tuple[str, str], Line]:
    """Return {(machine, key of the line): the latest line}."""
    found = {}
    for line in lines:
        if not line.quick:
            env = line.env
            machine = f"{env['gpus']} x {env['gpu'] or 'no GPU'}, {env['cpu_cores']} cores ({env['cpu']})"
            found[machine, key(line)] = line
    return found


if __name__ == "__main__":
    words = sys.argv[1:]
    if len(words) == 2 and not any("=" in word or word.startswith("-") for word in words):
        words = [f"old={words[0]}", f"new={words[1]}"]
    cli.run(main, Args, words)
