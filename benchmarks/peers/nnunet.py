"""nnU-Net v2: `prepare` converts, plans and preprocesses a data set, `open_trainer` opens its trainer on the result."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from kits_dist.imaging.datasets import find_cases
from kits_dist.utils.parallel import available_cores

NUMBER, NAME = 220, "Dataset220_KiTS"
REGIONS = {"kidney_and_mass": [1, 2, 3], "mass": [2, 3], "tumor": 2}  # as in nnU-Net's KiTS converter


def prepare(source: Path, folder: Path) -> None:
    """Fill FOLDER/raw and FOLDER/preprocessed for the 2d configuration."""
    convert(source, folder / "raw" / NAME)
    with at(folder):
        from nnunetv2.experiment_planning.plan_and_preprocess_api import (
            extract_fingerprint_dataset,
            plan_experiment_dataset,
            preprocess_dataset,
        )

        extract_fingerprint_dataset(NUMBER, num_processes=available_cores(), verbose=False, show_progress_bar=False)
        plan_experiment_dataset(NUMBER)
        preprocess_dataset(NUMBER, configurations=("2d",), num_processes=(available_cores(),), show_progress_bar=False)


def convert(source: Path, raw: Path) -> None:
    """Link the cases into nnU-Net's raw layout."""
    cases = find_cases(source).cases
    for folder, paths in (("imagesTr", [case.image for case in cases]), ("labelsTr", [case.label for case in cases])):
        (raw / folder).mkdir(parents=True, exist_ok=True)
        end = "_0000.nii.gz" if folder == "imagesTr" else ".nii.gz"
        for case, path in zip(cases, paths, strict=True):
            (raw / folder / f"{case.case_id}{end}").symlink_to(path.resolve())
    about = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | REGIONS,
        "regions_class_order": [1, 3, 2],
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(about))


def open_trainer(folder: Path, device: torch.device) -> Any:
    """Return nnUNetTrainer of the 2d configuration on what `prepare` made, with network and optimizer initialized.

    Call it within `at(folder)`. It compiles its network on a GPU, as by default.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    made = folder / "preprocessed" / NAME
    plans = json.loads((made / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    trainer = nnUNetTrainer(plans, "2d", 0, json.loads((made / "dataset.json").read_text()), device)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    trainer.network.train()
    return trainer


@contextlib.contextmanager
def at(folder: Path):
    """Set the environment variables by which nnU-Net finds its folders."""
    places = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    places["nnUNet_n_proc_DA"] = str(available_cores())
    before = {name: os.environ.get(name) for name in places}
    os.environ |= places
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
