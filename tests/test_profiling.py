"""Where the time of a step went."""

import json
from types import SimpleNamespace

import pytest

from kits_dist import cli, train
from kits_dist.config import Config
from kits_dist.profiling import GROUPS, IDLE, REST, group_of, in_words, shares
from tests.test_end_to_end import SMALL


def event(name, us, parent=None, kernels=()):
    return SimpleNamespace(
        name=name, self_cpu_time_total=us, cpu_time_total=us, cpu_parent=parent, is_async=False, kernels=list(kernels)
    )


def test_time_is_told_apart_by_what_called_it():
    step = event("ProfilerStep*", 1000)
    optimizer = event("Optimizer.step#Adam.step", 10, step)
    events = [
        step,
        optimizer,
        event("aten::_foreach_add_", 90, optimizer),
        event("aten::mkldnn_convolution", 400, event("aten::conv2d", 0, step)),
        event("aten::native_batch_norm", 100, step),
        event("kits_dist/data", 50, step),
        event("gloo:all_reduce", 150, step),
        event("aten::relu_", 100, step),
    ]
    found = shares(events)
    assert found == pytest.approx(
        {"convolution": 0.4, "communication": 0.15, "normalisation": 0.1, "optimiser": 0.1, REST: 0.1, "data": 0.05}
        | {IDLE: 0.1}
    )
    assert list(found)[-1] == IDLE and in_words(found).startswith("profile of 5 steps: convolution 40 %, communication")
    assert group_of(event("Memcpy HtoD", 1)) == REST


def test_on_a_gpu_kernels_count_and_not_the_calls_that_start_them():
    kernel = SimpleNamespace(duration=600)
    events = [event("ProfilerStep*", 1000), event("aten::cudnn_convolution", 20, kernels=[kernel])]
    found = shares(events)
    assert found["convolution"] == 0.6 and found[IDLE] == pytest.approx(0.4)


def test_a_training_leaves_a_trace_and_says_where_time_went(store, tmp_path, capfd):
    arguments = [f"data.store={store.path}", f"run={tmp_path / 'run'}", *SMALL, "log.images=0", "optim.epochs=4"]
    train.main(cli.load(Config, [*arguments, "train.profile=true"]))
    trace = json.loads((tmp_path / "run" / "profile" / "trace_0.json").read_text())
    names = {row.get("name") for row in trace["traceEvents"]}
    assert "kits_dist/data" in names and any("convolution" in str(name) for name in names)
    said = "".join(capfd.readouterr())
    line = next(row for row in said.splitlines() if "profile of 5 steps" in row)
    assert all(f"{group} " in line for group in ("convolution", "normalisation")) and set(GROUPS) < {*GROUPS, REST}
