"""Files and folders shared by several processes, and functions run in worker processes."""

import os
import subprocess
import sys

import pytest

from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.parallel import run_all


def test_a_folder_is_held_by_one_process_and_free_after_a_kill(tmp_path):
    code = "import sys, time; from pathlib import Path; from kits_dist.utils import files\n"
    code += "with files.exclusive(Path(sys.argv[1]), 'run'): print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    (tmp_path / f".case.{other.pid}.part").mkdir()
    in_use = rf"run={tmp_path} is in use by another process \(pid {other.pid}\)"
    with pytest.raises(InputError, match=in_use), files.exclusive(tmp_path, "run"):
        pass
    other.kill()
    other.wait()
    with files.exclusive(tmp_path, "run"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]  # what the killed process left is removed


def _double(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), 9)
    return 2 * number


def test_worker_processes_return_every_item_and_a_dead_one_is_named():
    assert sorted(run_all(_double, range(4), "test", workers=2)) == [(n, 2 * n) for n in range(4)]
    with pytest.raises(JobFailed, match="a worker process died, most likely for lack of memory.*workers=1"):
        list(run_all(_double, [1, 7], "test", workers=2))
