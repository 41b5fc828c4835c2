"""Predict the label map of a CT volume with one trained run or several; `predict` and `evaluate` use it."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.config import PrecisionName, Tta
from kits_dist.data.intensity import body_box
from kits_dist.data.store import PLANES, Case
from kits_dist.imaging.nifti import Volume
from kits_dist.inference.cascade import Cascade, KidneyCropModel, KidneyMaskModel
from kits_dist.inference.ensemble import MeanEnsemble, WeightedLogitEnsemble, load_weights
from kits_dist.inference.region_models import (
    RegionModel,
    RunModel,
    SliceProbabilities,
    predict_volume,
    split_volume,
)
from kits_dist.inference.run_folders import run_folders
from kits_dist.labels import regions_to_labels
from kits_dist.utils import files
from kits_dist.utils.errors import InputError


class CascadeStage(NamedTuple):
    """One of the label maps that a cascade is evaluated by."""

    name: str  # phase1, phase2, or "" for the complete prediction
    regions: tuple[str, ...]


class Predictor:
    """One run or several, combined into one model that predicts label maps."""

    def __init__(
        self,
        run: str | Path,
        batch_size: int = 16,
        tta: Tta = "none",
        fusion: str = "",
        annotated: bool = False,
        precision: PrecisionName = "auto",
        compiled: bool = False,
    ):
        """Load the runs.

        run          a folder, or several as `[A,B]`. Runs that see whole slices are averaged, or weighted by the file
                     `fusion`; those of data.box=kidney or data.mask=kidney segment the kidneys that the others found.
        batch_size   slices at once
        annotated    cases come with the kidney boxes of their annotation, so that runs of data.box=kidney can be
                     evaluated without the others
        precision    see `device.inference_precision`
        compiled     use torch.compile: a minute once, worth it for many scans
        Raises MissingInput or InputError when a run has no model or a damaged one, or the runs do not go together.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1.")
        self.members = [RunModel(folder, batch_size, tta, precision, compiled) for folder in run_folders(str(run))]
        self.model = _combine(self.members, fusion, annotated)
        self.regions = self.model.regions
        self.tta = tta
        self.fusion = files.sha256(Path(fusion)) if fusion else ""  # of the file of weights

        first = self.members[0]
        self.config = first.config
        self.window = first.window
        self.precision = " and ".join(sorted({member.precision.mode for member in self.members}))
        self.data = " and ".join(sorted({member.data for member in self.members}))
        self.step = first.step if len(self.members) == 1 else [member.step for member in self.members]
        self.trained_on = set().union(*(member.trained_on for member in self.members))

    @property
    def network_s(self) -> float:
        """Return the seconds that the networks have run."""
        return sum(member.timer.seconds for member in self.members)

    def predict(self, image: Volume) -> np.ndarray:
        """Predict (D, H, W) uint8 labels from (D, H, W) HU. Pixels outside the network's window are background.

        Raises InputError for a volume whose array does not fit its geometry.
        """
        image.check()
        levels = self.levels_of(image)
        return self.predict_levels(levels, self.case_of(levels, image))

    def predict_levels(
        self, levels: np.ndarray, case: Case, uint8_probabilities: np.ndarray | None = None
    ) -> np.ndarray:
        """Predict (D, H, W) uint8 labels from (D, H, W) uint8 levels of the HU window, as a store holds them.

        uint8_probabilities   (R, D, H, W), filled with round(255 * probability): at least 128 exactly inside a region
        """
        return _to_labels(self.model.probabilities(levels, case), self.regions, levels.shape, uint8_probabilities)

    @property
    def stages(self) -> list[CascadeStage]:
        """Return the label maps of `predict_stages` in their order; the complete prediction comes last."""
        if isinstance(self.model, Cascade):
            first, second = self.model.first, self.model.second
            stages = [CascadeStage("phase1", first.regions), CascadeStage("", self.regions)]
            if isinstance(second, KidneyCropModel):
                stages.insert(1, CascadeStage("phase2", second.regions))
            return stages
        return [CascadeStage("phase2" if isinstance(self.model, KidneyCropModel) else "", self.regions)]

    def predict_stages(self, levels: np.ndarray, case: Case) -> Iterator[np.ndarray]:
        """Yield a (D, H, W) uint8 label map for each of `stages`.

        Of a cascade: phase 1 alone, phase 2 (data.box=kidney) in the boxes of the annotation, and the complete
        prediction, which does not use those boxes.
        """
        if not isinstance(self.model, Cascade):
            yield self.predict_levels(levels, case)
            return

        first, second = self.model.first, self.model.second
        first_phase = predict_volume(first, levels, case)
        alone = split_volume(first_phase, second.batch_size, second.device)
        yield _to_labels(alone, first.regions, levels.shape)
        if isinstance(second, KidneyCropModel):
            yield _to_labels(second.probabilities(levels, case), second.regions, levels.shape)
        yield _to_labels(self.model.second_phase(first_phase, levels, case), self.regions, levels.shape)

    def levels_of(self, image: Volume) -> np.ndarray:
        """Convert (D, H, W) HU to uint8 levels of the window."""
        levels = np.empty(image.array.shape, np.uint8)
        # slice by slice: a float copy of a large CT would take gigabytes
        for target, hu in zip(levels, image.array, strict=True):
            target[:] = self.window.to_levels(hu)
        return levels

    def case_of(self, levels: np.ndarray, image: Volume) -> Case:
        """Return what the networks need to know about a scan that is in no store."""
        planes = {"axial", *(plane for member in self.members for plane in member.config.data.planes)}
        body = {plane: body_box(levels.transpose(PLANES[plane])) for plane in PLANES if plane in planes}
        return Case("", levels.shape, image.spacing_mm, body, {}, {}, image.geometry, {})


def _to_labels(
    batches: Iterable[SliceProbabilities],
    regions: tuple[str, ...],
    shape: tuple[int, ...],
    uint8_probabilities: np.ndarray | None = None,
) -> np.ndarray:
    labels = np.empty(shape, np.uint8)
    for slices, probability in batches:
        target = slice(slices.start, slices.stop)
        labels[target] = regions_to_labels((probability >= 0.5).transpose(0, 1), regions).cpu().numpy()  # sync
        if uint8_probabilities is not None:
            uint8_probabilities[:, target] = (probability * 255).round().byte().transpose(0, 1).cpu().numpy()
    return labels


def _combine(members: list[RunModel], fusion: str, annotated: bool) -> RegionModel:
    """Raise InputError for runs that do not go together, or for crops whose boxes no run predicts."""
    crops = [member for member in members if member.config.data.box == "kidney"]
    masked = [member for member in members if member.config.data.mask == "kidney"]
    whole = [member for member in members if not member.is_second_phase]
    if crops and masked:
        raise InputError(f"{crops[0].run} sees boxes and {masked[0].run} sees masks of kidneys. Name runs of one kind.")
    for group in (whole, crops, masked):
        _refuse_different(group, "predicts", lambda run: ", ".join(run.regions))
    _refuse_different(members, "was trained on HU", lambda run: list(run.window))
    _refuse_different(crops, "was trained with data.box_margin_mm", lambda run: run.config.data.box_margin_mm)

    if not whole:
        if masked or not annotated:
            second, key = (masked[0], "mask") if masked else (crops[0], "box")
            raise InputError(
                f"{second.run} was trained with data.{key}=kidney: another run must find the kidneys. Name that one "
                f"too: run=[PHASE1,{second.run}]"
            )
        return KidneyCropModel(crops)

    if fusion and (crops or masked):
        raise InputError(f"fusion={fusion}: weights are for runs that see whole slices. Leave it out.")
    first = _combine_planes(whole, fusion)
    if not crops and not masked:
        return first
    if "kidney_and_mass" not in first.regions:
        raise InputError(
            f"{whole[0].run} predicts {', '.join(first.regions)}: without kidney_and_mass it finds no kidneys. Name a "
            "run that predicts it first."
        )
    if crops:
        return Cascade(first, KidneyCropModel(crops))
    return Cascade(first, KidneyMaskModel(_combine_planes(masked, ""), masked[0].batch_size, masked[0].device))


def _combine_planes(runs: list[RunModel], fusion: str) -> RegionModel:
    """Weight all planes of all runs, or average the planes of each run and then the runs."""
    planes_of_runs = [run.plane_models() for run in runs]
    if fusion:
        planes = [plane for planes in planes_of_runs for plane in planes]
        return WeightedLogitEnsemble(planes, load_weights(fusion, planes))
    models = [planes[0] if len(planes) == 1 else MeanEnsemble(planes) for planes in planes_of_runs]
    return models[0] if len(models) == 1 else MeanEnsemble(models)


def _refuse_different(runs: list[RunModel], what: str, value_of: Callable[[RunModel], object]) -> None:
    for other in runs[1:]:
        if value_of(other) != value_of(runs[0]):
            raise InputError(
                f"{runs[0].run} {what} {value_of(runs[0])}, but {other.run} {what} {value_of(other)}: they cannot be "
                "combined. Name runs that agree."
            )
