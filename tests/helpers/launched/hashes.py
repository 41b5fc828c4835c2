"""Run by test_pure_function: write a hash of every sample that a rank receives.

python -m tests.helpers.launched.hashes STORE OUTPUT BACKEND SAMPLER BATCH START STOP VICTIM AFTER

Each rank appends lines `position case index plane sha256` to OUTPUT/rank_R.txt until position STOP. Rank VICTIM kills
itself after AFTER batches; -1: none does.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

from kits_dist.config import DataConfig, TrainConfig
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.sampler import train_positions
from kits_dist.data.store import Store
from kits_dist.distributed.runtime import start
from tests.helpers.pixels import DRAWN


def main(store_path: str, output: str, backend: str, sampler: str, *numbers: int) -> None:
    batch_size, first, stop, victim, after = numbers
    store = Store(store_path)
    ranks = start(TrainConfig(), 1, Path(output), seed=0).ranks
    shape = {"batch_size": batch_size, "size_px": (64, 64), "context": 1}
    data = DataConfig(store=store_path, backend=backend, sampler=sampler, fold="all", **shape)
    loader, _ = build_train_loader(store, data, DRAWN, 5, ranks, start=first)
    with open(Path(output) / f"rank_{ranks.rank}.txt", "a", buffering=1) as lines:
        for step, batch in enumerate(loader):
            positions = train_positions(step, batch_size, ranks.rank, ranks.world, first)
            if positions[0] - ranks.rank >= stop:
                return
            if step == after and ranks.rank == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            names = (batch.case.tolist(), batch.index.tolist(), batch.plane.tolist())
            for k, name in enumerate(zip(positions, *names, strict=True)):
                pixels = batch.image[k].numpy().tobytes() + batch.label[k].numpy().tobytes()
                lines.write(" ".join(map(str, name)) + f" {hashlib.sha256(pixels).hexdigest()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:5], *map(int, sys.argv[5:]))
