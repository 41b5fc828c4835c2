"""A CT volume -> a label volume on the same voxels, with one trained run or several: for `predict` and `evaluate`."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kits_dist.data.intensity import body_box
from kits_dist.data.store import PLANES, Case
from kits_dist.imaging.nifti import Volume
from kits_dist.inference.cascade import Cascade, KidneyCropModel
from kits_dist.inference.ensemble import MeanEnsemble, WeightedLogitEnsemble, load_weights
from kits_dist.inference.region_models import (
    PrecisionName,
    RegionModel,
    RunModel,
    SliceProbabilities,
    Tta,
    batch_ranges,
    predict_volume,
)
from kits_dist.labels import PAINT, REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.text import parse_folders


class CascadeStage(NamedTuple):
    """One of the label maps that a cascade is judged by."""

    name: str  # "" for the whole
    regions: tuple[str, ...]


class Predictor:
    """Runs as one model, and the label map that their probabilities paint."""

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
        """run: a folder, or several as `[A,B]`. Those that see the whole body are averaged, or fused with the weights
        of the file `fusion`; those of data.box=kidney look into the kidneys that the others found.

        batch_size: slices at once. annotated: cases come with the boxes of their annotation, so that runs of
        data.box=kidney can also be judged alone. precision: `region_models.inference_precision` says what auto is.
        compiled: by torch.compile; worth its minute where there are many scans.
        Raises MissingInput / InputError when one holds no model or a damaged one, or they do not go together.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1.")
        folders = parse_folders(str(run), "run")
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise InputError(f"run={run} names a run twice; it would count twice. Name each once.")
        self.members = [RunModel(folder, batch_size, tta, precision, compiled) for folder in folders]
        self.model = _together(self.members, fusion, annotated)
        self.regions, self.tta = self.model.regions, tta
        self.fusion = files.sha256(Path(fusion)) if fusion else ""  # of the file of weights
        first = self.members[0]
        self.config, self.window = first.config, first.window
        self.precision = " and ".join(sorted({member.precision.mode for member in self.members}))
        self.data = " and ".join(sorted({member.data for member in self.members}))
        self.step = first.step if len(self.members) == 1 else [member.step for member in self.members]
        self.trained_on = set().union(*(member.trained_on for member in self.members))

    @property
    def network_s(self) -> float:
        """Seconds that the networks have worked."""
        return sum(member.timer.seconds for member in self.members)

    def predict(self, image: Volume) -> np.ndarray:
        """(D, H, W) HU -> (D, H, W) uint8 labels. Every slice is predicted; outside the window is background."""
        levels = self.levels_of(image)
        return self.predict_levels(levels, self.case_of(levels, image))

    def predict_levels(
        self, levels: np.ndarray, case: Case, uint8_probabilities: np.ndarray | None = None
    ) -> np.ndarray:
        """(D, H, W) uint8 levels of the window, as a store holds them -> (D, H, W) uint8 labels.

        uint8_probabilities  (R, D, H, W), filled with round(255 * probability): at least 128 exactly where it is inside
        """
        return self._painted(self.model.probabilities(levels, case), self.regions, levels.shape, uint8_probabilities)

    @property
    def stages(self) -> list[CascadeStage]:
        """The label maps of `predict_stages`, in their order; the whole comes last."""
        if isinstance(self.model, Cascade):
            first, second = self.model.first.regions, self.model.second.regions
            return [CascadeStage("phase1", first), CascadeStage("phase2", second), CascadeStage("", self.regions)]
        return [CascadeStage("phase2" if isinstance(self.model, KidneyCropModel) else "", self.regions)]

    def predict_stages(self, levels: np.ndarray, case: Case) -> Iterator[np.ndarray]:
        """Of a cascade phase 1 alone, phase 2 in the boxes of the annotation, and the whole, which never sees those;
        of anything else its label map. (D, H, W) uint8 each."""
        if not isinstance(self.model, Cascade):
            yield self.predict_levels(levels, case)
            return
        first, second = self.model.first, self.model.second
        seen = predict_volume(first, levels, case)
        alone = (
            SliceProbabilities(some, seen[:, some.start : some.stop].transpose(0, 1))
            for some in batch_ranges(0, len(levels), 16)
        )
        yield self._painted(alone, first.regions, levels.shape)
        yield self._painted(second.probabilities(levels, case), second.regions, levels.shape)
        yield self._painted(self.model.continued(seen, levels, case), self.regions, levels.shape)

    @staticmethod
    def _painted(
        chunks: Iterable[SliceProbabilities],
        regions: tuple[str, ...],
        shape: tuple[int, ...],
        uint8_probabilities: np.ndarray | None = None,
    ) -> np.ndarray:
        labels = np.empty(shape, np.uint8)
        for slices, probability in chunks:
            here = slice(slices.start, slices.stop)
            labels[here] = painted(probability >= 0.5, regions).cpu().numpy()  # sync
            if uint8_probabilities is not None:
                uint8_probabilities[:, here] = (probability * 255).round().byte().transpose(0, 1).cpu().numpy()
        return labels

    def levels_of(self, image: Volume) -> np.ndarray:
        """(D, H, W) HU -> (D, H, W) uint8 levels, slice by slice: of a large CT a float copy would be gigabytes."""
        levels = np.empty(image.array.shape, np.uint8)
        for one, hu in zip(levels, image.array, strict=True):
            one[:] = self.window.to_levels(hu)
        return levels

    def case_of(self, levels: np.ndarray, image: Volume) -> Case:
        """What framing needs to know of a scan that is in no store."""
        planes = {"axial", *(plane for member in self.members for plane in member.config.data.planes)}
        body = {plane: body_box(levels.transpose(PLANES[plane])) for plane in PLANES if plane in planes}
        return Case("", levels.shape, image.spacing_mm, body, {}, {}, image.geometry, {})


def _together(members: list[RunModel], fusion: str, annotated: bool) -> RegionModel:
    """Raises InputError for runs that do not go together, or for boxes that come from nowhere."""
    wide, boxed = ([m for m in members if m.config.data.box == box] for box in ("body", "kidney"))
    for group in (wide, boxed):
        for other in group[1:]:
            _same("predicts", group[0], other, lambda m: ", ".join(m.regions))
    for other in members[1:]:
        _same("was trained on HU", members[0], other, lambda m: list(m.window))
    for other in boxed[1:]:
        _same("was trained with data.box_margin_mm", boxed[0], other, lambda m: m.config.data.box_margin_mm)
    if not wide:
        if not annotated:
            raise InputError(
                f"{boxed[0].run} was trained with data.box=kidney: it looks into boxes that another run must find. "
                f"Name that one too: run=[PHASE1,{boxed[0].run}]"
            )
        return KidneyCropModel(boxed)
    by_plane = [model.plane_models() for model in wide]
    if fusion:
        if boxed:
            raise InputError(f"fusion={fusion}: weights are for runs that see the whole body. Leave it out.")
        flat = [one for planes in by_plane for one in planes]
        return WeightedLogitEnsemble(flat, load_weights(fusion, flat))
    models = [planes[0] if len(planes) == 1 else MeanEnsemble(planes) for planes in by_plane]
    first = models[0] if len(models) == 1 else MeanEnsemble(models)
    if not boxed:
        return first
    if "kidney_and_mass" not in first.regions:
        raise InputError(
            f"{wide[0].run} predicts {', '.join(first.regions)}: without kidney_and_mass it finds no boxes."
        )
    return Cascade(first, KidneyCropModel(boxed))


def _same(what: str, a: RunModel, b: RunModel, of: Callable[[RunModel], object]) -> None:
    if of(a) != of(b):
        raise InputError(
            f"{a.run} {what} {of(a)}, but {b.run} {what} {of(b)}: their probabilities cannot be averaged, "
            "nor can one go on from the other. Name runs that agree."
        )


def painted(inside: Tensor, regions: tuple[str, ...]) -> Tensor:
    """(n, R, H, W) bool -> (n, H, W) uint8: `labels.regions_to_labels` on the device."""
    ones = inside.view(torch.uint8)  # in arithmetic: ten times as fast on a CPU as filling by masks
    labels = torch.zeros_like(ones[:, 0])
    within = ones[:, regions.index("kidney_and_mass")] if "kidney_and_mass" in regions else 1
    for name in REGIONS:
        if name in regions:
            labels += ones[:, regions.index(name)] * within * (PAINT[name] - labels)  # modulo 256
    return labels
