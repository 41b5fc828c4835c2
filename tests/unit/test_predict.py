"""What `predict` writes and says, and the outputs it refuses."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from kits_dist import evaluate, predict
from kits_dist.imaging.nifti import kits_geometry, read_image, read_labels, same_grid, write_nifti
from kits_dist.inference import folder
from kits_dist.inference.predictor import Predictor
from kits_dist.labels import REGIONS, regions_to_labels
from kits_dist.utils.errors import InputError, MissingInput
from tests.conftest import write_case
from tests.helpers.healthy_scan import HealthyScan
from tests.helpers.runs import Ramp, export_run, predict_probabilities, untrained_run

ALL = tuple(REGIONS)


def main(run, source, output, **more):
    predict.main(predict.Args(run=str(run), input=str(source), output=str(output), **more))


def test_written_probabilities_agree_with_the_labels(tmp_path):
    write_case(tmp_path / "raw", 0, (5, 64, 80))
    run = untrained_run(tmp_path / "run", size_px="64x64")
    image = tmp_path / "raw" / "case_00000" / "imaging.nii.gz"
    main(run, image, tmp_path / "out", probabilities=True, postprocess=False)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == sorted(["case_00000.nii.gz", "case_00000.json", *(f"case_00000_{region}.nii.gz" for region in ALL)])
    predictor = Predictor(run)
    exact = predict_probabilities(predictor, read_image(image))
    shown = [nib.load(tmp_path / "out" / f"case_00000_{region}.nii.gz") for region in ALL]
    assert {one.get_data_dtype() for one in shown} == {np.dtype(np.uint8)}
    assert same_grid(read_image(image).geometry, read_image(tmp_path / "out" / "case_00000_mass.nii.gz").geometry)
    found = np.stack([read_image(tmp_path / "out" / f"case_00000_{region}.nii.gz").array for region in ALL], axis=1)
    assert np.abs(found - exact).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(found >= 0.5, exact >= 0.5) and (exact >= 0.5).any() and (exact < 0.5).any()
    labels = read_labels(tmp_path / "out" / "case_00000.nii.gz").array
    assert np.array_equal(labels, regions_to_labels((found >= 0.5).swapaxes(0, 1), ALL))


def test_each_label_map_has_a_json_with_measurements(tmp_path, capsys):
    write_case(tmp_path / "raw", 0, (5, 64, 80))
    run = untrained_run(tmp_path / "run", size_px="64x96")
    main(run, tmp_path / "raw", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "case_00000.json").read_text())
    assert "not a medical device" in about["note"] and about["labels"] == "case_00000.nii.gz"
    assert (about["runs"], about["step"], about["trained_on"], about["postprocess"]) == (["run"], 5, "phantom", {})
    assert {"kidney_right_ml", "kidney_left_ml", "tumor_ml", "tumors", "tumor_diameter_mm"} == set(about["findings"])
    said = capsys.readouterr().out
    assert "research use only" in said and "1 label maps in" in said and "time in the network: " in said
    assert str(tmp_path) not in json.dumps(about)


def test_a_ct_that_is_not_in_hu_is_said_and_recorded(tmp_path, capsys):
    """As audit says it; a healthy one between them has no warning."""
    scan = HealthyScan()
    changes = {"offset": lambda hu: hu + 1024, "plain": lambda hu: hu, "unit": lambda hu: np.clip(hu / 400, 0, 1)}
    for name, change in changes.items():
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", change(scan.image.astype(np.float32)), scan.geometry)
    main(untrained_run(tmp_path / "run", size_px="64x64"), tmp_path / "in", tmp_path / "out")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert [line.split()[1] for line in said] == ["offset:", "unit:"]
    recorded = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text())["warnings"] for name in changes}
    assert recorded["plain"] == [] and [f"warning  unit: {text}" for text in recorded["unit"]] == said[1:]
    assert re.fullmatch(r"HU from \S+ to \S+: stored with an offset, likely \+1024; subtract it", *recorded["offset"])


def test_scans_that_do_not_continue_are_said(tmp_path, capsys):
    """Not of intensities alone: two scans in one file, too."""
    scan = HealthyScan()
    write_nifti(tmp_path / "a.nii.gz", np.concatenate([scan.image, scan.image]), kits_geometry((20, 40, 48), (3, 1, 1)))
    main(untrained_run(tmp_path / "run", size_px="64x64"), tmp_path / "a.nii.gz", tmp_path / "out")
    assert "warning  a: slices 10..19 repeat 0..9, voxel by voxel" in capsys.readouterr().out


def test_files_of_the_same_name_are_replaced_and_others_kept(tmp_path):
    write_case(tmp_path / "raw", 0, (5, 64, 80))
    image = tmp_path / "raw" / "case_00000" / "imaging.nii.gz"
    out = tmp_path / "out"
    main(untrained_run(tmp_path / "a", size_px="64x64"), image, out)
    first = (out / "case_00000.nii.gz").read_bytes()
    (out / "mine.txt").write_text("kept")
    main(untrained_run(tmp_path / "b", size_px="64x64", seed=1), image, out)
    assert (out / "case_00000.nii.gz").read_bytes() != first
    assert sorted(p.name for p in out.iterdir()) == ["case_00000.json", "case_00000.nii.gz", "mine.txt"]


def test_evaluate_and_predict_pass_on_precision_and_compile(tmp_path, monkeypatch, raw):
    model = Ramp()
    run = export_run(tmp_path / "run", monkeypatch, model, size_px="64x64")
    with pytest.raises(InputError):  # its store is nowhere
        evaluate.main(evaluate.Args(run=str(run), compile=True))
    assert model.compiled
    model.compiled = False
    main(run, raw / "case_00000" / "imaging.nii.gz", tmp_path / "out", compile=True)
    assert model.compiled
    if not torch.cuda.is_available():
        for program in (
            lambda: evaluate.main(evaluate.Args(run=str(run), precision="fp16")),
            lambda: main(run, raw, tmp_path / "out", precision="tf32"),
        ):
            with pytest.raises(InputError, match="precision=(fp16|tf32) needs an NVIDIA GPU. Use precision=auto"):
                program()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_predict_gpu.py has its own")
def test_bf16_and_fp32_differ_and_both_are_reported(tmp_path, raw, capsys):
    run, uint8_probabilities = untrained_run(tmp_path / "run", size_px="64x64"), {}
    image = raw / "case_00000" / "imaging.nii.gz"
    for asked, used in (("auto", "fp32: no GPU"), ("bf16", "bf16: as asked")):
        main(run, image, tmp_path / asked, precision=asked)
        assert f"precision {used}\n" in capsys.readouterr().out
        assert json.loads((tmp_path / asked / "case_00000.json").read_text())["precision"] == used[:4]
        predictor = Predictor(run, precision=asked)
        uint8_probabilities[asked] = predict_probabilities(predictor, read_image(image))
    difference = np.abs(uint8_probabilities["auto"] - uint8_probabilities["bf16"]).max()
    assert 1e-5 < difference < 0.05  # bf16 has 8 bits


def test_unusable_output_folders_are_refused_before_anything_is_predicted(raw, tmp_path):
    run = untrained_run(tmp_path / "run", size_px="64x64")
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a.nii.gz", "a_tumor.nii.gz", "b_0000.nii.gz"):
        shutil.copy(raw / "case_00000" / "imaging.nii.gz", scans / name)
    (tmp_path / "file").write_text("")
    for output, more, words in (
        (scans, {}, "would overwrite the CT .*a.nii.gz"),
        (tmp_path / "file", {}, "output=.*file is a file. Name a folder"),
        (tmp_path / "file" / "below", {}, "output=.*below cannot be written to .Not a directory.. Name another folder"),
        (tmp_path / "out", {"probabilities": True}, "two files would be called a_tumor.nii.gz"),
    ):
        with pytest.raises(InputError, match=words):
            main(run, scans, output, **more)
    for name in ("a.nii.gz", "a_tumor.nii.gz"):
        (scans / name).unlink()
    with pytest.raises(InputError, match="is the input folder; next time labels would pass for CTs"):
        main(run, scans, scans)
    assert [p.name for p in scans.iterdir()] == ["b_0000.nii.gz"] and not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no .nii.gz or .nii file directly in it, no DICOM below it. .*It is empty"):
        main(run, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(MissingInput, match="no such file or folder"):
        main(run, tmp_path / "nowhere", tmp_path / "out")


def test_a_full_disk_stops_the_run_and_names_the_file(raw, tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(folder, "write_nifti", full)
    run = untrained_run(tmp_path / "run", size_px="64x64")
    with pytest.raises(OSError, match="No space left on device: .*case_00000.nii.gz"):
        main(run, raw, tmp_path / "out")
