"""Make variants of an annotated case: deform it, add lesions of another patient, paint a new CT around both.

Variants are pure functions of (annotation, donor, seed, index, variant). Each carries a record of its parents, because
it may be used for training only where all of its patients are, see `splits`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kits_dist.labels import LABELS
from kits_dist.synthetic.deformation import deform, draw_deformation
from kits_dist.synthetic.lesion_transplant import Placement, grow, transplant, transplantable_lesions
from kits_dist.synthetic.phantom import PhantomCase, paint_case, room_for_lesions, streams, tissue_hu
from kits_dist.synthetic.shapes import Vec3

LESION_COUNTS = (0, 1, 2)  # from the donor, with these probabilities:
PROBABILITIES = (0.25, 0.5, 0.25)  # some without, because a variant of one patient trains wherever the patient does


class AnnotatedCase(NamedTuple):
    """A real or synthetic annotation."""

    case_id: str
    label: np.ndarray  # (D, H, W) uint8, axes I P L
    spacing_mm: Vec3


class SyntheticCase(NamedTuple):
    """A variant and its record."""

    case: PhantomCase
    record: dict  # for variant.json: made_from (case ids, the deformed one first), deformation, lesions, hu


def draw_donor(case_id: str, donors: Sequence[str], seed: int, index: int, variant: int) -> tuple[str | None, int]:
    """Draw another case and how many of its lesions to add; (None, 0) for a variant without.

    There is at most one donor, since each one is another patient who must be in the same training set.

    donors   ids of cases with lesions, in any order; at least one other than `case_id`
    """
    rng = streams(seed, index, variant)["donor"]
    wanted = int(rng.choice(LESION_COUNTS, p=PROBABILITIES))
    others = sorted(set(donors) - {case_id})
    donor = others[int(rng.integers(len(others)))]
    return (donor, wanted) if wanted else (None, 0)


def make_variant(
    own: AnnotatedCase, donor: AnnotatedCase | None, wanted: int, seed: int, index: int, variant: int
) -> SyntheticCase:
    """Make variant `variant` (1 and up) of an annotation that holds kidney, on the grid of that annotation.

    donor, wanted   whose lesions, and how many at most. Where none of them finds a place on these kidneys, the record
                    names no donor
    """
    drawn = streams(seed, index, variant)
    deformation = draw_deformation(drawn["deformation"])
    anatomy = deform(own.label, own.spacing_mm, deformation)
    label = anatomy
    lesions: list[dict] = []
    if donor is not None:
        rng = drawn["transplant"]
        room = room_for_lesions(anatomy, own.spacing_mm, seed, index, variant)
        theirs = transplantable_lesions(donor.label, donor.spacing_mm)
        for i in rng.permutation(len(theirs)):
            if len(lesions) == wanted:
                break
            found = transplant(label, own.spacing_mm, grow(theirs[i], rng), room, rng)
            if found is not None:
                label, placement = found
                lesions.append(_describe(donor.case_id, placement, own.spacing_mm))
    parents = [own.case_id]
    if donor is not None and lesions:
        parents.append(donor.case_id)
    case = paint_case(label, own.spacing_mm, seed, index, variant, around=anatomy)
    record = {
        "made_from": parents,
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


def _describe(donor: str, placement: Placement, spacing_mm: Vec3) -> dict:
    return {
        "donor": donor,
        "label": next(name for name, value in LABELS.items() if value == placement.value),
        "ml": round(placement.voxels * float(np.prod(spacing_mm)) / 1000, 2),
        "centre_voxel": list(placement.center),
        "turn_deg": [round(v, 1) for v in placement.turn_deg],
    }
