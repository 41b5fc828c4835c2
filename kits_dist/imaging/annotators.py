"""Combine KiTS21's single annotations into reference label maps: majority vote, the challenge's samples, leave-one-out.

CASE/segmentations/KIND_instance-N_annotation-M.nii.gz is the 0/1 mask that annotator M drew for instance N of KIND
(kidney, tumor or cyst). Instances are painted kidney 1, then cyst 3, then tumor 2, later ones over earlier ones.
Sampling follows kits21/annotation/sample_segmentations.py (neheller/kits21).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist.imaging.foreground import Foreground, check_grids, crop_to_common_box, read_foreground
from kits_dist.labels import CYST, KIDNEY, LABELS, TUMOR
from kits_dist.utils.errors import InputError, MissingInput

FOLDER = "segmentations"
GROUPS = 5  # of samples, as in the challenge's evaluation
_NAME = re.compile(r"(kidney|tumor|cyst)_instance-(\d+)_annotation-(\d+)(?i:\.nii(\.gz)?)")
_PAINT_ORDER = (KIDNEY, CYST, TUMOR)
_SAMPLE_ORDER = (KIDNEY, TUMOR, CYST)  # in which the challenge draws start offsets


class Instance(NamedTuple):
    """One kidney, tumor or cyst, as each annotator drew it."""

    label: int  # KIDNEY, TUMOR or CYST
    masks: dict[int, np.ndarray]  # annotation number -> (d, h, w) bool; all masks of a case share one box


class CaseAnnotations(NamedTuple):
    """What all annotators drew in one case."""

    case_id: str
    instances: list[Instance]  # kidneys, then tumors, then cysts, each by number
    box: Foreground  # the grid and the box of the masks; its array is not used

    def paint(self, masks: Iterable[tuple[int, np.ndarray]]) -> Foreground:
        """Paint (label, (d, h, w) bool) masks into one label map."""
        labels = np.zeros(self.box.array.shape, np.uint8)
        for label, mask in sorted(masks, key=lambda pair: _PAINT_ORDER.index(pair[0])):
            labels[mask] = label
        return Foreground(labels, self.box.corner, self.box.grid)


def read_annotations(case: Path) -> CaseAnnotations:
    """Read the annotations of CASE/segmentations. Raises MissingInput / InputError naming the folder or file."""
    files = _find_files(case / FOLDER)
    paths = [path for of_instance in files.values() for path in of_instance.values()]
    maps = [read_foreground(path) for path in paths]
    for path, labels in zip(paths, maps, strict=True):
        highest = int(labels.array.max(initial=0))
        if highest > 1:
            raise InputError(f"{path}: an annotator's mask must hold 0 and 1, found {highest}.")
        check_grids(labels, maps[0], path, paths[0])

    boxes, corner = crop_to_common_box(maps)
    masks = {path: box.astype(bool) for path, box in zip(paths, boxes, strict=True)}
    instances = [
        Instance(_SAMPLE_ORDER[kind], {number: masks[path] for number, path in sorted(of_instance.items())})
        for (kind, _), of_instance in sorted(files.items())
    ]
    return CaseAnnotations(case.name, instances, Foreground(boxes[0], corner, maps[0].grid))


def majority(annotations: CaseAnnotations) -> Foreground:
    """Label a voxel as part of an instance where more than half of its annotators did."""
    return annotations.paint(
        (instance.label, _majority_vote(list(instance.masks.values()))) for instance in annotations.instances
    )


def samples(annotations: CaseAnnotations) -> list[tuple[Foreground, int]]:
    """Sample the challenge's references: label maps, each with how often it was drawn. A case's score is their mean.

    There are five groups of n samples, n the smallest number of annotators of an instance. In each group every instance
    draws a start among its annotators, and sample i takes annotator (start + i) modulo their number. The seed is the
    number of the case. Raises InputError where the case id ends with no number.
    """
    case_number = annotations.case_id.rpartition("_")[2]
    if not case_number.isdigit():
        raise InputError(f"{annotations.case_id}: samples are seeded by the number of the case, as in case_00042.")
    generator = np.random.RandomState(int(case_number))
    annotators = [list(instance.masks) for instance in annotations.instances]

    drawn: Counter[tuple[int, ...]] = Counter()  # the annotator of each instance -> how often
    for _ in range(GROUPS):
        starts = [generator.randint(0, len(numbers)) for numbers in annotators]
        for i in range(min(map(len, annotators))):
            drawn[tuple(n[(start + i) % len(n)] for n, start in zip(annotators, starts, strict=True))] += 1

    references = []
    for chosen, count in drawn.items():
        pairs = zip(annotations.instances, chosen, strict=True)
        references.append((annotations.paint((instance.label, instance.masks[n]) for instance, n in pairs), count))
    return references


def leave_one_out_pairs(annotations: CaseAnnotations) -> list[tuple[Foreground, Foreground]]:
    """Return, for each annotator who drew every instance, their label map and the majority of the others.

    With two others a voxel needs both. Raises InputError where fewer than two annotators drew every instance.
    """
    numbers = sorted(set.intersection(*(set(instance.masks) for instance in annotations.instances)))
    if len(numbers) < 2:
        raise InputError(
            f"{annotations.case_id}: {len(numbers)} annotators drew every instance; two are needed to compare them. "
            "Leave the case out."
        )
    pairs = []
    for number in numbers:
        own = annotations.paint((instance.label, instance.masks[number]) for instance in annotations.instances)
        others = annotations.paint(
            (instance.label, _majority_vote([mask for n, mask in instance.masks.items() if n != number]))
            for instance in annotations.instances
        )
        pairs.append((own, others))
    return pairs


def _find_files(folder: Path) -> dict[tuple[int, int], dict[int, Path]]:
    """Return {(position of the kind in _SAMPLE_ORDER, instance): {annotation: file}}."""
    found: dict[tuple[int, int], dict[int, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*_instance-*")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        of_instance = found[_SAMPLE_ORDER.index(LABELS[match[1]]), int(match[2])]
        annotation = int(match[3])
        if annotation in of_instance:
            raise InputError(f"{path} exists twice, as {of_instance[annotation].name} too. Keep one of them.")
        of_instance[annotation] = path
    if not found:
        raise MissingInput(f"{folder}: no KIND_instance-N_annotation-M.nii.gz there. Name a KiTS21 folder with them.")
    return found


def _majority_vote(masks: list[np.ndarray]) -> np.ndarray:
    return np.stack(masks).sum(axis=0, dtype=np.uint8) > len(masks) / 2
