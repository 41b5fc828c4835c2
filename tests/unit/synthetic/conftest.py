"""Two annotated phantoms shared by the tests of deformation, transplant and variants."""

import pytest

from kits_dist.synthetic.lesion_transplant import transplantable_lesions
from kits_dist.synthetic.phantom import make_case
from kits_dist.synthetic.variants import AnnotatedCase

SIZE = (24, 96, 96)


def annotated(index: int) -> AnnotatedCase:
    case = make_case(1, index, SIZE)
    return AnnotatedCase(f"case_{index:05d}", case.label, case.spacing_mm)


@pytest.fixture(scope="session")
def own() -> AnnotatedCase:
    return annotated(0)


@pytest.fixture(scope="session")
def donor() -> AnnotatedCase:
    return next(
        case for case in map(annotated, range(1, 9)) if len(transplantable_lesions(case.label, case.spacing_mm)) >= 2
    )
