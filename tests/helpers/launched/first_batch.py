"""Measure how long `kits_dist.train` takes to its first batch, and the memory that a rank then holds.

python -m tests.helpers.launched.first_batch key=value ...   keys of kits_dist.train. Prints one line of JSON:

seconds        {stage: seconds from the start, after the imports}
anonymous_mb   memory of this process that is no mapped file, interpreter and libraries included
"""

import functools
import json
import sys
import time
from pathlib import Path

import torch._dynamo  # noqa: F401  imported by torch's first optimizer; here, so that no stage pays for it

from kits_dist import cli, train
from kits_dist.config import Config
from kits_dist.data.backends import cpu, dali  # noqa: F401  likewise
from kits_dist.training import instruments, setup

STAGES = {  # name in kits_dist.training.setup or .instruments
    "Store": "store opened, its files checked",
    "start": "processes met",
    "build_train_loader": "training samples dealt",
    "build_val_loader": "validation samples dealt",
    "Tracker": "model, run folder, trackers",
}


class FirstBatch(Exception):
    """The first batch has arrived; training ends here."""


def main(words: list[str]) -> None:
    config = cli.load(Config, words)
    seconds, begin = {}, time.perf_counter()

    def reached(stage: str) -> None:
        seconds[stage] = round(time.perf_counter() - begin, 2)

    def timed(work, stage: str):
        @functools.wraps(work)
        def wrapped(*args, **more):
            result = work(*args, **more)
            reached(stage)
            return result

        return wrapped

    def step(_, stream, *args, **more):
        if len(next(stream).image) == config.data.batch_size:
            reached("first batch")
        raise FirstBatch

    for name, stage in STAGES.items():
        module = setup if hasattr(setup, name) else instruments
        setattr(module, name, timed(getattr(module, name), stage))
    setup.TrainStep.__call__ = step
    try:
        train.main(config)
    except FirstBatch:
        rows = dict(row.split(":") for row in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        print(json.dumps({"seconds": seconds, "anonymous_mb": int(rows["Anonymous"].split()[0]) * 1024 / 1e6}))


if __name__ == "__main__":
    main(sys.argv[1:])
