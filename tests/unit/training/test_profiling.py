"""Where the time of a step went."""

import json

from kits_dist import cli, train
from kits_dist.config import Config
from kits_dist.training.profiling import ROWS
from tests.helpers.small_run import SMALL


def test_a_training_writes_a_trace_and_prints_once_which_operators_took_the_time(store, tmp_path, capfd):
    arguments = [f"data.store={store.path}", f"run={tmp_path / 'run'}", *SMALL, "log.images=0", "optim.epochs=4"]
    train.main(cli.load(Config, [*arguments, "train.profile=true"]))
    trace = json.loads((tmp_path / "run" / "profile" / "trace_0.json").read_text())
    names = {row.get("name") for row in trace["traceEvents"]}
    assert "kits_dist/data" in names and any("convolution" in str(name) for name in names)
    said = "".join(capfd.readouterr())
    assert said.count("profile of 5 steps:") == 1
    _, _, table = said.partition("profile of 5 steps:")
    rows = table.partition("Self CPU time total")[0].splitlines()
    assert "Self CPU %" in table and any("convolution" in row for row in rows[:ROWS])
