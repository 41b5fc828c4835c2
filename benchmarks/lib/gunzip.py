"""The least work of preparing a data set: unpack each file, write and sync as many bytes as the store holds.

`python -m benchmarks.lib.gunzip source=DIR output=DIR` is what benchmarks.prepare is compared with.
"""

import functools
import gzip
import os
from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.imaging.datasets import CaseFiles, find_cases
from kits_dist.utils.parallel import run_all


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    source: str = MISSING
    """Folder of cases."""
    output: str = MISSING
    """Folder for the bytes."""
    workers: int = 0
    """Processes; 0: one per core."""


def main(args: Args) -> None:
    """Unpack all cases."""
    Path(args.output).mkdir(parents=True)
    work = functools.partial(unpack, folder=Path(args.output))
    total = sum(size for _, size in run_all(work, find_cases(Path(args.source)).cases, "gunzip", args.workers))
    print(f"{total / 1e9:.2f} GB written")


def unpack(case: CaseFiles, folder: Path) -> int:
    """Write a byte per voxel of the CT (int16) and of the labels (uint8) of a case. Returns the bytes written."""
    image, label = (gzip.decompress(path.read_bytes()) for path in (case.image, case.label))
    written = 0
    for name, content, size in (("image", image, len(image) // 2), ("label", label, len(label))):
        with open(folder / f"{case.case_id}_{name}.bin", "wb") as file:
            file.write(memoryview(content)[:size])
            file.flush()
            os.fsync(file.fileno())
            written += size
    return written


if __name__ == "__main__":
    cli.run(main, Args)
