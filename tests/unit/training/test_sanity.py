"""What nobody can tune to: nothing is learned from another patient's labels, and a neighbour that says nothing new
changes nothing."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.lib.studies import Arm, Study, Training, rows
from benchmarks.lib.study_runs import run
from benchmarks.lib.study_setup import recipe
from kits_dist import phantom, prepare
from kits_dist.config import ModelConfig
from kits_dist.models import build_model

REGIONS = ("kidney_and_mass", "tumor")
CONTEXT = 1  # data.context
FRAMES = 1 + 2 * CONTEXT


def answers(one: nn.Module, several: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits for a slice, and for the same slice with itself as its neighbours."""
    image = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return one.eval()(image), several.eval()(image.expand(-1, FRAMES, -1, -1))


def test_identical_neighbours_change_nothing_in_the_simple_unet():
    config, models = ModelConfig("simple_unet", width=4, regions=REGIONS), []
    for channels in (1, FRAMES):
        torch.manual_seed(0)
        models.append(build_model(config, channels))
    one, several = answers(*models)
    assert one.std() > 1e-3  # it does answer
    torch.testing.assert_close(several, one, rtol=0, atol=1e-5)  # order of float32 sums


@pytest.fixture
def weights(tmp_path) -> str:
    """Random weights of an encoder of colour images, with batch norms that have seen something."""
    torch.manual_seed(0)
    encoder = build_model(ModelConfig("unet", "resnet18", "none"), 3).encoder
    encoder.train()(torch.randn(4, 3, 64, 64))
    save_file(encoder.state_dict(), tmp_path / "resnet18.safetensors")
    return str(tmp_path / "resnet18.safetensors")


def test_identical_neighbours_change_nothing_behind_pretrained_weights(weights):
    config = ModelConfig("unet", "resnet18", weights, regions=REGIONS)
    models = [build_model(config, channels) for channels in (1, FRAMES)]
    for part in ("decoder", "segmentation_head"):  # not pretrained
        getattr(models[1], part).load_state_dict(getattr(models[0], part).state_dict())
    one, several = answers(*models)
    assert one.std() > 1e-3
    torch.testing.assert_close(several, one, rtol=1e-4, atol=1e-5)


def store_of(raw: Path) -> str:
    prepare.main(prepare.Args(source=str(raw), store=str(raw.with_suffix(".store"))))
    return str(raw.with_suffix(".store"))


@pytest.mark.slow
def test_labels_of_another_patient_teach_nothing(tmp_path):
    """The demo's recipe on phantoms of one grid: with their own labels it finds tumors in patients it never saw, with
    the labels dealt to the next patient it does not."""
    own, dealt = tmp_path / "own", tmp_path / "dealt"
    phantom.main(phantom.Args(output=str(own), cases=60, size=(24, 96, 96), spacing_mm=(8, 4, 4)))
    shutil.copytree(own, dealt)
    folders = sorted(own.glob("case_*"))
    for mine, other in zip(folders, [*folders[1:], folders[0]], strict=True):
        shutil.copy(other / "aggregated_MAJ_seg.nii.gz", dealt / mine.name)
    words = recipe("", on_gpu=False, quick=False, epochs=5)
    arms = tuple(Arm(raw.name, (Training(words, store=store_of(raw)),)) for raw in (own, dealt))
    study = Study("sanity", arms[0].trainings[0].store, arms, tmp_path / "study", seeds=(0,))
    assert run(study) == {}
    dice = {row.name: {region: means[0] for region, means in row.by_seed.items()} for row in rows(study)}
    assert dice["dealt"]["tumor"] < 0.2, dice
    assert dice["own"]["tumor"] > dice["dealt"]["tumor"] + 0.15, dice
    assert dice["own"]["kidney_and_mass"] > max(0.85, dice["dealt"]["kidney_and_mass"] + 0.1), dice
