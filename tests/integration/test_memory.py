"""A training process holds no copy of the data: its own memory does not grow with the number of cases."""

import subprocess
import sys
from pathlib import Path

import pytest

from kits_dist import prepare
from tests.conftest import write_case
from tests.helpers.launching import ROOT

pytestmark = pytest.mark.slow
SHAPE = (32, 384, 384)  # 9.4 MB with its label
EPOCHS = {3: 8, 24: 1}  # by number of cases: as many steps, of training and of validation

# Trains, and says what it held when it saved last, while both loaders were there.
LOOK = """
import sys
from kits_dist import cli, train
from kits_dist.config import Config

def anonymous_mb():
    rows = dict(row.split(":") for row in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return int(rows["Anonymous"].split()[0]) / 1024

save, seen = train.EpochEnd.save, []
train.EpochEnd.save = lambda *given: (seen.append(anonymous_mb()), save(*given))
train.main(cli.load(Config, sys.argv[1:]))
print(seen[-1])
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("stores")
    for cases in EPOCHS:
        for number in range(cases):
            write_case(root / f"raw{cases}", number, SHAPE)
        prepare.main(prepare.Args(source=str(root / f"raw{cases}"), store=str(root / f"{cases}"), workers=2))
    return {cases: root / f"{cases}" for cases in EPOCHS}


@pytest.mark.parametrize("backend", ["dali", "opencv"])
def test_a_training_process_holds_as_much_of_its_own_for_eight_times_the_cases(stores, tmp_path, backend):
    used = {}
    for cases, store in stores.items():
        words = [f"data.store={store}", f"run={tmp_path / f'{cases}'}", f"data.backend={backend}", "data.fold=all"]
        words += ["data.batch_size=16", "data.size_px=64x64", "data.threads=1", "log.images=0", "train.precision=fp32"]
        words += ["model.arch=simple_unet", "model.width=4", "optim.patience=0", f"optim.epochs={EPOCHS[cases]}"]
        done = subprocess.run(
            [sys.executable, "-c", LOOK, *words], capture_output=True, text=True, cwd=ROOT, check=True
        )
        used[cases] = float(done.stdout.split()[-1])
    # the larger store is 200 MB larger; allocators differ by a few MB from run to run
    assert abs(used[24] - used[3]) < 25, used
