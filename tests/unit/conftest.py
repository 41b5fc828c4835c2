"""Unit tests start no process: what does belongs in tests/integration."""

import multiprocessing.process
import os
import subprocess
from pathlib import Path

import pytest

QUERIES = {"git"}  # the commit of this checkout, which a training records


@pytest.fixture(scope="package", autouse=True)
def start_no_process():
    """Fail a test that starts a process; threads are allowed. Programs see one core, so they start no workers."""
    popen = subprocess.Popen.__init__

    def refuse(*args, **_):
        pytest.fail(f"a unit test starts a process, {args}: move the test to tests/integration, or pass workers=1")

    def only_queries(self, command, *args, **more):
        words = command.split() if isinstance(command, str) else [str(word) for word in command]
        if Path(words[0]).name not in QUERIES:
            refuse(*words)
        popen(self, command, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", only_queries)
        patch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
        patch.setattr(os, "fork", refuse)
        patch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
        yield
