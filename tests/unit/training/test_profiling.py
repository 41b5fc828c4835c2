"""Where the time of a step went."""

import json
from types import SimpleNamespace

import pytest

from kits_dist import cli, train
from kits_dist.config import Config
from kits_dist.training.profiling import GROUPS, IDLE, OUTSIDE_STEPS, REST, as_sentence, group_of, shares
from tests.helpers.small_run import SMALL


def event(name, us, parent=None, kernels=(), start=0, thread=1):
    return SimpleNamespace(
        name=name,
        self_cpu_time_total=us,
        cpu_time_total=us,
        cpu_parent=parent,
        kernels=list(kernels),
        thread=thread,
        time_range=SimpleNamespace(start=start, end=start + us),
    )


def test_an_operator_counts_for_the_group_of_its_caller():
    """A step of 1 ms; 0.4 + 0.1 + 0.09 + 0.01 + 0.05 + 0.05 + 0.1 of it in operators."""
    step = event("ProfilerStep*", 1000)
    optimizer = event("Optimizer.step#Adam.step", 10, step, start=690)
    events = [
        step,
        optimizer,
        event("aten::_foreach_add_", 90, optimizer, start=600),
        event("aten::mkldnn_convolution", 400, event("aten::conv2d", 0, step)),
        event("aten::native_batch_norm", 100, step, start=400),
        event("kits_dist/data", 50, step, start=700),
        event("c10d::allreduce_", 50, step, start=750),
        event("aten::relu_", 100, step, start=500),
    ]
    found = shares(events)
    assert found == pytest.approx(
        {"convolution": 0.4, "normalization": 0.1, REST: 0.1, "optimizer": 0.1, "data": 0.05, "communication": 0.05}
        | {IDLE: 0.2}
    )
    assert list(found)[-1] == IDLE and as_sentence(found).startswith("profile of 5 steps: convolution 40 %, ")
    assert group_of(event("Memcpy HtoD", 1)) == REST


def test_waiting_for_other_processes_is_communication_unless_it_overlaps_with_computation():
    """A step of 1 ms: 0.5 convolution; gloo's thread works from 0.3 to 0.7 and ends past the step once more."""
    events = [
        event("ProfilerStep*", 1000),
        event("aten::convolution", 500),
        event("gloo:all_reduce", 400, start=300, thread=2),
        event("gloo:all_reduce", 400, start=900, thread=2),
        event("aten::convolution", 300, start=100, thread=3),  # of another thread: the step's time is not its
    ]
    found = shares(events)
    assert found["convolution"] == 0.5 and found["communication"] == pytest.approx(0.2 + 0.1)
    assert found[IDLE] == pytest.approx(0.2)


def test_validation_and_saving_between_the_steps_are_left_out():
    """1 ms, of which 0.6 are a validation: the step is 0.4, half of it convolution."""
    events = [
        event("ProfilerStep*", 1000),
        event("aten::convolution", 200),
        event(OUTSIDE_STEPS, 600, start=400),
        event("aten::convolution", 500, start=450),
        event("gloo:broadcast", 100, start=500, thread=2),
    ]
    found = shares(events)
    assert found["convolution"] == 0.5 and found["communication"] == 0 and found[IDLE] == 0.5


def test_on_a_gpu_kernels_count_and_not_the_calls_that_start_them():
    kernel = SimpleNamespace(duration=600)
    events = [event("ProfilerStep*", 1000), event("aten::cudnn_convolution", 20, kernels=[kernel], thread=2)]
    found = shares(events)
    assert found["convolution"] == 0.6 and found[IDLE] == pytest.approx(0.4)


def test_a_training_writes_a_trace_and_prints_where_the_time_went(store, tmp_path, capfd):
    arguments = [f"data.store={store.path}", f"run={tmp_path / 'run'}", *SMALL, "log.images=0", "optim.epochs=4"]
    train.main(cli.load(Config, [*arguments, "train.profile=true"]))
    trace = json.loads((tmp_path / "run" / "profile" / "trace_0.json").read_text())
    names = {row.get("name") for row in trace["traceEvents"]}
    assert "kits_dist/data" in names and any("convolution" in str(name) for name in names)
    said = "".join(capfd.readouterr())
    line = next(row for row in said.splitlines() if "profile of 5 steps" in row)
    assert all(f"{group} " in line for group in ("convolution", "normalization")) and set(GROUPS) < {*GROUPS, REST}
