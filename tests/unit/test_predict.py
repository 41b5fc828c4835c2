"""What `predict` takes, writes, says and refuses. Networks are fakes whose answers are known, or untrained ones."""

import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from kits_dist import cli, evaluate, predict
from kits_dist.config import Config, as_plain
from kits_dist.distributed.ranks import Ranks, launched
from kits_dist.imaging.nifti import read_image, read_labels, same_grid
from kits_dist.imaging.scans import find_scans
from kits_dist.inference import folder, region_models
from kits_dist.inference.device import inference_precision
from kits_dist.inference.ensemble import MeanEnsemble
from kits_dist.inference.predictor import Predictor
from kits_dist.inference.region_models import RunModel, SliceProbabilities, region_probabilities
from kits_dist.labels import REGIONS, regions_to_labels
from kits_dist.models import build_model
from kits_dist.models import weights as model_weights
from kits_dist.utils.errors import InputError, JobFailed, MissingInput
from tests.conftest import write_case
from tests.helpers.launching import LAUNCH, ROOT, run_program
from tests.unit.inference.test_predictor import NORM, Threshold, export_run, scan

ALL = tuple(REGIONS)


def real_run(folder, regions=ALL, seed=0, **data):
    """A run folder with an untrained U-Net, for processes that no fake reaches."""
    arguments = [f"data.{key}={value}" for key, value in data.items()] + [f"model.regions=[{','.join(regions)}]"]
    config = cli.load(
        Config, ["run=r", "data.store=s", "model.arch=simple_unet", "model.width=2", "model.prior=0.5", *arguments]
    )
    torch.manual_seed(seed)
    about = {"config": as_plain(config), "window_hu": [0.0, 200.0], "normalization": NORM, "data": "phantom"}
    folder.mkdir(parents=True)
    model = build_model(config.model, 1 + 2 * config.data.context)
    model_weights.export(folder / "model.safetensors", model, about | {"trained_on_voxels": [], "step": 5})
    return folder


def main(run, source, output, **more):
    predict.main(predict.Args(run=str(run), input=str(source), output=str(output), **more))


class Ramp(nn.Module):
    """Logits that grow from left to right whatever the image: no mirror image of itself."""

    def __init__(self):
        super().__init__()
        self.passes, self.strides, self.compiled = [], [], False

    def compile(self):
        self.compiled = True

    def forward(self, image):
        self.passes.append(len(image))
        self.strides.append(image.stride())
        ramp = torch.linspace(-3, 5, image.shape[-1])
        return ramp.expand(len(image), 1, image.shape[2], -1)


def probabilities(predictor, volume):
    levels = predictor.levels_of(volume)
    chunks = list(predictor.model.probabilities(levels, predictor.case_of(levels, volume)))
    assert [i for chunk in chunks for i in chunk.slices] == list(range(len(levels)))
    return torch.cat([chunk.probability for chunk in chunks]).numpy()


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_tta_is_the_mean_with_the_mirrored_prediction_but_never_turns_front_to_back(tmp_path, monkeypatch, plane):
    model = Ramp()
    run = export_run(tmp_path, monkeypatch, model, size_px="96x96", planes=f"[{plane}]")
    plain = probabilities(Predictor(run, 2), scan())
    passes, model.passes = model.passes, []
    flipped = probabilities(Predictor(run, 2, "flip"), scan())
    if plane == "sagittal":
        assert model.passes == passes and np.array_equal(plain, flipped)
        return
    assert sum(model.passes) == 2 * sum(passes) and set(model.passes) == {2}  # both ways beside each other
    # the window of 96 lies around the slice of 90 columns: 3 beside it on either side, mirrored onto themselves
    expected = (plain + plain[..., ::-1]) / 2
    assert np.abs(flipped - expected).max() < 1e-3 and np.abs(flipped - plain).max() > 0.3  # float16 beside axial


@pytest.mark.parametrize("batch_size, passes", [(1, [2] * 5), (5, [4, 4, 2]), (16, [10])])
def test_slices_and_their_mirror_images_in_one_pass_give_what_two_passes_give(tmp_path, batch_size, passes):
    model = RunModel(real_run(tmp_path / "run", size_px="64x96"), batch_size, "flip")
    seen = []
    model.model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    image = torch.randn(5, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    together = model.predict_batch_flipped(image)
    assert seen == passes
    plain, mirrored = (region_probabilities(model.model, one) for one in (image, image.flip(-1)))
    assert (together - (plain + mirrored.flip(-1)) / 2).abs().max() < 1e-6  # float32 has 24 bits
    assert (together - plain).abs().max() > 1e-3


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize("context, size", [(0, "96x64"), (0, "71x90"), (2, "96x64")])
def test_what_reaches_the_network_is_channels_last(tmp_path, monkeypatch, context, size, tta):
    """By its strides, by which convolutions choose: one channel passes for contiguous and channels_last at once."""
    model = Ramp()
    framing = {"pixel_mm": 1.0} if size == "71x90" else {}  # warped, not cut
    run = export_run(tmp_path, monkeypatch, model, size_px="96x64", context=context, **framing)
    Predictor(run, 2, tta).predict(scan())
    channels = 1 + 2 * context
    assert set(model.strides) == {(96 * 64 * channels, 1, 64 * channels, channels)}


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_a_compiled_network_meets_one_size_of_batch_only(tmp_path, monkeypatch, tta):
    """Another one would be compiled anew. What was padded is dropped."""
    model = Ramp()
    run = export_run(tmp_path, monkeypatch, model, size_px="96x96")
    plain = probabilities(Predictor(run, 2, tta), scan())
    model.passes = []
    compiled = probabilities(Predictor(run, 2, tta, compiled=True), scan())
    assert model.compiled and set(model.passes) == {2} and np.array_equal(plain, compiled)
    assert sum(model.passes) > len(plain)  # the last of three slices was padded


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler (g++)")
def test_a_network_is_compiled_once_and_predicts_the_same(tmp_path):
    run = real_run(tmp_path / "run", ("kidney_and_mass",), size_px="64x64")
    plain = probabilities(Predictor(run, 2), scan())
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    compiled = probabilities(Predictor(run, 2, compiled=True), scan())  # two slices, then one
    assert counted["unique_graphs"] == before + 1
    assert np.abs(compiled - plain).max() < 1e-5 and plain.std() > 1e-3  # float32; joined layers may round otherwise


def test_evaluate_and_predict_hand_on_how_the_network_runs(tmp_path, monkeypatch, raw):
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
def test_bf16_is_another_precision_than_fp32_and_both_say_so(tmp_path, raw, capsys):
    run, uint8_probabilities = real_run(tmp_path / "run", size_px="64x64"), {}
    image = raw / "case_00000" / "imaging.nii.gz"
    for asked, used in (("auto", "fp32: no GPU"), ("bf16", "bf16: as asked")):
        main(run, image, tmp_path / asked, precision=asked)
        assert f"precision {used}\n" in capsys.readouterr().out
        assert json.loads((tmp_path / asked / "imaging.json").read_text())["precision"] == used[:4]
        predictor = Predictor(run, precision=asked)
        uint8_probabilities[asked] = probabilities(predictor, read_image(image))
    difference = np.abs(uint8_probabilities["auto"] - uint8_probabilities["bf16"]).max()
    assert 1e-5 < difference < 0.05  # bf16 has 8 bits


@pytest.fixture
def tf32_as_before():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(
    "asked, trained, has_bf16, mode",
    [
        ("auto", "auto", True, "bf16"),
        ("auto", "auto", False, "fp16"),
        ("auto", "fp16", True, "fp16"),
        ("auto", "bf16", True, "bf16"),
        ("auto", "fp32", True, "tf32"),
        ("auto", "tf32", True, "tf32"),
        ("fp32", "auto", True, "fp32"),
        ("fp16", "bf16", True, "fp16"),
    ],
)
def test_on_a_gpu_a_network_predicts_as_it_was_trained(monkeypatch, tf32_as_before, asked, trained, has_bf16, mode):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # the launcher's: not asked
    assert inference_precision(asked, trained, torch.device("cuda")).mode == mode
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (mode != "fp32")


def test_several_runs_are_averaged(tmp_path, monkeypatch):
    models = {"a": Threshold(100.0), "b": Threshold(140.0)}
    for name, model in models.items():
        export_run(tmp_path / name, monkeypatch, model, size_px="96x96")
    loaded = iter([models["a"], models["b"], models["a"], models["b"]])
    monkeypatch.setattr(region_models, "build_model", lambda *a, **k: next(loaded))
    both = Predictor(f"[{tmp_path / 'a'},{tmp_path / 'b'}]", batch_size=2)
    alone = [probabilities(Predictor(tmp_path / name, 2), scan()) for name in models]
    mean = (alone[0] + alone[1]) / 2
    assert np.array_equal(probabilities(both, scan()), mean) and not np.array_equal(*alone)
    assert np.array_equal(both.predict(scan()), (mean[:, 0] >= 0.5).astype(np.uint8))
    assert both.trained_on == {"case_00007"} and both.step == [None, None]


def test_runs_that_do_not_fit_are_refused_naming_both(tmp_path, monkeypatch):
    a = export_run(tmp_path / "a", monkeypatch, Threshold(100.0))
    b = export_run(tmp_path / "b", monkeypatch, Threshold(100.0, 150.0), regions=("kidney_and_mass", "tumor"))
    with pytest.raises(InputError, match=f"{a} predicts kidney_and_mass, but {b} predicts kidney_and_mass, tumor: "):
        Predictor(f"[{a},{b}]")
    c = real_run(tmp_path / "c", ("kidney_and_mass",))
    weights, about = model_weights.read_export(c / "model.safetensors")
    about["window_hu"] = [-100, 300]
    monkeypatch.undo()
    model_weights.export(c / "model.safetensors", build_model(RunModel(c, 1, "none").config.model, 1), about)
    d = real_run(tmp_path / "d", ("kidney_and_mass",))
    with pytest.raises(
        InputError, match=r"c was trained on HU \[-100, 300\], but .*d was trained on HU \[0.0, 200.0\]"
    ):
        Predictor(f"[{c},{d}]")
    for wrong, words in (
        (f"{a},{b}", r"Several are written run=\[A,B\]"),
        (f"[{a},]", "names an empty folder"),
        (f"[{a},{a}]", "names a run twice"),
    ):
        with pytest.raises(InputError, match=words):
            Predictor(wrong)


def test_anything_that_yields_chunks_may_be_averaged():
    class Fixed:
        regions = ("tumor",)

        def __init__(self, value):
            self.value = value

        def probabilities(self, levels, case):
            for first in range(0, len(levels), 2):
                slices = range(first, min(first + 2, len(levels)))
                yield SliceProbabilities(slices, torch.full((len(slices), 1, 4, 4), self.value))

    nested = MeanEnsemble([MeanEnsemble([Fixed(0.2), Fixed(0.4)]), Fixed(0.5)])
    chunks = list(nested.probabilities(np.zeros((3, 4, 4), np.uint8), None))
    assert [list(chunk.slices) for chunk in chunks] == [[0, 1], [2]]
    assert all(chunk.probability.unique().tolist() == pytest.approx([0.4]) for chunk in chunks)


def test_probabilities_are_written_and_say_the_same_as_the_labels(tmp_path):
    write_case(tmp_path / "raw", 0, (5, 64, 80))
    run = real_run(tmp_path / "run", size_px="64x64")
    image = tmp_path / "raw" / "case_00000" / "imaging.nii.gz"
    main(run, image, tmp_path / "out", probabilities=True, postprocess=False)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == sorted(["imaging.nii.gz", "imaging.json", *(f"imaging_{region}.nii.gz" for region in ALL)])
    predictor = Predictor(run)
    exact = probabilities(predictor, read_image(image))
    shown = [nib.load(tmp_path / "out" / f"imaging_{region}.nii.gz") for region in ALL]
    assert {one.get_data_dtype() for one in shown} == {np.dtype(np.uint8)}
    assert same_grid(read_image(image).geometry, read_image(tmp_path / "out" / "imaging_mass.nii.gz").geometry)
    found = np.stack([read_image(tmp_path / "out" / f"imaging_{region}.nii.gz").array for region in ALL], axis=1)
    assert np.abs(found - exact).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(found >= 0.5, exact >= 0.5) and (exact >= 0.5).any() and (exact < 0.5).any()
    labels = read_labels(tmp_path / "out" / "imaging.nii.gz").array
    assert np.array_equal(labels, regions_to_labels((found >= 0.5).swapaxes(0, 1), ALL))


def test_beside_each_label_map_stands_what_it_says(tmp_path, capsys):
    write_case(tmp_path / "raw", 0, (5, 64, 80))
    run = real_run(tmp_path / "run", size_px="64x96")
    main(run, tmp_path / "raw", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "case_00000.json").read_text())
    assert "not a medical device" in about["note"] and about["labels"] == "case_00000.nii.gz"
    assert (about["runs"], about["step"], about["trained_on"], about["postprocess"]) == (["run"], 5, "phantom", {})
    assert {"kidney_right_ml", "kidney_left_ml", "tumor_ml", "tumors", "tumor_diameter_mm"} == set(about["findings"])
    said = capsys.readouterr().out
    assert "research use only" in said and "1 label maps in" in said and "time in the network: " in said
    assert str(tmp_path) not in json.dumps(about)


def test_files_of_the_same_name_are_replaced_in_one_step_and_others_left(tmp_path):
    write_case(tmp_path / "raw", 0, (5, 64, 80))
    image = tmp_path / "raw" / "case_00000" / "imaging.nii.gz"
    out = tmp_path / "out"
    main(real_run(tmp_path / "a", size_px="64x64"), image, out)
    first = (out / "imaging.nii.gz").read_bytes()
    (out / "mine.txt").write_text("kept")
    main(real_run(tmp_path / "b", size_px="64x64", seed=1), image, out)
    assert (out / "imaging.nii.gz").read_bytes() != first
    assert sorted(p.name for p in out.iterdir()) == ["imaging.json", "imaging.nii.gz", "mine.txt"]


def test_nnunet_names_and_folders(raw, tmp_path):
    tests, training = tmp_path / "d" / "imagesTs", tmp_path / "d" / "imagesTr"
    for path in (tests / "kidney_7_0000.nii.gz", tests / "plain.nii.gz", training / "kidney_1_0000.nii.gz"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(raw / "case_00000" / "imaging.nii.gz", path)
    assert [s.name for s in find_scans(tests).scans] == ["kidney_7", "plain"]
    found = find_scans(tmp_path / "d")
    assert [s.name for s in found.scans] == ["kidney_7", "plain"] and "those of imagesTr are left out" in found.notes[0]
    assert [s.name for s in find_scans(tests / "kidney_7_0000.nii.gz").scans] == ["kidney_7"]
    shutil.copy(tests / "plain.nii.gz", tests / "kidney_7_0001.nii.gz")
    with pytest.raises(InputError, match="holds second channels .kidney_7_0001.nii.gz.; a CT has one"):
        find_scans(tests)
    (tests / "kidney_7_0001.nii.gz").rename(tests / "kidney_7.nii.gz")
    with pytest.raises(InputError, match="holds kidney_7.nii.gz and kidney_7_0000.nii.gz, whose label maps would"):
        find_scans(tests)
    (tests / "kidney_7.nii.gz").unlink()
    (tests / "plain.nii.gz").rename(tests / "plain_0000.nii.gz")
    with pytest.raises(InputError, match="is the input folder; next time labels would pass for CTs"):
        main(real_run(tmp_path / "run"), tmp_path / "d", tests)
    shutil.rmtree(tests)
    assert [s.name for s in find_scans(tmp_path / "d").scans] == ["kidney_1"]


def test_places_that_cannot_be_written_to_are_refused_before_anything_is_predicted(raw, tmp_path):
    run = real_run(tmp_path / "run", size_px="64x64")
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a.nii.gz", "a_tumor.nii.gz", "b_0000.nii.gz"):
        shutil.copy(raw / "case_00000" / "imaging.nii.gz", scans / name)
    (tmp_path / "file").write_text("")
    for output, more, words in (
        (scans, {}, "would overwrite the CT .*a.nii.gz"),
        (tmp_path / "file", {}, "output=.*file is a file. Name a folder"),
        (tmp_path / "file" / "below", {}, "output=.*below cannot be made .Not a directory.. Name another folder"),
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
    run = real_run(tmp_path / "run", size_px="64x64")
    with pytest.raises(OSError, match="No space left on device: .*case_00000.nii.gz"):
        main(run, raw, tmp_path / "out")


def test_a_dicom_series_is_predicted_on_its_own_grid(tmp_path):
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'kits-dist[dicom]'")
    from tests.unit.imaging.test_dicom import PATIENT, by_simpleitk, turned, write_series

    hu = np.random.default_rng(1).integers(-100, 300, (6, 64, 80)).astype(np.int16)
    write_series(tmp_path / "scans" / "jane", hu, axes=turned((3, 5)))
    by_simpleitk(tmp_path / "scans" / "jane", tmp_path)
    run = real_run(tmp_path / "run", size_px="64x64")
    main(run, tmp_path / "scans", tmp_path / "a")
    main(run, tmp_path / "theirs.nii.gz", tmp_path / "b")
    ours, theirs = read_labels(tmp_path / "a" / "jane.nii.gz"), read_labels(tmp_path / "b" / "theirs.nii.gz")
    assert np.array_equal(ours.array, theirs.array) and ours.array.any()
    assert same_grid(ours.canonical_geometry(), theirs.canonical_geometry())
    written = b"".join(path.read_bytes() for path in (tmp_path / "a").iterdir() if path.suffix == ".json")
    written += nib.load(tmp_path / "a" / "jane.nii.gz").header.binaryblock
    assert not [value for value in PATIENT.values() if value.encode() in written]


def test_every_scan_is_one_ranks():
    scans = list(range(7))
    for world in (1, 2, 3, 9):
        shares = [Ranks(rank, world).share(scans) for rank in range(world)]
        assert sorted(n for share in shares for n in share) == scans


def test_an_environment_that_contradicts_itself_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(InputError, match="RANK=3 and WORLD_SIZE=1 in the environment contradict"):
        launched()
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(InputError, match="WORLD_SIZE=many in the environment is no number"):
        launched()


def test_two_launched_processes_share_the_scans_and_one_bad_scan_fails_the_run(raw, tmp_path):
    """The rank with the bad scan waits for the other's scans: a launcher ends all when one leaves with an error."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for k in range(5):
        shutil.copy(raw / f"case_0000{k}" / "imaging.nii.gz", scans / f"scan_{k}.nii.gz")
    (scans / "scan_1.nii.gz").write_bytes(b"")
    (scans / "scan_3.nii.gz").write_bytes(b"no scan")
    run = real_run(tmp_path / "run", size_px="64x64")
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


PEAK = """
import re, sys
from kits_dist import predict
predict.main(predict.Args(run=sys.argv[1], input=sys.argv[2], output=sys.argv[3], batch_size=4))
print("peak kB", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""  # not getrusage: its peak begins with that of the process that started this one


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_does_not_grow_with_the_number_of_scans(tmp_path):
    run = real_run(tmp_path / "run", ("kidney_and_mass",), size_px="32x32")
    write_case(tmp_path / "raw", 0, (96, 384, 384))
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
    # 8 further scans are 226 MB as read, 113 MB as levels, and as much again as labels
    assert peak[11] - peak[3] < 60, peak
