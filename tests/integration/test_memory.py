"""A training process holds no copy of the data: its own memory does not grow with the number of cases."""

from pathlib import Path

import pytest

from kits_dist import prepare
from tests.conftest import write_case
from tests.helpers import fork_server

pytestmark = pytest.mark.slow(minutes=1)
SHAPE = (32, 256, 256)  # 4.2 MB with its label
EPOCHS = {3: 8, 24: 1}  # by number of cases: equally many steps of training and of validation


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("stores")
    for cases in EPOCHS:
        for number in range(cases):
            write_case(root / f"raw{cases}", number, SHAPE)
        prepare.main(prepare.Args(source=str(root / f"raw{cases}"), store=str(root / f"{cases}"), workers=1))
    return {cases: root / f"{cases}" for cases in EPOCHS}


@pytest.mark.parametrize("backend", ["dali", "opencv"])
def test_a_training_process_holds_no_more_memory_for_eight_times_the_cases(stores, tmp_path, backend):
    used = {}
    for cases, store in stores.items():
        words = [f"data.store={store}", f"run={tmp_path / f'{cases}'}", f"data.backend={backend}", "data.fold=all"]
        words += ["data.batch_size=16", "data.size_px=64x64", "data.threads=1", "log.images=0", "train.precision=fp32"]
        words += ["model.arch=simple_unet", "model.width=4", "optim.patience=0", f"optim.epochs={EPOCHS[cases]}"]
        said = fork_server.run("tests.helpers.launched.held_memory", *words)
        used[cases] = float(said.split()[-1])
    # the larger store is 88 MB larger; allocators differ by a few MB from run to run
    assert abs(used[24] - used[3]) < 25, used
