"""What programs import before they know what to do: torch alone takes seconds, and each worker process pays again."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT


@pytest.mark.parametrize("program", ["prepare", "evaluate"])
def test_a_program_that_runs_no_network_imports_neither_torch_nor_dali(program):
    code = f"import kits_dist.{program}, sys; print([m for m in ('torch', 'nvidia.dali') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
