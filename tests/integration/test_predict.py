"""`predict` in processes of its own: scans shared by two of them, and bounded memory."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from kits_dist.imaging.nifti import read_labels
from kits_dist.utils.errors import JobFailed
from tests.conftest import write_case
from tests.helpers import ROOT
from tests.helpers.launching import LAUNCH, run_program
from tests.helpers.runs import untrained_run
from tests.unit.test_predict import main

# not getrusage: its peak begins with that of the process that started this one
PEAK = """
import re, sys
from kits_dist import predict
predict.main(predict.Args(run=sys.argv[1], input=sys.argv[2], output=sys.argv[3], batch_size=4))
print("peak kB", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def test_two_processes_share_the_scans_and_unreadable_ones_fail_the_run(raw, tmp_path):
    """The rank with the bad scan waits for the other's scans: a launcher ends all when one leaves with an error."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for k in range(5):
        shutil.copy(raw / f"case_0000{k}" / "imaging.nii.gz", scans / f"scan_{k}.nii.gz")
    (scans / "scan_1.nii.gz").write_bytes(b"")
    (scans / "scan_3.nii.gz").write_bytes(b"no scan")
    run = untrained_run(tmp_path / "run", size_px="64x64")
    arguments = [f"run={run}", f"input={scans}", f"output={tmp_path / 'out'}"]
    done = run_program([*LAUNCH, "-m", "kits_dist.predict", *arguments], code=1)
    said = done.stdout + done.stderr
    assert said.count("2 of 5 scans could not be read: scan_1, scan_3.") == 1
    assert "3 label maps in" in said and "(2 processes)" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        f"scan_{k}.{ending}" for k in (0, 2, 4) for ending in ("json", "nii.gz")
    )
    with pytest.raises(JobFailed, match="2 of 5 scans could not be read: scan_1, scan_3"):
        main(run, scans, tmp_path / "alone")
    for k in (0, 2, 4):
        a, b = (read_labels(tmp_path / name / f"scan_{k}.nii.gz").array for name in ("out", "alone"))
        assert np.array_equal(a, b)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_does_not_grow_with_the_number_of_scans(tmp_path):
    run = untrained_run(tmp_path / "run", ("kidney_and_mass",), size_px="32x32")
    write_case(tmp_path / "raw", 0, (64, 320, 320))
    image = tmp_path / "raw" / "case_00000" / "imaging.nii.gz"
    peak = {}
    for count in (3, 11):
        folder = tmp_path / f"scans{count}"
        folder.mkdir()
        for k in range(count):
            (folder / f"scan_{k}.nii.gz").symlink_to(image)
        command = [sys.executable, "-c", PEAK, str(run), str(folder), str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        peak[count] = int(done.stdout.rsplit("peak kB", 1)[1]) / 1024
    # 8 more scans are 105 MB as read, 52 MB as levels, and as much again as labels
    assert peak[11] - peak[3] < 40, peak
