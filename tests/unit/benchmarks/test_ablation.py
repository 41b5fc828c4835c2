"""The arms of the ablation change one ingredient each."""

import pytest

from benchmarks import ablation
from benchmarks.lib import study_runs
from benchmarks.lib.programs import ROOT
from kits_dist.config import as_plain
from kits_dist.utils.errors import InputError
from tests.unit.benchmarks.test_studies import SMALL, study_of


def test_the_ablation_changes_one_ingredient_at_a_time(store, tmp_path):
    words = (f"config={ROOT / 'configs' / 'demo.yaml'}",)
    study = study_of(store, tmp_path)
    found = ablation.arms(words, study, ablation.INGREDIENTS)
    assert [arm.name for arm in found] == [
        *("reference", "loss dice", "loss bce_dice", "loss focal", "loss tversky", "prior off"),
        *("pos_weight off", "region_weight on"),
        *("optimiser adamw", "optimiser sgd", "schedule constant", "schedule poly", "warm-up on", "ema on"),
        *("sampler natural", "context 1", "augmentation off"),
    ]
    reference, *others = (
        {
            f"{group}.{key}": value
            for group in ("data", "augment", "model", "optim")
            for key, value in plain[group].items()
        }
        for plain in (as_plain(study_runs.configuration(arm.trainings[0], study)) for arm in found)
    )
    changed = [sorted(key for key in reference if reference[key] != other[key]) for other in others]
    assert all(changed) and len({tuple(keys) for keys in changed[3:]}) > 8
    by_name = dict(zip((arm.name for arm in found[1:]), changed, strict=True))
    assert by_name["loss focal"] == ["optim.loss"] and by_name["context 1"] == ["data.context"]
    assert by_name["optimiser sgd"] == ["optim.lr", "optim.name"] and by_name["ema on"] == ["optim.ema"]
    assert {"augment.rotate_p", "augment.noise_p", "augment.crop", "augment.flip"} <= {*by_name["augmentation off"]}
    assert all(not reference[key] for key in reference.keys() & {"optim.ema", "optim.warmup_steps"})
    assert all(study_runs.configuration(arm.trainings[0], study) for arm in found)  # none is refused


def test_no_augmentation_leaves_none(store, tmp_path):
    """Also of kinds that the reference does not draw yet: every probability is 0."""
    (*_, off) = ablation.arms(SMALL, study_of(store, tmp_path), ("augmentation",))
    augment = study_runs.configuration(off.trainings[0], study_of(store, tmp_path)).augment
    assert {value for name, value in vars(augment).items() if name.endswith("_p") or name in ("flip", "crop")} == {0}


def test_an_unknown_ingredient_is_refused():
    with pytest.raises(InputError, match=r"only=\['salt'\]: choose from \['loss', "):
        ablation.Args(only=("salt",))
