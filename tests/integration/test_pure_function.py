"""A sample is a pure function of (store, configuration, seed, position), whatever ranks are killed and resumed."""

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
pytestmark = [pytest.mark.slow(minutes=1), pytest.mark.spread]


def launch(store, output, loader, world, batch, first, stop, victim=-1, after=-1) -> list[int]:
    """Run all ranks and return their exit codes; all end when rank `victim` kills itself after `after` batches.

    loader    backend and sampler
    """
    output.mkdir(exist_ok=True)
    numbers = (batch, first, stop, victim, after)
    ranks = fork_server.start_ranks(
        world, output / "log", "tests.helpers.launched.hashes", store.path, output, *loader, *numbers
    )
    if victim >= 0:
        ranks[victim].wait(200)
        for rank in ranks:
            rank.kill()  # as a launcher ends the others
    return [rank.wait(200) for rank in ranks]


def samples(output) -> dict[int, tuple]:
    """{position: (case, index, plane, sha256)}; a position delivered twice must have the same sample."""
    found: dict[int, tuple] = {}
    for path in output.glob("rank_*.txt"):
        for line in path.read_text().splitlines():
            position, *what = line.split()
            assert len(what) == 4 and found.setdefault(int(position), tuple(what)) == tuple(what)
    return found


@pytest.mark.parametrize("loader", [("dali", "natural"), ("opencv", "tumor")])
def test_samples_are_the_same_on_1_2_and_3_processes_killed_and_resumed(store, tmp_path, loader):
    """One stream over 1, 2 and 3 processes in any order; in the first two legs a random rank is killed."""
    seed = int(os.environ.get("SEED", time.time_ns() % 10**6))
    chance = random.Random(seed)
    print(f"again with SEED={seed}")
    stop = EPOCHS * sum(case.shape[0] for case in store.cases if case.case_id in store.splits.select("all")[0])
    assert launch(store, tmp_path / "whole", loader, 1, 4, 0, stop) == [0]
    whole = samples(tmp_path / "whole")
    assert set(range(stop)) <= set(whole) and len({what[3] for what in whole.values()}) == len(whole)
    first = 0
    legs = zip(chance.sample([1, 2, 3], 3), chance.sample([4, 5, 6], 3), strict=True)
    for leg, (world, batch) in enumerate(legs):
        steps = -(-(stop - first) // (world * batch))
        victim, after = (chance.randrange(world), chance.randint(0, steps // 2)) if leg < 2 else (-1, -1)
        print(f"{world} processes, batch {batch}, from {first}: rank {victim} is killed after {after}")
        codes = launch(store, tmp_path / "legs", loader, world, batch, first, stop, victim, after)
        assert (codes == [0] * world) == (leg == 2) and (leg == 2 or codes[victim] == -signal.SIGKILL)
        found = samples(tmp_path / "legs")
        first = next((p for p in range(stop) if p not in found), stop)  # every rank has consumed what comes before
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
    """The process exits cleanly and at once, whatever ends it: no hang, no process left."""
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
    with pytest.raises(ProcessLookupError):  # no process of its group is left
        os.killpg(process.pid, 0)
    assert process.returncode == code, stderr
    assert ending == "end" or time.monotonic() - begin < 30
    assert ("in the loop" in stderr) == (ending == "exception") and "terminate called" not in stderr
