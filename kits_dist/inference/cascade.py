"""Two phases: networks that see the whole body find the kidneys, others look at one kidney at a time for its masses.

The boxes of phase 2 come from phase 1's output; those of the annotation are used by `KidneyCropModel.probabilities`
alone, which tells how good phase 2 would be if phase 1 were perfect.
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
    to_half,
)
from kits_dist.labels import REGIONS
from kits_dist.utils.components import Box3

WHOLE = "kidney_and_mass"


class CropProbabilities(NamedTuple):
    """What phase 2 says of one kidney."""

    box: Box3
    probability: Tensor  # (R, d, h, w) float16 on the CPU


class KidneyCropModel:
    """Runs of data.box=kidney: the mean of their probabilities inside each kidney's box, 0 outside."""

    def __init__(self, members: Sequence[RunModel]):
        """They agree on regions and data.box_margin_mm."""
        self.members, self.regions = members, members[0].regions
        self.margin_mm = members[0].config.data.box_margin_mm
        self.device, self.batch_size = members[0].device, members[0].batch_size

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """In the boxes of the annotation (`case.kidneys`)."""
        parts = self.parts(levels, case, case.kidneys)
        for slices in batch_ranges(0, len(levels), self.batch_size):
            yield SliceProbabilities(slices, self.laid(parts, slices, levels.shape[1:]))

    def parts(self, levels: np.ndarray, case: Case, kidneys: Sequence[Kidney]) -> list[CropProbabilities]:
        found = []
        for kidney in kidneys:
            box, view = (
                kidney.around(self.margin_mm, case.spacing_mm, levels.shape),
                case.kidney_geometry(kidney, self.margin_mm),
            )
            mean = torch.zeros(len(self.regions), *(side.stop - side.start for side in box))
            for member in self.members:
                for slices, probability in member.predict_stack(levels, view, box):
                    here = slice(slices.start - box[0].start, slices.stop - box[0].start)
                    mean[:, here] += probability.transpose(0, 1).cpu() / len(self.members)
            found.append(CropProbabilities(box, to_half(mean)))
        return found

    def laid(self, parts: Sequence[CropProbabilities], slices: range, size: tuple[int, int]) -> Tensor:
        """(n, R, H, W) float32 of some slices; where boxes overlap, the mean of what they say."""
        total = torch.zeros(len(slices), len(self.regions), *size, device=self.device)
        often = torch.zeros(len(slices), 1, *size, device=self.device)
        for (depth, rows, columns), probability in parts:
            first, last = max(depth.start, slices.start), min(depth.stop, slices.stop)
            if first >= last:
                continue
            here = (slice(first - slices.start, last - slices.start), slice(None), rows, columns)
            part = probability[:, first - depth.start : last - depth.start].transpose(0, 1)
            total[here] += part.to(self.device).float()
            often[here] += 1
        return total / often.clamp(min=1)


class Cascade:
    """Phase 1's kidneys, and in their boxes phase 2's masses."""

    def __init__(self, first: RegionModel, second: KidneyCropModel):
        """first: predicts kidney_and_mass at least. What both predict is taken from `second`."""
        self.first, self.second = first, second
        self.regions = tuple(name for name in REGIONS if name in {*first.regions, *second.regions})

    def probabilities(self, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        yield from self.continued(predict_volume(self.first, levels, case), levels, case)

    def continued(self, seen: Tensor, levels: np.ndarray, case: Case) -> Iterator[SliceProbabilities]:
        """seen: (R, D, H, W) float16, phase 1's probabilities. Kidney and mass takes in what phase 2 calls a mass: it
        sees more, and a mass that phase 1 cut off belongs to the kidney."""
        inside = (seen[self.first.regions.index(WHOLE)] >= 0.5).numpy()
        parts = self.second.parts(levels, case, find_kidneys(inside, case.spacing_mm))
        for slices in batch_ranges(0, len(levels), self.second.batch_size):
            of_first = seen[:, slices.start : slices.stop].transpose(0, 1).to(self.second.device).float()
            of_second = self.second.laid(parts, slices, levels.shape[1:])
            by_name = dict(zip(self.first.regions, of_first.unbind(1), strict=True))
            by_name |= dict(zip(self.second.regions, of_second.unbind(1), strict=True))
            if WHOLE not in self.second.regions:
                masses = of_second.amax(dim=1)
                by_name[WHOLE] = torch.maximum(by_name[WHOLE], masses)
            yield SliceProbabilities(slices, torch.stack([by_name[name] for name in self.regions], dim=1))
