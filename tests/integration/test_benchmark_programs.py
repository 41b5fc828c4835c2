"""Benchmarks as processes: CPU time of children, exit codes, and all of them in one go."""

import subprocess
import sys
import time

import pytest

import benchmarks.all
from benchmarks import gpu_suite, scaling
from benchmarks.lib import harness, lines, programs
from benchmarks.lib.programs import Task
from kits_dist.utils.errors import JobFailed
from tests.helpers.benchmark_lines import made


def test_the_work_of_children_is_cpu_time():
    before = harness.cpu_seconds()
    worker = subprocess.Popen([sys.executable, "-c", "import time\nwhile time.process_time() < 60: pass"])
    try:
        deadline = time.monotonic() + 60
        while harness.cpu_seconds() < before + 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert harness.cpu_seconds() >= before + 0.3
    finally:
        worker.kill()
        worker.wait()


def test_a_loss_beyond_the_noise_ends_with_code_1(tmp_path):
    lines.record(made([99.0, 100.0, 101.0], variant="x"), tmp_path / "old")
    lines.record(made([94.0, 95.0, 96.0], variant="x"), tmp_path / "new")  # 0.95, noise 0.01 + 0.0105
    words = ["benchmarks.compare", str(tmp_path / "old"), str(tmp_path / "new")]
    done = subprocess.run([sys.executable, "-m", *words], cwd=programs.ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "demo x: 100 -> 95 images/s, 0.950 +- 0.021: LOST" in done.stdout
    assert "1 of 1 lost more than their noise: demo x." in done.stderr and "Traceback" not in done.stderr


def test_ranks_that_fail_are_quoted(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "first\nno such key")
    monkeypatch.setattr(programs.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(JobFailed, match="2 processes failed:\nfirst\nno such key"):
        scaling.launch(2, False, [])


def test_one_benchmark_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def tasks(args, out, after):
        lines.record(made([5.0], variant="fine"), out)
        return [
            Task("broken", ["benchmarks.model", "variants=[none]"], 60),
            Task("good", ["benchmarks.report", "help"], 60, after=after),
        ]

    monkeypatch.setattr(benchmarks.all, "tasks", tasks)
    with pytest.raises(JobFailed, match="1 benchmarks failed: broken"):
        benchmarks.all.main(benchmarks.all.Args(out=str(tmp_path / "out")))
    said = capsys.readouterr().out
    assert "broken             failed, exit code 2" in said and "variants=['none']: choose from" in said
    assert "good               done" in said and "| demo | fine |" in said
    assert len(list((tmp_path / "out").glob("*_demo.jsonl"))) == 1


def test_a_task_that_fails_is_noted_and_the_suite_continues(tmp_path):
    suite = gpu_suite.Suite(gpu_suite.Args(out=str(tmp_path), quick=True), tmp_path / "work")
    suite.run(Task("wrong", ["kits_dist.prepare", "source=nowhere", "store=nowhere"], 60))
    suite.run(Task("late", ["kits_dist.prepare", "help"], 60), until_s=0)
    suite.write_table()
    table = (tmp_path / "table.txt").read_text()
    assert "failed, exit code 2" in table and "source=nowhere" in table
    assert "late               left out: 0 s were left" in table


STOPPED = """
import os, signal, sys, time, torch
from pathlib import Path
from benchmarks.lib import harness, lines
from tests.helpers.benchmark_lines import Args

def step():
    time.sleep(0.02)
    Path(sys.argv[1]).touch()

steps = {"a": harness.Candidate(step)}
timed = harness.interleave(steps, torch.device("cpu"), windows=9999, window_s=0, warmup_steps=1)
recorder = lines.Recorder("demo", Args(out=sys.argv[2], windows=9999), {})
recorder.write("a", timed["a"].rates(1), lines.no_ceiling("a test"))
"""


@pytest.mark.slow
def test_a_benchmark_that_takes_too_long_keeps_the_windows_it_has(tmp_path, monkeypatch):
    (tmp_path / "endless.py").write_text(STOPPED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    suite = gpu_suite.Suite(gpu_suite.Args(out=str(tmp_path / "out"), quick=True), tmp_path)
    words = ["endless", str(tmp_path / "began"), str(suite.lines_folder)]
    suite.run(Task("endless", words, 60), until_s=60)  # it has 45 s to import torch and take three windows
    assert (tmp_path / "began").exists() and suite.failed == ["endless"]
    assert "endless            stopped after 60 s" in suite.notes[0]
    (line,) = lines.read(tmp_path / "out" / "results.jsonl")
    assert 5 < line.windows < 9999 and line.config["stopped_early"] == f"{line.windows} of 9999 windows"
