import json
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)
from tensorboard.summary.writer import event_file_writer

from kits_dist.config import Config, DataConfig, OptimConfig
from kits_dist.training.tracker import Tracker, flat, in_markdown, log_lines

CONFIG = Config(run="r", data=DataConfig(store="s", size_px=(64, 96)), optim=OptimConfig(lr=0.5))


def tracker_in(folder, step=0) -> Tracker:
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate holds one for all
    return Tracker(Accelerator(cpu=True, log_with="tensorboard", project_dir=str(folder)), folder, step)


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """(step to go on from, lr, steps to log, done) -> all that TensorBoard reads in the folder after that leg.

    Files of one second and one process are sorted by a counter as text, 10 before 9: it starts anew here.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))

    def leg(step: int, lr: float, steps: range, done: bool) -> EventAccumulator:
        tracker = tracker_in(tmp_path, step)
        tracker.introduce({"data": "phantom", "processes": 2}, replace(CONFIG, optim=OptimConfig(lr=lr)))
        for number in steps:
            tracker.log(number, {"train/loss": lr, "perf/verdict": "compute-bound"})
        tracker.close(done)
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return events

    return leg


@pytest.mark.parametrize("saved", [0, 2])
def test_a_resumed_run_has_each_step_once_and_one_row_of_hparams(logged, tmp_path, saved):
    """Killed after step 4, saved at 2 or not at all."""
    events = logged(0, 0.5, range(1, 5), done=False)
    assert SESSION_END_INFO_TAG not in events.PluginTagToContent("hparams")  # not called a success
    events = logged(saved, 0.25, range(saved + 1, 7), done=True)
    values = {1: 0.5, 2: 0.5} if saved else {1: 0.25, 2: 0.25}
    values |= dict.fromkeys(range(3, 7), 0.25)
    assert {event.step: event.value for event in events.Scalars("train/loss")} == values
    assert len(events.Scalars("train/loss")) == 6
    assert {line["step"]: line["train/loss"] for line in log_lines(tmp_path / "log.jsonl")} == values
    kept = events.PluginTagToContent("hparams")
    row = parse_session_start_info_plugin_data(kept[SESSION_START_INFO_TAG]).hparams
    assert row["data"].string_value == "phantom" and row["optim.lr"].number_value == 0.5  # as it began
    assert set(kept) == {SESSION_START_INFO_TAG, SESSION_END_INFO_TAG}
    texts = {event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors("run/text_summary")}
    assert "lr: 0.25" in texts[saved]  # what it went on with stands in TEXT
    assert not list((tmp_path / "tensorboard").glob("*/"))  # no folder of its own, which would be another run


def test_non_finite_values_are_left_out_of_the_log(tmp_path):
    tracker = tracker_in(tmp_path)
    tracker.log(3, {"train/grad_norm": float("inf"), "train/loss": 1.5, "perf/verdict": "words"})
    tracker.close(False)
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=pytest.fail)  # Infinity is no JSON
    assert {key: found[key] for key in found if "/" in key} == {"train/loss": 1.5, "perf/verdict": "words"}


def test_drawing_blocks_nothing_and_its_error_is_not_lost(tmp_path):
    tracker, went_on, drawn = tracker_in(tmp_path), Event(), []

    def draw() -> np.ndarray:
        drawn.append(went_on.wait(20))
        return np.zeros((2, 3, 3), np.uint8)

    tracker.image(1, "val/panel", draw)
    went_on.set()
    tracker.image(2, "val/panel", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tracker.close(done=True)
    tracker.writer.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert drawn == [True] and [event.step for event in events.Images("val/panel")] == [1]


def test_the_configuration_in_words_and_numbers():
    found = flat(CONFIG)
    assert found["data.size_px"] == "64,96" and found["optim.lr"] == 0.5 and found["train.compile"] == "false"
    assert found["data.pixel_mm"] == "none" and found["model.arch"] == "unet" and found["seed"] == 0
    assert "data.store" not in found and "run" not in found
    assert all(type(value) in (int, float, str) for value in found.values())
    page = in_markdown({"data": "phantom", "global batch": 256}, CONFIG)
    assert page.startswith("| this run | |\n|---|---|\n| data | phantom |\n| global batch | 256 |\n\n```\n")
    assert "  size_px: [64, 96]\n" in page and page.endswith("```")
