"""What programs import before they know what to do: torch alone takes seconds, and each worker process pays again."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

HEAVY = ("torch", "scipy.ndimage", "scipy.spatial", "numba", "nvidia.dali", "segmentation_models_pytorch", "accelerate")
HEAVY += ("matplotlib", "tensorboard", "cv2", "SimpleITK", "pandas")
REFUSED = {  # what small files tell
    "train": ["data.store=nowhere", "run=r"],
    "predict": ["run=nowhere", "input={folder}", "output=o"],
    "evaluate": ["run=nowhere"],
    "prepare": ["source=nowhere", "store=s"],
    "audit": ["source=nowhere"],
    "phantom": ["output=o", "cases=0"],
    "fuse": ["run=[nowhere,there]", "output=o.json"],
    "postprocess": ["run=nowhere"],
    "report": ["run=nowhere"],
}


@pytest.mark.parametrize("program", REFUSED)
def test_an_argument_is_refused_before_anything_heavy_is_imported(program, tmp_path):
    (tmp_path / "ct.nii.gz").write_bytes(b"")
    words = [word.format(folder=tmp_path) for word in REFUSED[program]]
    code, imported = ended(program, words, tmp_path)
    assert code == 2 and imported == []


@pytest.mark.parametrize("program", ["train", "predict"])
def test_help_and_a_slip_need_nothing_heavy(program, tmp_path):
    assert ended(program, ["help"], tmp_path) == (0, [])
    assert ended(program, ["no.such.key=1"], tmp_path) == (2, [])


def test_a_folder_that_holds_a_run_is_refused_before_anything_heavy_is_imported(store, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    words = [f"data.store={store.path}", f"run={tmp_path / 'run'}"]
    assert ended("train", words, tmp_path) == (2, [])
    assert ended("train", [*words, "data.fold=7"], tmp_path) == (2, [])


def ended(program: str, words: list[str], folder: Path) -> tuple[int, list[str]]:
    """Run a program; return its exit code and which of HEAVY it had imported by then."""
    code = (
        f"import runpy, sys\nsys.argv = ['x', *{words!r}]\n"
        f"try:\n    runpy.run_module('kits_dist.{program}', run_name='__main__', alter_sys=True)\n"
        f"except SystemExit as end:\n    print('@', end.code, *(m for m in {HEAVY!r} if m in sys.modules))"
    )
    paths = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=paths, capture_output=True, text=True)
    last = next((line for line in done.stdout.splitlines() if line.startswith("@")), "")
    assert last, done.stderr
    _, status, *imported = last.split()
    return int(status), imported
