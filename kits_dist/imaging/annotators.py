"""KiTS21's single annotations -> reference label maps: the majority, the challenge's samples, one rater and the others.

CASE/segmentations/KIND_instance-N_annotation-M.nii.gz: what annotator M drew as instance N of KIND (kidney, tumor or
cyst), 0 and 1. Instances are painted kidney 1, then cyst 3, then tumor 2, later over earlier.
Source of the sampling: kits21/annotation/sample_segmentations.py (neheller/kits21).
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.imaging.foreground import Foreground, check_grids, crop_to_common_box, read_foreground
from kits_dist.labels import CYST, KIDNEY, LABELS, TUMOR
from kits_dist.utils.errors import InputError, MissingInput

FOLDER = "segmentations"
GROUPS = 5  # of samples, as in the challenge's evaluation
_NAME = re.compile(r"(kidney|tumor|cyst)_instance-(\d+)_annotation-(\d+)\.nii(\.gz)?")
_PAINTED = (KIDNEY, CYST, TUMOR)
_DRAWN = (KIDNEY, TUMOR, CYST)  # the order in which the challenge draws start offsets


class Instance(NamedTuple):
    label: int  # KIDNEY, TUMOR or CYST
    drawn: dict[int, np.ndarray]  # annotation number -> (d, h, w) bool, all of the case in one box


class CaseAnnotations(NamedTuple):
    """What all annotators drew in one case."""

    case_id: str
    instances: list[Instance]  # kidneys, then tumors, then cysts, each by number
    box: Foreground  # where the instances' arrays lie; its own array is not used

    def painted(self, masks: Iterable[tuple[int, np.ndarray]]) -> Foreground:
        """(label, (d, h, w) bool) of instances -> the label map."""
        labels = np.zeros(self.box.array.shape, np.uint8)
        for label, mask in sorted(masks, key=lambda pair: _PAINTED.index(pair[0])):
            labels[mask] = label
        return Foreground(labels, self.box.corner, self.box.grid)


def read_annotations(case: Path) -> CaseAnnotations:
    """The annotations of CASE/segmentations. Raises MissingInput / InputError naming the folder or file."""
    folder = case / FOLDER
    found: dict[tuple[int, int], dict[int, Path]] = {}
    for path in sorted(folder.glob("*_instance-*")) if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            kind, instance, annotation = match[1], int(match[2]), int(match[3])
            of_instance = found.setdefault((_DRAWN.index(LABELS[kind]), instance), {})
            if annotation in of_instance:
                raise InputError(f"{path} is there twice, as {of_instance[annotation].name} too. Keep one of them.")
            of_instance[annotation] = path
    if not found:
        raise MissingInput(f"{folder}: no KIND_instance-N_annotation-M.nii.gz there. Name a KiTS21 folder with them.")
    paths = [path for of_instance in found.values() for path in of_instance.values()]
    maps = [read_foreground(path) for path in paths]
    for path, one in zip(paths, maps, strict=True):
        if one.array.max(initial=0) > 1:
            raise InputError(f"{path}: an annotator's mask holds 0 and 1, this one {int(one.array.max())}.")
        check_grids(one, maps[0], path, paths[0])
    boxes, corner = crop_to_common_box(maps)
    masks = {path: box.astype(bool) for path, box in zip(paths, boxes, strict=True)}
    instances = [
        Instance(_DRAWN[kind], {number: masks[path] for number, path in sorted(found[kind, instance].items())})
        for kind, instance in sorted(found)
    ]
    return CaseAnnotations(case.name, instances, Foreground(boxes[0], corner, maps[0].grid))


def majority(raters: CaseAnnotations) -> Foreground:
    """A voxel is in an instance when more than half of those who drew it say so."""
    return raters.painted((one.label, _more_than_half(list(one.drawn.values()))) for one in raters.instances)


def samples(raters: CaseAnnotations) -> list[tuple[Foreground, int]]:
    """The challenge's reference: label maps, each with how often it was drawn; a case's score is the mean over them.

    Five groups of n samples, n the smallest number of annotators of an instance. In each group every instance draws a
    start among its annotators; sample i takes annotator (start + i) modulo their number. The seed is the case's number.
    Raises InputError where the case's name ends with none.
    """
    number = raters.case_id.rpartition("_")[2]
    if not number.isdigit():
        raise InputError(f"{raters.case_id}: the samples are seeded by the number of the case, as in case_00042.")
    generator = np.random.RandomState(int(number))
    annotators = [list(one.drawn) for one in raters.instances]
    times: dict[tuple[int, ...], int] = {}  # the annotator of each instance -> how often
    for _ in range(GROUPS):
        starts = [generator.randint(0, len(numbers)) for numbers in annotators]
        for i in range(min(map(len, annotators))):
            taken = tuple(n[(start + i) % len(n)] for n, start in zip(annotators, starts, strict=True))
            times[taken] = times.get(taken, 0) + 1
    return [
        (raters.painted((one.label, one.drawn[n]) for one, n in zip(raters.instances, taken, strict=True)), often)
        for taken, often in times.items()
    ]


def leave_one_out_pairs(raters: CaseAnnotations) -> list[tuple[Foreground, Foreground]]:
    """For each annotator who drew every instance: (what they drew, the majority of the others).

    With two others a voxel needs both. Raises InputError where fewer than two drew every instance.
    """
    numbers = sorted(set.intersection(*(set(one.drawn) for one in raters.instances)))
    if len(numbers) < 2:
        raise InputError(
            f"{raters.case_id}: {len(numbers)} annotators drew every instance; two are needed to compare them. Leave "
            "the case out."
        )
    pairs = []
    for rater in numbers:
        own = raters.painted((one.label, one.drawn[rater]) for one in raters.instances)
        others = raters.painted(
            (one.label, _more_than_half([mask for n, mask in one.drawn.items() if n != rater]))
            for one in raters.instances
        )
        pairs.append((own, others))
    return pairs


def _more_than_half(masks: list[np.ndarray]) -> np.ndarray:
    return np.sum(masks, axis=0, dtype=np.uint8) > len(masks) / 2
