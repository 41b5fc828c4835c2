"""A fixed test set and patient folds of the rest, stratified by what makes a case hard."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from kits_dist.utils.errors import InputError

TEST_SHARE = 0.2  # 60 of KiTS21's 300; MLPerf's U-Net3D holds out 42 of 210
NUM_FOLDS = 5


class Traits(NamedTuple):
    case_id: str
    tumor_ml: float
    slice_mm: float
    cyst: bool
    patient: str = ""  # cases that share it stay together; "": nobody shares it
    made_from: tuple[str, ...] = ()  # of a synthetic variant: the cases whose anatomy or lesions it holds


class Splits(NamedTuple):
    """Patients dealt to parts, and synthetic variants of them, which belong to no part.

    A variant is trained on only where every case it was made from is: its own patient and the donor of its lesions.
    So it never shows training what is validated or tested on, whatever the fold, and a score counts patients, never
    variants. Test set and folds are the same with variants and without.
    """

    seed: int
    test: list[str]
    folds: list[list[str]]
    variants: dict[str, list[str]] = {}  # variant -> the cases it was made from

    def select(self, fold: int | str) -> tuple[list[str], list[str]]:
        """(train, val) case ids. Raises InputError for a fold that is not there or leaves nothing to train on."""
        everyone = [case for one in self.folds for case in one]
        if fold == "all":
            return self._with_variants(everyone), everyone
        if not isinstance(fold, int) or not 0 <= fold < len(self.folds):
            raise InputError(f"data.fold={fold}: this store has folds 0..{len(self.folds) - 1}, and all.")
        train = [case for i, one in enumerate(self.folds) if i != fold for case in one]
        if not train:
            raise InputError(
                f"data.fold={fold} leaves no case to train on. Use data.fold=all, or prepare 3 patients or more."
            )
        return self._with_variants(train), list(self.folds[fold])

    def _with_variants(self, train: list[str]) -> list[str]:
        return train + [variant for variant, cases in self.variants.items() if set(cases) <= set(train)]


def make_splits(cases: list[Traits], seed: int) -> Splits:
    """Deal the patients, sorted by stratum, round-robin to the test set and the folds.

    Sorting by (cyst, slice thickness class, tumor volume) and dealing in order gives each part the same mix even with
    few cases, where drawing within strata would leave parts empty. A case is one patient in KiTS; a scan that is there
    twice is one patient too, dealt once by its first case's traits, so that no voxel is ever on both sides.
    With 1 or 2 patients there is nothing to hold out twice: one goes to the test set (none of 1), the rest is one fold.
    Variants are not dealt: `Splits.select` decides about them. Raises InputError where there is nothing else.
    """
    rng = np.random.default_rng(seed)
    variants = {case.case_id: list(case.made_from) for case in sorted(cases) if case.made_from}
    cases = [case for case in cases if not case.made_from]
    if not cases:
        raise InputError("every case is a synthetic variant of another. Add the cases that they were made from.")
    patients: dict[str, list[Traits]] = {}
    for case in sorted(cases):
        patients.setdefault(case.patient or case.case_id, []).append(case)
    firsts = [group[0] for group in patients.values()]
    same = {group[0].case_id: [case.case_id for case in group] for group in patients.values()}
    tie = {case.case_id: rng.random() for case in firsts}
    thick = float(np.median([case.slice_mm for case in firsts]))
    ordered = sorted(firsts, key=lambda c: (c.cyst, c.slice_mm > thick, c.tumor_ml, tie[c.case_id]))
    ids = [case.case_id for case in ordered]
    num_test = max(1, round(TEST_SHARE * len(ids))) if len(ids) > 1 else 0
    # one drawn from each of num_test equal stretches of the sorted list
    edges = [round(i * len(ids) / num_test) for i in range(num_test + 1)] if num_test else []
    picks = {int(rng.integers(low, high)) for low, high in pairwise(edges)}
    test = [ids[i] for i in picks]
    rest = [case for i, case in enumerate(ids) if i not in picks]
    num_folds = min(NUM_FOLDS, len(rest))
    folds = [rest[i::num_folds] for i in rng.permutation(num_folds)]
    parts = [sorted(case for first in part for case in same[first]) for part in (test, *folds)]
    return Splits(seed, parts[0], parts[1:], variants)
