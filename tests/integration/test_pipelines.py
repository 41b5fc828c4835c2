"""Whole pipelines, minutes each: the demo as a stranger runs it, real KiTS files, CTs painted onto real annotations."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kits_dist.imaging.nifti import read_labels
from kits_dist.training.tracker import log_lines
from tests.helpers import DATA, ROOT, fork_server

pytestmark = pytest.mark.spread
needs_kits = pytest.mark.skipif(
    not (DATA / "kits19_slices").is_dir(),
    reason=f"no real KiTS files in {DATA.name}/; set KITS_DATA to a folder of them",
)
TUMOR_SLICES = DATA / "kits19_tumor_slices"
SEED = "20261123"  # of patients that were never used in development


def summary(run: Path) -> dict:
    return json.loads((run / "evaluation" / "test" / "summary.json").read_text())


def demo() -> str:
    """Run launch/demo.sh and return its output."""
    environment = os.environ | {"SEED": SEED, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", "launch/demo.sh"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1500)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow(minutes=8)
def test_the_demo_learns_kidneys_and_tumors_of_patients_never_used_in_development():
    folder = ROOT / "runs" / f"demo_seed{SEED}"
    shutil.rmtree(folder, ignore_errors=True)
    said = demo()
    result = summary(folder / "run")
    assert result["data"] == "phantom" and "data: phantom" in said and result["cases"] >= 6
    assert result["regions"]["kidney_and_mass"]["dice"] >= 0.90
    assert result["regions"]["tumor"]["dice"] >= 0.50
    assert (folder / "run" / "evaluation" / "test" / "panel.png").is_file()
    again = demo()
    assert "already finished" in again and "already there" in again
    shutil.rmtree(folder)


NETWORK = ["data.fold=all", "model.arch=simple_unet", "model.width=4"]


@pytest.mark.slow(minutes=2)
@pytest.mark.kits
@needs_kits
def test_the_pipeline_on_real_ct_with_its_own_labels(tmp_path):
    store, run = tmp_path / "store", tmp_path / "run"
    fork_server.run("kits_dist.audit", f"source={DATA / 'kits19_slices'}", f"output={tmp_path}")
    fork_server.run("kits_dist.prepare", f"source={DATA / 'kits19_slices'}", f"store={store}")
    words = [*NETWORK, "data.batch_size=2", "data.size_px=352x448", "optim.epochs=3"]
    fork_server.run("kits_dist.train", f"data.store={store}", f"run={run}", *words)
    fork_server.run("kits_dist.evaluate", f"run={run}", "split=test")
    assert summary(run)["data"] == "kits"


@pytest.mark.slow(minutes=2)
@pytest.mark.kits
@pytest.mark.skipif(not TUMOR_SLICES.is_dir(), reason=f"no kits19_tumor_slices/ in {DATA.name}/")
def test_a_network_learns_eight_real_slices_by_heart(tmp_path):
    """From the file to the native grid on real pixels: whatever turned, shifted or mixed up slices would prevent it."""
    raw, store, run = tmp_path / "raw", tmp_path / "store", tmp_path / "run"
    raw.mkdir()
    for case in sorted(TUMOR_SLICES.iterdir())[:10]:
        (raw / case.name).symlink_to(case)
    fork_server.run("kits_dist.prepare", f"source={raw}", f"store={store}")
    splits = json.loads((store / "splits.json").read_text())
    trained = [case for fold in splits["folds"] for case in fold]
    assert len(trained) == 8 and not {case[:10] for case in trained} & {case[:10] for case in splits["test"]}

    words = ["data.fold=all", "data.batch_size=4", "data.size_px=160x192", "data.pixel_mm=2", "data.sampler=natural"]
    words += ["model.arch=simple_unet", "model.width=8", "model.regions=[kidney_and_mass]", "log.images=0"]
    words += ["optim.epochs=120", "optim.lr=1e-2", "optim.loss=bce_dice", "optim.best_by=dice", "optim.patience=0"]
    words += [f"augment.{key}=0" for key in ("rotate_p", "scale_p", "noise_p", "flip", "crop")]
    fork_server.run("kits_dist.train", f"data.store={store}", f"run={run}", *words)
    dice = [line["val/dice_grid/kidney_and_mass"] for line in log_lines(run / "log.jsonl") if "val/loss" in line]
    assert max(dice) > 0.95

    # on the native grid, from the files, against the annotation: of a slice that was learned, and its test cases
    scan = raw / trained[0] / "imaging.nii.gz"
    fork_server.run("kits_dist.predict", f"run={run}", f"input={scan}", f"output={tmp_path / 'labels'}")
    (predicted,) = (tmp_path / "labels").glob("*.nii.gz")
    a, b = (read_labels(path).array > 0 for path in (predicted, raw / trained[0] / "segmentation.nii.gz"))
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85  # pixels of 2 mm on a grid of 0.8
    fork_server.run("kits_dist.evaluate", f"run={run}", "split=test")
    assert summary(run)["data"] == "kits" and summary(run)["cases"] == 2


@pytest.mark.slow(minutes=3)
@pytest.mark.kits
@needs_kits
def test_the_pipeline_on_cts_painted_onto_real_annotations(tmp_path):
    raw, store, run = tmp_path / "raw", tmp_path / "store", tmp_path / "run"
    (tmp_path / "labels").mkdir()
    for case_id in ("case_00021", "case_00110", "case_00148", "case_00152"):  # the smallest: 34 to 38 slices
        (tmp_path / "labels" / case_id).symlink_to(DATA / "kits23_labels" / case_id)
    fork_server.run("kits_dist.phantom", f"output={raw}", f"labels={tmp_path / 'labels'}", "cases=4")
    fork_server.run("kits_dist.prepare", f"source={raw}", f"store={store}")
    words = [*NETWORK, "data.fold=0", "data.batch_size=4", "data.size_px=128x160", "data.pixel_mm=2.5"]
    fork_server.run("kits_dist.train", f"data.store={store}", f"run={run}", *words, "optim.epochs=1")
    fork_server.run("kits_dist.evaluate", f"run={run}", "split=test")
    assert summary(run)["data"] == "painted"
