"""Run by test_memory: train, and print the memory that the process held when it saved last.

python -m tests.helpers.launched.held_memory key=value ...   keys of kits_dist.train. Prints MB of anonymous memory (no
mapped file), the interpreter and its libraries included, while both loaders exist.
"""

import sys
from pathlib import Path

from kits_dist import cli
from kits_dist.config import Config
from kits_dist.data.store import Store
from kits_dist.training import loop
from kits_dist.training.epoch_end import EpochEnd


def anonymous_mb() -> float:
    """Return the anonymous memory of this process in units of 10^6 bytes."""
    rows = dict(row.split(":") for row in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(rows["Anonymous"].split()[0]) * 1024 / 1e6


def main(words: list[str]) -> None:
    """Train to the end with the keys `words`."""
    held = []
    save = EpochEnd.save

    def measured(*args):
        held.append(anonymous_mb())
        return save(*args)

    EpochEnd.save = measured
    config = cli.load(Config, words)
    loop.run(config, Store(config.data.store))  # slices of any size: what it measures is memory
    print(held[-1])


if __name__ == "__main__":
    main(sys.argv[1:])
