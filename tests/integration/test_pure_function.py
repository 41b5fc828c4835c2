"""What a sample looks like depends on (store, configuration, seed, position): really launched, killed and resumed."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import fork_server
from tests.helpers.launching import ROOT

EPOCHS = 3
pytestmark = pytest.mark.slow


def launch(store, output, ways, world, batch, first, stop, mortal=-1, die=-1) -> list[int]:
    """ways: backend and sampler. Exit codes; rank `mortal` kills itself after `die` batches and the
    others are ended."""
    output.mkdir(exist_ok=True)
    numbers = (batch, first, stop, mortal, die)
    ranks = fork_server.start_ranks(
        world, output / "log", "tests.helpers.launched.hashes", store.path, output, *ways, *numbers
    )
    if mortal >= 0:
        ranks[mortal].wait(200)
        for rank in ranks:
            rank.kill()  # as a launcher ends the others
    return [rank.wait(200) for rank in ranks]


def seen(output) -> dict[int, tuple]:
    """{position: (case, index, plane, sha256)}; a position seen twice must have been the same."""
    found: dict[int, tuple] = {}
    for path in output.glob("rank_*.txt"):
        for line in path.read_text().splitlines():
            position, *what = line.split()
            assert len(what) == 4 and found.setdefault(int(position), tuple(what)) == tuple(what)
    return found


@pytest.mark.parametrize("ways", [("dali", "natural"), ("opencv", "tumor")])
def test_samples_are_the_same_on_1_2_and_3_processes_killed_and_resumed(store, tmp_path, ways):
    """A stream dealt to 1, 2 and 3 processes in any order; in the first two legs any rank dies after any batch."""
    seed = int(os.environ.get("SEED", time.time_ns() % 10**6))
    chance = random.Random(seed)
    print(f"again with SEED={seed}")
    stop = EPOCHS * sum(case.shape[0] for case in store.cases if case.case_id in store.splits.select("all")[0])
    assert launch(store, tmp_path / "whole", ways, 1, 4, 0, stop) == [0]
    whole = seen(tmp_path / "whole")
    assert set(range(stop)) <= set(whole) and len({what[3] for what in whole.values()}) == len(whole)
    first = 0
    legs = zip(chance.sample([1, 2, 3], 3), chance.sample([4, 5, 6], 3), strict=True)
    for leg, (world, batch) in enumerate(legs):
        steps = -(-(stop - first) // (world * batch))
        mortal, die = (chance.randrange(world), chance.randint(0, steps // 2)) if leg < 2 else (-1, -1)
        print(f"{world} processes, batch {batch}, from {first}: rank {mortal} dies after {die}")
        codes = launch(store, tmp_path / "legs", ways, world, batch, first, stop, mortal, die)
        assert (codes == [0] * world) == (leg == 2) and (leg == 2 or codes[mortal] == -signal.SIGKILL)
        found = seen(tmp_path / "legs")
        first = next((p for p in range(stop) if p not in found), stop)  # all before it was consumed by every rank
        assert first == stop if leg == 2 else first < stop
    assert {p: what for p, what in found.items() if p < stop} == {p: whole[p] for p in range(stop)}


ENDINGS = {
    "end": ("", 0),
    "exception": ("raise RuntimeError('in the loop')", 1),
    "interrupt": ("print('ready', flush=True); import time; time.sleep(60)", -signal.SIGINT),
}


@pytest.mark.parametrize(
    ("backend", "ending"), [*itertools.product(["dali", "opencv"], ENDINGS), ("fixed", "exception")]
)
def test_a_loader_ends_with_its_process(store, backend, ending):
    """Cleanly and at once, whatever ends the process: no hang at exit, no process left."""
    words, code = ENDINGS[ending]
    script = f"""
import itertools
from kits_dist.distributed.ranks import Ranks
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.store import Store
store = Store({str(store.path)!r})
data = DataConfig(store="s", batch_size=8, size_px=(64, 64), threads=2, backend={backend!r})
loader, _ = build_train_loader(store, data, AugmentConfig(), 0, Ranks())
for batch in itertools.islice(loader, 5):
    assert batch.image.isfinite().all()
{words}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    if ending == "interrupt":
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):  # nobody is left of its group
        os.killpg(process.pid, 0)
    assert process.returncode == code, stderr
    assert ending == "end" or time.monotonic() - begin < 30
    assert ("in the loop" in stderr) == (ending == "exception") and "terminate called" not in stderr
