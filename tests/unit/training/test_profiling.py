"""Where the time of a step went."""

import json

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from kits_dist import cli, train
from kits_dist.config import Config
from kits_dist.training.profiling import OUTSIDE_STEPS, ROWS, gpu_idle
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


def event(name: str, start: float, end: float, device=DeviceType.CUDA, annotation=False) -> FunctionEvent:
    """A made-up event of torch's profiler; microseconds."""
    return FunctionEvent(0, name, 1, start, end, device_type=device, is_user_annotation=annotation)


STEP = [
    event("ProfilerStep#12", 0, 200, annotation=True),  # torch repeats annotations on the GPU's side
    event("ProfilerStep#12", 0, 90, DeviceType.CPU),
    event("aten::conv2d", 0, 90, DeviceType.CPU),
    event("cudnn_conv", 10, 30),
    event("dali_warp", 20, 50),  # of another stream: the union of both is 40
    event("Memcpy HtoD (Pinned -> Device)", 50, 90),
    event("adam", 90, 110),
]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (STEP, 0.4),  # kernels in 40 + 20 of the 100 from 10 to 110
        ([*STEP, event(OUTSIDE_STEPS, 60, 85, DeviceType.CPU)], 15 / 75),
        ([*STEP, event(OUTSIDE_STEPS, 30, 60, DeviceType.CPU)], 30 / 70),  # kernels in it do not count either
        ([*STEP, event(OUTSIDE_STEPS, 0, 20, DeviceType.CPU)], 40 / 90),  # half of it before the first kernel
        ([*STEP, event("busy", 0, 120)], 0.0),
        (STEP[:3], None),
        ([], None),
    ],
)
def test_the_gpu_is_idle_where_no_kernel_runs(events, expected):
    assert gpu_idle(events) == pytest.approx(expected)
