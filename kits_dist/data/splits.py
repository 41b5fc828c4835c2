"""A fixed test set and patient folds of the rest, stratified by what makes a case difficult to segment."""

import itertools
import re
from typing import Literal, NamedTuple

import numpy as np

from kits_dist.utils.errors import InputError

SplitRule = Literal["stratified", "poster"]
TEST_SHARE = 0.2  # 60 of KiTS21's 300; MLPerf's U-Net3D holds out 42 of 210
NUM_FOLDS = 5
_POSTER = range(270, 300), range(240, 270), range(240)  # case numbers: test, validation, training


class Traits(NamedTuple):
    """What dealing a case to the test set or a fold depends on."""

    case_id: str
    tumor_ml: float
    slice_mm: float
    cyst: bool
    patient: str = ""  # cases of the same patient stay together; "": a patient of its own
    made_from: tuple[str, ...] = ()  # of a synthetic variant: the cases whose anatomy or lesions it holds


class Splits(NamedTuple):
    """The test set and the folds, and synthetic variants of their cases, which belong to neither.

    A variant is trained on only where every case it was made from is: the patient and the donor of the lesions. So
    anatomy of validation and test cases never enters training, and scores count patients, not variants. Test set and
    folds are the same with and without variants.
    """

    seed: int
    test: list[str]
    folds: list[list[str]]
    variants: dict[str, list[str]] = {}  # noqa: RUF012  never changed; variant -> the cases it was made from

    def select(self, fold: int | str) -> tuple[list[str], list[str]]:
        """Return (train, val) case ids.

        Raises InputError for a fold that does not exist or leaves no case to train on.
        """
        if fold == "all":
            cases = list(itertools.chain(*self.folds))
            return self._with_variants(cases), cases
        if not isinstance(fold, int) or not 0 <= fold < len(self.folds):
            raise InputError(f"data.fold={fold}: this store has folds 0..{len(self.folds) - 1}, and all.")
        train = [case for i, cases in enumerate(self.folds) if i != fold for case in cases]
        if not train:
            raise InputError(
                f"data.fold={fold} leaves no case to train on. Use data.fold=all, or prepare 3 patients or more."
            )
        return self._with_variants(train), list(self.folds[fold])

    def _with_variants(self, train: list[str]) -> list[str]:
        return train + [variant for variant, cases in self.variants.items() if set(cases) <= set(train)]


def make_splits(cases: list[Traits], seed: int, rule: SplitRule = "stratified") -> Splits:
    """Deal the patients to the test set and the folds.

    stratified   sorted by stratum, round-robin: see below
    poster       in the order of their ids, without a seed: see `_as_the_poster`

    Sorting by (cyst, slice thickness class, tumor volume) and dealing in order gives each part the same mix even with
    few cases, where drawing within strata would leave parts empty. A case is one patient in KiTS. Copies of a scan are
    one patient too, dealt by the traits of the first copy, so that no voxel is in both training and test.
    Of 2 patients one goes to the test set, and a single patient is a fold without a test set.
    Variants are not dealt: see `Splits.select`.

    Raises InputError where there are only variants.
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
    copies = {group[0].case_id: [case.case_id for case in group] for group in patients.values()}

    if rule == "poster":
        parts = _as_the_poster([case.case_id for case in firsts])
        parts = [sorted(case for first in part for case in copies[first]) for part in parts]
        return Splits(seed, parts[0], parts[1:], variants)

    tie = {case.case_id: rng.random() for case in firsts}
    thick = float(np.median([case.slice_mm for case in firsts]))
    ordered = sorted(firsts, key=lambda c: (c.cyst, c.slice_mm > thick, c.tumor_ml, tie[c.case_id]))
    ids = [case.case_id for case in ordered]
    num_test = max(1, round(TEST_SHARE * len(ids))) if len(ids) > 1 else 0

    # One test case is drawn from each of num_test equal stretches of the sorted list.
    edges = [round(i * len(ids) / num_test) for i in range(num_test + 1)] if num_test else []
    picks = {int(rng.integers(low, high)) for low, high in itertools.pairwise(edges)}
    test = [ids[i] for i in picks]
    rest = [case for i, case in enumerate(ids) if i not in picks]

    num_folds = min(NUM_FOLDS, len(rest))
    folds = [rest[i::num_folds] for i in rng.permutation(num_folds)]
    parts = [sorted(case for first in part for case in copies[first]) for part in (test, *folds)]
    return Splits(seed, parts[0], parts[1:], variants)


def _as_the_poster(ids: list[str]) -> list[list[str]]:
    """Return test, validation and training cases as the poster's code divides KiTS21: fold 0 validates on its cases.

    By case number: 0..239 train, 240..269 validate, 270..299 test. Where that leaves a part empty or a case out, as
    with other data, the first eight tenths of the cases train, the next tenth validates, the last one tests.

    Raises InputError for fewer than three cases.
    """
    if len(ids) < 3:
        raise InputError(
            f"splits=poster needs 3 patients or more, for training, validation and test; found {len(ids)}."
        )
    if follows_case_numbers(ids):
        return [[case_id for case_id in ids if int(case_id[5:]) in part] for part in _POSTER]
    tenth = max(1, len(ids) // 10)
    return [ids[-tenth:], ids[-2 * tenth : -tenth], ids[: -2 * tenth]]


def follows_case_numbers(ids: list[str]) -> bool:
    """Return whether all are ids of KiTS21, case_00000 to case_00299, with some in each part of the poster's splits."""
    if not all(re.fullmatch(r"case_00[012]\d\d", case_id) for case_id in ids):
        return False
    return all(any(int(case_id[5:]) in part for case_id in ids) for part in _POSTER)
