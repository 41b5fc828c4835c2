"""Compiled kernels never read or write beyond their arrays: their tests again, with every index checked."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

TESTS = ["tests/unit/data/test_cpu_kernels.py", "tests/unit/evaluation/test_nearest.py"]


@pytest.mark.slow(minutes=2)
def test_kernels_stay_within_their_arrays(tmp_path):
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
