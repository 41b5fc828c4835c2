"""The plan of the GPU suite: what it is for is measured whatever else is slow, fails or hangs."""

import importlib
import time

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.lib import programs
from kits_dist import cli
from kits_dist.config import Config

HEADLINES = ("end_to_end 512", "end_to_end 256", "train", "evaluate")
MAKES = {  # the last words of a task -> the file that others need
    "phantoms bench": "bench_raw",
    "prepare bench": "bench/store.json",
    "phantoms demo": "demo_raw",
    "prepare demo": "demo/store.json",
    "train": "run/model.safetensors",
}


class StandIn(gpu_suite.Suite):
    """Runs no process: a task takes all the time that it is given, or `share` of it, on a clock of its own."""

    def __init__(self, monkeypatch, folder, share: float = 1.0, broken: str = "", **args):
        self.now, self.share, self.broken, self.given = 1000.0, share, broken, {}
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        super().__init__(gpu_suite.Args(out=str(folder / "out"), **args), folder)

    def _process(self, task, limit_s):
        self.given[task.name] = limit_s
        self.now += self.share * limit_s
        if task.name in MAKES and task.name != self.broken:
            made = self.work / MAKES[task.name]
            made.parent.mkdir(exist_ok=True)
            made.touch()
        return (1 if task.name == self.broken else None), []


def run(suite: StandIn) -> dict[str, float]:
    suite.run_all(suite.tasks())
    return suite.given


def test_the_plan_up_to_the_last_kept_task_fits_into_the_limit(monkeypatch, tmp_path):
    suite = StandIn(monkeypatch, tmp_path)
    tasks = suite.tasks()
    last = max(number for number, task in enumerate(tasks) if task.kept)
    assert sum(task.limit_s for task in tasks[: last + 1]) <= suite.limit_s <= 480  # of a call of ten minutes
    assert {*HEADLINES, *MAKES} <= {task.name for task in tasks if task.kept}


def test_kept_tasks_have_their_time_when_every_task_hangs(monkeypatch, tmp_path):
    suite = StandIn(monkeypatch, tmp_path)
    given = run(suite)
    assert {name: given[name] for name in HEADLINES} == {
        task.name: task.limit_s for task in suite.tasks() if task.name in HEADLINES
    }
    assert suite.now - suite.begin <= suite.limit_s


def test_in_less_time_the_others_are_left_out_and_the_kept_ones_run(monkeypatch, tmp_path):
    suite = StandIn(monkeypatch, tmp_path, limit_s=300)
    given = run(suite)
    assert {task.name for task in suite.tasks() if task.kept} <= set(given)
    assert "model 512" not in given and any(note.startswith("model 512          left out: ") for note in suite.notes)


def test_time_that_is_left_over_goes_to_later_tasks(monkeypatch, tmp_path):
    suite = StandIn(monkeypatch, tmp_path, share=0.3)
    given = run(suite)
    limits = {task.name: task.limit_s for task in suite.tasks()}
    assert set(given) == set(limits)
    assert given["imports"] == limits["imports"]  # nothing is left over yet
    assert given["end_to_end 512"] == programs.STRETCH * limits["end_to_end 512"]


@pytest.mark.parametrize(
    ("broken", "without", "still"),
    [
        ("prepare demo", {"train", "evaluate"}, {"end_to_end 512", "feed"}),
        ("train", {"evaluate"}, {"feed"}),
        ("phantoms bench", {"prepare bench", "end_to_end 512", "end_to_end 256", "feed"}, {"train"}),
    ],
)
def test_a_task_whose_input_is_missing_is_left_out_and_says_so(monkeypatch, tmp_path, broken, without, still):
    suite = StandIn(monkeypatch, tmp_path, share=0.3, broken=broken)
    given = run(suite)
    assert not without & set(given) and still <= set(given)
    for name in without:
        assert any(note.startswith(f"{name:<18} left out: an earlier task made no ") for note in suite.notes)
    assert f"left out: an earlier task made no {MAKES[broken]}" in (suite.out / "table.txt").read_text()


def test_every_program_of_the_plan_takes_its_arguments(monkeypatch, tmp_path):
    suite = StandIn(monkeypatch, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.chdir(programs.ROOT)
    for task in suite.tasks():
        program, *words = task.words
        if program == "accelerate.commands.launch":
            program, *words = task.words[task.words.index("-m") + 1 :]
        if program == "pytest" or words == ["help"]:
            continue
        module = importlib.import_module(program)
        args = cli.load(Config if program == "kits_dist.train" else module.Args, words)
        if program == "benchmarks.model":
            assert set(args.variants) <= set(module.ON_GPU) and module.AS_TRAINED["cuda"] in args.variants


def test_only_files_with_tests_that_need_a_gpu_are_collected():
    found = [str(path) for path in gpu_suite.gpu_tests()]
    assert {"tests/gpu/test_gpu.py", "tests/unit/training/test_precision.py"} <= set(found)  # the latter: in a list
    assert "tests/unit/benchmarks/test_gpu_suite.py" not in found and "tests/gpu/test_multigpu.py" not in found
