"""A training process holds no copy of the data: its own memory does not grow with the number of cases."""

import subprocess
import sys

import pytest

from kits_dist import prepare
from tests.conftest import write_case
from tests.test_end_to_end import ROOT

SHAPE = (32, 384, 384)  # 9.4 MB with its label

LOOK = """
import itertools, sys
from kits_dist.batch import ALONE
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data import build_train_loader
from kits_dist.data.store import Store
store = Store(sys.argv[1])
data = DataConfig(store="s", batch_size=16, size_px=(128, 128), threads=1, backend=sys.argv[2], fold="all")
loader, feed = build_train_loader(store, data, AugmentConfig(), 0, ALONE)
for batch in itertools.islice(loader, max(40, len(feed.rows) // 16 + 1)):
    assert batch.image.isfinite().all()
rows = dict(row.split(":") for row in open("/proc/self/smaps_rollup").read().splitlines()[1:])
print(int(rows["Anonymous"].split()[0]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dali", "opencv"])
def test_anonymous_memory_is_the_same_for_eight_times_the_cases(tmp_path, backend):
    used = {}
    for cases in (3, 24):
        for number in range(cases):
            write_case(tmp_path / f"raw{cases}", number, SHAPE)
        store = tmp_path / f"store{cases}"
        prepare.main(prepare.Args(source=str(tmp_path / f"raw{cases}"), store=str(store), workers=2))
        done = subprocess.run(
            [sys.executable, "-c", LOOK, str(store), backend], capture_output=True, text=True, cwd=ROOT, check=True
        )
        used[cases] = float(done.stdout)
    # the larger store is 200 MB larger; allocators differ by a few MB from run to run
    assert abs(used[24] - used[3]) < 25, used
