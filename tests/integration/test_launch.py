"""kits_dist.launch: the program's last line and exit code are the launcher's, on one process and on several."""

import os
import signal
import subprocess
import sys

import pytest

from kits_dist.distributed import launcher
from tests.helpers import ROOT

ENDS = """
import os, signal, sys, time
if "killed" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGINT, lambda *_: (time.sleep(1), print("saved", flush=True), sys.exit(75)))
print("ready", flush=True)
time.sleep(60)
"""


def command(config: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "kits_dist.launch", "--config_file", str(ROOT / "launch" / config), *words]


@pytest.mark.parametrize("config", ["single.yaml", "cpu.yaml"])
def test_the_last_line_and_the_code_are_the_programs(tmp_path, config):
    words = command(config, "-m", "kits_dist.train", "data.store=nowhere", "run=run")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "launcher" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("kits_dist.train: data.store=nowhere: no store.json there.")


def test_a_program_that_is_killed_is_said_and_one_that_is_interrupted_may_save(tmp_path):
    (tmp_path / "ends.py").write_text(ENDS)
    script = str(tmp_path / "ends.py")
    killed = subprocess.run(command("single.yaml", script, "killed"), cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == 128 + 9
    assert killed.stderr.splitlines()[-1] == "kits_dist.launch: the program was killed by SIGKILL."

    process = subprocess.Popen(
        command("single.yaml", script), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, errors = process.communicate(timeout=30)
    assert (said, process.returncode) == ("saved\n", 75) and "Traceback" not in errors


def test_accelerate_s_traceback_is_named():
    assert launcher.closing_line({}) == ""
    by_accelerate = {"ACCELERATE_DYNAMO_MODE": "default"}
    assert "the launcher's traceback" in launcher.closing_line(by_accelerate)
    assert launcher.closing_line(by_accelerate | {launcher.QUIET: "1"}) == ""


def test_its_options_are_read_as_accelerate_s():
    words = ["python", "-m", "kits_dist.launch", "--num_processes", "3", "-m", "kits_dist.train"]
    assert launcher.launcher_options({}, words).processes == 3
    assert launcher.launcher_options({}, ["python", "/usr/bin/kits-dist", "launch", "--num_processes=2"]).processes == 2
