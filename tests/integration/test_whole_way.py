"""What takes minutes: the demo as a stranger runs it, real KiTS files, the wheel. `bash launch/test.sh -m slow`."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KITS = Path(os.environ.get("KITS_DATA", ROOT.parent / "shared" / "data"))
pytestmark = pytest.mark.slow
needs_kits = pytest.mark.skipif(
    not (KITS / "kits19_slices").is_dir(),
    reason=f"no real KiTS files in {KITS.name}/; set KITS_DATA to a folder of them",
)


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, timeout=1500, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def program(name: str, *arguments: str) -> str:
    return run(sys.executable, "-m", f"kits_dist.{name}", *arguments, CUDA_VISIBLE_DEVICES="")


def summary(run_folder: Path) -> dict:
    return json.loads((run_folder / "evaluation" / "test" / "summary.json").read_text())


def test_the_demo_learns_kidneys_and_tumors_of_patients_never_used_in_development():
    seed = "20261123"
    folder = ROOT / "runs" / f"demo_seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    said = run("bash", "launch/demo.sh", SEED=seed, CUDA_VISIBLE_DEVICES="")
    result = summary(folder / "run")
    assert result["data"] == "phantom" and "data: phantom" in said and result["cases"] >= 6
    assert result["regions"]["kidney_and_mass"]["dice"] >= 0.90
    assert result["regions"]["tumor"]["dice"] >= 0.50
    assert (folder / "run" / "evaluation" / "test" / "panel.png").is_file()
    again = run("bash", "launch/demo.sh", SEED=seed, CUDA_VISIBLE_DEVICES="")
    assert "already finished" in again and "already there" in again
    shutil.rmtree(folder)


@pytest.mark.kits
@needs_kits
def test_the_way_on_real_ct_pixels_with_true_labels(tmp_path):
    program("audit", f"source={KITS / 'kits19_slices'}", f"output={tmp_path}")
    program("prepare", f"source={KITS / 'kits19_slices'}", f"store={tmp_path / 'store'}")
    program("train", f"data.store={tmp_path / 'store'}", f"run={tmp_path / 'run'}", *REAL, "optim.epochs=3")
    program("evaluate", f"run={tmp_path / 'run'}", "split=test")
    assert summary(tmp_path / "run")["data"] == "kits"


REAL = ["data.fold=all", "data.batch_size=2", "data.size_px=352x448", "model.arch=simple_unet", "model.width=4"]


@pytest.mark.kits
@needs_kits
def test_the_way_on_cts_painted_onto_real_annotations(tmp_path):
    program("phantom", f"output={tmp_path / 'raw'}", f"labels={KITS / 'kits23_labels'}", "cases=4")
    program("prepare", f"source={tmp_path / 'raw'}", f"store={tmp_path / 'store'}")
    arguments = [*REAL, "data.fold=0", "data.batch_size=4", "data.size_px=128x160", "data.pixel_mm=2.5"]
    program("train", f"data.store={tmp_path / 'store'}", f"run={tmp_path / 'run'}", *arguments, "optim.epochs=1")
    program("evaluate", f"run={tmp_path / 'run'}", "split=test")
    assert summary(tmp_path / "run")["data"] == "painted"


def test_the_wheel_alone_answers_help(tmp_path):
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        packed.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"kits_dist"}
    assert "kits_dist/py.typed" in names
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from kits_dist.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site"), "train", "help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "optim.lr" in done.stdout, done.stderr
