"""What this machine can do, and what to set: `python -m kits_dist.doctor [store=DIR] [run=DIR]`.

Prints one line per topic: ok, warn or fail, what was found, how to fix it. The exit code is 1 when a check fails.
Uses no network.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli
from kits_dist.data.store import Store
from kits_dist.diagnostics.checks import check_all, launch_command
from kits_dist.diagnostics.facts import Check
from kits_dist.diagnostics.probes import probe
from kits_dist.utils.errors import InputError, JobFailed

WIDTH = 100


@dataclass(frozen=True)
class Args:
    """Arguments of the command line."""

    store: str = ""
    """Slice store to check: what it holds, and whether it fits into memory."""
    run: str = ""
    """Folder of a future run, existing or not: whether its disk has enough space."""


def main(args: Args) -> None:
    """Check this machine and print the launch command that suits it. Raises JobFailed naming the checks that failed."""
    store = Store(args.store, key="store") if args.store else None
    run = _existing_folder(args.run) if args.run else None
    facts = probe(store, run)
    checks = check_all(facts)
    for check in checks:
        print(format_check(check))
    print(f"\nto train:\n{launch_command(facts, args.store or 'DIR', args.run or 'DIR')}", flush=True)

    failed = [check.topic for check in checks if check.level == "fail"]
    if failed:
        raise JobFailed(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}. Fix them first.")


def format_check(check: Check) -> str:
    """Return `ok    topic      what was found`, wrapped; a fix that does not fit stands below, in one piece to copy."""
    indent = " " * 17
    text = f"{check.level:<4}  {check.topic:<9}  {check.found}"
    text = textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    if not check.fix:
        return text
    if "\n" not in check.fix and len(text.splitlines()[-1]) + len(check.fix) + 5 <= WIDTH:
        return f"{text}  -> {check.fix}"
    return f"{text}\n{indent}-> " + check.fix.replace("\n", f"\n{indent}   ")


def _existing_folder(run: str) -> Path:
    """Return the folder, or its nearest parent that exists. Raises InputError when that is a file."""
    for path in (Path(run), *Path(run).parents):
        if path.is_dir():
            return path
        if path.exists():
            break
    raise InputError(f"run={run}: no folder can be made there. Name another one.")


if __name__ == "__main__":
    cli.run(main, Args)
