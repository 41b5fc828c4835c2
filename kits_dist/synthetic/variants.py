"""Variants of an annotated case: its anatomy deformed, lesions of another patient added, a new CT painted around both.

Pure functions of (annotation, donor, seed, index, variant): no disk, no clock, no order. What a variant was made from
travels with it: it may be trained on only where all of its patients are, see `splits`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kits_dist.labels import LABELS
from kits_dist.synthetic.deformation import deform, draw_deformation
from kits_dist.synthetic.lesion_transplant import transplant, transplantable_lesions
from kits_dist.synthetic.phantom import PhantomCase, paint_case, room_for_lesions, streams, tissue_hu
from kits_dist.synthetic.shapes import Vec3

LESIONS = (0, 1, 2)  # from the donor, with these shares:
SHARES = (0.25, 0.5, 0.25)  # some without, because a variant of one patient is trained on wherever the patient is


class AnnotatedCase(NamedTuple):
    case_id: str
    label: np.ndarray  # (D, H, W) uint8, axes I P L
    spacing_mm: Vec3


class SyntheticCase(NamedTuple):
    case: PhantomCase
    record: dict  # for variant.json: made_from (case ids, its own first), deformation, lesions, hu


def draw_donor(case_id: str, donors: Sequence[str], seed: int, index: int, variant: int) -> tuple[str | None, int]:
    """(another case, how many of its lesions are wanted); (None, 0) for a variant without.

    One donor at most, however many lesions: each more is one more patient who must be in the same training set.
    donors   ids of cases with lesions, in any order; at least one other than `case_id`
    """
    rng = streams(seed, index, variant)["donor"]
    wanted = int(rng.choice(LESIONS, p=SHARES))
    others = sorted(set(donors) - {case_id})
    donor = others[int(rng.integers(len(others)))]
    return (donor, wanted) if wanted else (None, 0)


def make_variant(
    own: AnnotatedCase, donor: AnnotatedCase | None, wanted: int, seed: int, index: int, variant: int
) -> SyntheticCase:
    """SyntheticCase `variant` (1 and up) of an annotation that holds kidney, on the grid of that annotation.

    donor, wanted   whose lesions, and how many at most: where none of its lesions finds a place on these kidneys the
                    variant is the patient's alone, and says so
    """
    drawn = streams(seed, index, variant)
    deformation = draw_deformation(drawn["deformation"])
    anatomy = deform(own.label, own.spacing_mm, deformation)
    label, lesions = anatomy, []
    if donor:
        rng = drawn["transplant"]
        room = room_for_lesions(anatomy, own.spacing_mm, seed, index, variant)
        theirs = transplantable_lesions(donor.label, donor.spacing_mm)
        for lesion in (theirs[i] for i in rng.permutation(len(theirs))):
            if len(lesions) < wanted and (found := transplant(label, own.spacing_mm, lesion, room, rng)):
                label, placed = found
                lesions.append(_about(donor.case_id, placed, own.spacing_mm))
    case = paint_case(label, own.spacing_mm, seed, index, variant, around=anatomy)
    record = {
        "made_from": [own.case_id, *([donor.case_id] if lesions else [])],
        "seed": seed,
        "variant": variant,
        "deformation": {
            "rotate_deg": [round(v, 2) for v in deformation.rotate_deg],
            "scale": [round(v, 3) for v in deformation.scale],
            "elastic_mm": round(deformation.elastic_mm, 2),
        },
        "lesions": lesions,
        "hu": tissue_hu(seed, index, variant),
    }
    return SyntheticCase(case, record)


def _about(donor: str, placed, spacing_mm: Vec3) -> dict:
    return {
        "donor": donor,
        "label": next(name for name, value in LABELS.items() if value == placed.value),
        "ml": round(placed.voxels * float(np.prod(spacing_mm)) / 1000, 2),
        "centre_voxel": list(placed.centre),
        "turn_deg": [round(v, 1) for v in placed.turn_deg],
    }
