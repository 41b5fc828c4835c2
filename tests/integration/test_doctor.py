"""The doctor on the machine at hand, and the processes that it starts."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from kits_dist import doctor
from kits_dist.diagnostics import probes

ROOT = Path(__file__).resolve().parents[2]


def test_doctor_on_this_machine(store, tmp_path, capsys):
    code = 0
    try:
        doctor.main(doctor.Args(store=str(store.path), run=str(tmp_path / "not" / "yet")))
    except doctor.JobFailed:
        code = 1
    said = capsys.readouterr().out
    checks = [line for line in said.splitlines() if line[:4] in ("ok  ", "warn", "fail")]
    assert code == any(line.startswith("fail") for line in checks)
    assert len(checks) >= 9
    assert "6 cases, 29 slices" in said  # the depths in conftest: 5 + 4 + 6 + 3 + 7 + 4
    assert "GB free; a run takes" in said
    assert said.splitlines()[-2].startswith("accelerate launch --config_file launch/")
    assert f"data.store={store.path} run={tmp_path / 'not' / 'yet'}" in said.splitlines()[-1]
    assert platform.node() not in said.replace(str(store.path), "").replace(str(tmp_path), "")
    assert not (tmp_path / "not").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DALI exists for Linux only")
def test_a_pipeline_with_wrong_pixels_or_a_crash_is_told_from_one_that_works(monkeypatch):
    assert probes.pipeline_error("CPU") == ""
    monkeypatch.setattr(probes, "_PIPELINE", probes._PIPELINE.replace("== 7", "== 8"))
    assert probes.pipeline_error("CPU") == "CPU: AssertionError: wrong pixels"
    monkeypatch.setattr(probes, "_PIPELINE", "import os; os.kill(os.getpid(), 11)")
    assert probes.pipeline_error("CPU") == "CPU: exit code -11"


def test_doctor_starts_where_torch_is_missing():
    """Importing the program loads neither torch nor accelerate: doctor reports a machine on which they are broken."""
    code = (
        "import kits_dist.doctor, sys; print([m for m in ('torch', 'accelerate', 'nvidia.dali') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
