"""Two phases: networks that see whole slices find the kidneys, others segment the masses in them.

Phase 2 sees a crop around each kidney (data.box=kidney), or whole slices of which nothing but the kidneys is left
(data.mask=kidney).

Phase 2 takes its boxes from the prediction of phase 1. The boxes of the annotation are used only by
`KidneyCropModel.probabilities`, which shows how good phase 2 would be if phase 1 were perfect.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kits_dist.data.kidneys import Kidney, find_kidneys
from kits_dist.data.store import Case
from kits_dist.inference.region_models import (
    RegionModel,
    RunModel,
    SliceProbabilities,
    batch_ranges,
    predict_volume,
    split_volume,
    to_half,
)
from kits_dist.labels import REGIONS
from kits_dist.utils.components import Box3

WHOLE = "kidney_and_mass"


class CropProbabilities(NamedTuple):
    """Region probabilities in the box of one kidney."""

    box: Box3
    probability: Tensor  # (R, d, h, w) float16 on the CPU


class KidneyCropModel:
    """Runs of data.box=kidney: the mean of their probabilities inside each kidney's box, 0 outside."""

    def __init__(self, members: Sequence[RunModel]):
        """members: runs of the same regions and the same data.box_margin_mm."""
        self.members = members
        self.regions = members[0].regions
        self.margin_mm = members[0].config.data.box_margin_mm
        self.device = members[0].device
        self.batch_size = members[0].batch_size

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """Yield all axial slices, predicted in the boxes of the annotation (`case.kidneys`)."""
        yield from self._pasted(levels, case, case.kidneys)

    def within(self, kidney_mask: np.ndarray, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """Yield all axial slices, predicted in the boxes of the kidneys of a (D, H, W) bool mask."""
        yield from self._pasted(levels, case, find_kidneys(kidney_mask, case.spacing_mm))

    def _pasted(self, levels: np.ndarray, case: Case, kidneys: Sequence[Kidney]) -> Iterator[SliceProbabilities]:
        crops = self.predict_crops(levels, case, kidneys)
        for slices in batch_ranges(0, len(levels), self.batch_size):
            yield SliceProbabilities(slices, self.paste(crops, slices, levels.shape[1:]))

    def predict_crops(self, levels: np.ndarray, case: Case, kidneys: Sequence[Kidney]) -> list[CropProbabilities]:
        """Predict the box of each kidney with a margin; levels are those of the whole case, (D, H, W) uint8."""
        crops = []
        for kidney in kidneys:
            box = kidney.around(self.margin_mm, case.spacing_mm, levels.shape)
            geometry = case.kidney_geometry(kidney, self.margin_mm)
            mean = torch.zeros(len(self.regions), *(side.stop - side.start for side in box))
            for member in self.members:
                for slices, probability in member.predict_stack(levels, geometry, box):
                    inside = slice(slices.start - box[0].start, slices.stop - box[0].start)
                    mean[:, inside] += probability.transpose(0, 1).cpu() / len(self.members)
            crops.append(CropProbabilities(box, to_half(mean)))
        return crops

    def paste(self, crops: Sequence[CropProbabilities], slices: range, size: tuple[int, int]) -> Tensor:
        """Return (n, R, H, W) float32 probabilities of `slices`, with the mean of the crops where they overlap."""
        total = torch.zeros(len(slices), len(self.regions), *size, device=self.device)
        count = torch.zeros(len(slices), 1, *size, device=self.device)
        for (depth, rows, columns), probability in crops:
            first = max(depth.start, slices.start)
            last = min(depth.stop, slices.stop)
            if first >= last:
                continue
            target = (slice(first - slices.start, last - slices.start), slice(None), rows, columns)
            part = probability[:, first - depth.start : last - depth.start].transpose(0, 1)
            total[target] += part.to(self.device).float()
            count[target] += 1
        return total / count.clamp(min=1)


class KidneyMaskModel:
    """Runs of data.mask=kidney: they see whole slices of which nothing but the kidneys is left."""

    def __init__(self, model: RegionModel, batch_size: int, device: torch.device):
        """model: the runs, combined."""
        self.model = model
        self.regions = model.regions
        self.batch_size = batch_size
        self.device = device

    def within(self, kidney_mask: np.ndarray, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """Yield all axial slices; a region lies within the kidneys, (D, H, W) bool."""
        for slices, probability in self.model.probabilities(levels * kidney_mask, case):
            inside = torch.from_numpy(kidney_mask[slices.start : slices.stop]).to(probability.device)
            yield SliceProbabilities(slices, probability * inside[:, None])


class Cascade:
    """The kidneys of phase 1 and, in their boxes or masks, the masses of phase 2."""

    def __init__(self, first: RegionModel, second: KidneyCropModel | KidneyMaskModel):
        """first: predicts at least kidney_and_mass. Regions that both predict are taken from `second`."""
        self.first = first
        self.second = second
        self.regions = tuple(name for name in REGIONS if name in {*first.regions, *second.regions})

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """Yield all axial slices."""
        yield from self.second_phase(predict_volume(self.first, levels, case), levels, case)

    def second_phase(self, first_phase: Tensor, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """Yield all axial slices, given the (R, D, H, W) float16 probabilities of phase 1.

        Where phase 2 does not predict kidney_and_mass, its masses are added to that region: it works at a higher
        resolution, and a mass that phase 1 cut off belongs to the kidney.
        """
        kidney_mask = (first_phase[self.first.regions.index(WHOLE)] >= 0.5).numpy()
        firsts = split_volume(first_phase, self.second.batch_size, self.second.device)
        for (slices, first), (_, second) in zip(firsts, self.second.within(kidney_mask, levels, case), strict=True):
            by_name = dict(zip(self.first.regions, first.unbind(1), strict=True))
            by_name |= dict(zip(self.second.regions, second.unbind(1), strict=True))
            if WHOLE not in self.second.regions:
                by_name[WHOLE] = torch.maximum(by_name[WHOLE], second.amax(dim=1))
            yield SliceProbabilities(slices, torch.stack([by_name[name] for name in self.regions], dim=1))
