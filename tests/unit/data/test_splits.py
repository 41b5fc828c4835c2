"""Test set and folds: one side per patient, fixed by the seed, and variants only where their patients train."""

import numpy as np
import pytest

from kits_dist.data.splits import Splits, Traits, make_splits
from kits_dist.utils.errors import InputError


def cases(n):
    rng = np.random.default_rng(3)
    return [Traits(f"case_{i:05d}", rng.lognormal(3.5, 1.3), rng.choice([0.5, 1, 3, 5]), bool(i % 2)) for i in range(n)]


@pytest.mark.parametrize("n", [*range(3, 60), 96, 300])
def test_every_case_is_in_exactly_one_part(n):
    splits = make_splits(cases(n), seed=0)
    parts = [splits.test, *splits.folds]
    assert sorted(c for part in parts for c in part) == sorted(c.case_id for c in cases(n))
    assert len(splits.test) == max(1, round(0.2 * n))
    for fold in range(len(splits.folds)):
        train, val = splits.select(fold)
        assert train and val and not set(train) & set(val) and not set(train + val) & set(splits.test)


def test_parts_are_alike_and_depend_on_the_seed_only():
    everyone = {c.case_id: c for c in cases(300)}
    splits = make_splits(cases(300), seed=0)
    assert splits == make_splits(cases(300)[::-1], seed=0) != make_splits(cases(300), seed=1)
    overall = np.median([c.tumor_ml for c in everyone.values()])
    for part in (splits.test, *splits.folds):
        assert 0.6 < np.median([everyone[c].tumor_ml for c in part]) / overall < 1.6
        assert 0.4 < np.mean([everyone[c].cyst for c in part]) < 0.6
        assert (
            0.4
            < np.mean([everyone[c].slice_mm >= 3 for c in part]) / np.mean([c.slice_mm >= 3 for c in cases(300)])
            < 1.6
        )


def test_a_seed_means_the_same_splits_in_every_version():
    # Written down, not computed: after an update a store made again must hold out the same patients.
    splits = make_splits(cases(20), seed=7)
    assert [[int(case[-2:]) for case in part] for part in (splits.test, *splits.folds)] == [
        [3, 8, 13, 18],
        [4, 7, 16, 17],
        [2, 11, 12],
        [0, 1, 14],
        [9, 10, 15],
        [5, 6, 19],
    ]


def test_the_poster_s_splits_go_by_case_number():
    numbers = [0, 7, 239, 240, 252, 269, 270, 299]
    splits = make_splits([Traits(f"case_{n:05d}", 1.0, 1.0, False) for n in numbers], 0, "poster")
    assert [int(case[-3:]) for case in splits.test] == [270, 299]
    train, val = splits.select(0)
    assert ([int(case[-3:]) for case in train], [int(case[-3:]) for case in val]) == ([0, 7, 239], [240, 252, 269])
    whole = make_splits(cases(300), 0, "poster")
    assert [len(part) for part in (whole.test, *whole.folds)] == [30, 30, 240]


@pytest.mark.parametrize("names", ["case_{:05d}", "other_{:02d}"])
def test_on_other_data_the_poster_s_splits_have_its_shares_in_order(names):
    ids = [names.format(n) for n in range(20)]
    splits = make_splits([Traits(one, 1.0, 1.0, False) for one in ids], 5, "poster")
    assert (splits.folds[1], splits.folds[0], splits.test) == (ids[:16], ids[16:18], ids[18:])
    with pytest.raises(InputError, match="splits=poster needs 3 patients or more.*found 2"):
        make_splits([Traits(one, 1.0, 1.0, False) for one in ids[:2]], 0, "poster")


def test_copies_of_a_scan_stay_together_in_the_poster_s_splits():
    patients = ["a", "b", "b", "c", "d", "a"]
    splits = make_splits([Traits(f"x{n}", 1.0, 1.0, False, patient) for n, patient in enumerate(patients)], 0, "poster")
    assert (splits.folds[1], splits.folds[0], splits.test) == (["x0", "x1", "x2", "x5"], ["x3"], ["x4"])


@pytest.mark.parametrize("largest", [2, 3, 15, 40])
def test_scans_that_are_there_twice_are_never_on_both_sides(largest):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        patients = [0] * largest + list(rng.integers(1, 30, 60 - largest))  # one large group, some pairs, some alone
        patient = {case.case_id: f"scan {p}" for case, p in zip(cases(60), rng.permutation(patients), strict=True)}
        splits = make_splits([case._replace(patient=patient[case.case_id]) for case in cases(60)], seed)
        parts = [{patient[case] for case in part} for part in (splits.test, *splits.folds)]
        assert sum(map(len, parts)) == len(set(patient.values()))  # no patient in two parts
        assert sorted(c for part in (splits.test, *splits.folds) for c in part) == sorted(patient)
        for fold in range(len(splits.folds)):
            train, val = ({patient[case] for case in side} for side in splits.select(fold))
            assert train and val and not train & val and not (train | val) & {patient[case] for case in splits.test}


def test_patients_that_are_all_different_change_nothing():
    for seed in range(20):
        named = [case._replace(patient=f"scan of {case.case_id}") for case in cases(50)]
        assert make_splits(named, seed) == make_splits(cases(50), seed)


def test_folds_that_cannot_be_used_are_refused():
    splits = make_splits(cases(2), seed=0)
    assert len(splits.test) == 1 and splits.select("all") == (splits.folds[0], splits.folds[0])
    with pytest.raises(InputError, match="leaves no case to train on"):
        splits.select(0)
    with pytest.raises(InputError, match=r"folds 0..0, and all"):
        splits.select(3)
    assert make_splits(cases(1), seed=0) == Splits(0, [], [["case_00000"]])
    one_patient = make_splits([case._replace(patient="same") for case in cases(3)], seed=0)
    assert one_patient == Splits(0, [], [["case_00000", "case_00001", "case_00002"]])


def test_no_variant_is_trained_on_while_a_patient_of_it_is_held_out():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        number = int(rng.integers(3, 40))
        ids = [f"case_{i:05d}" for i in range(number)]
        scan = {case: f"scan {rng.integers(number)}" for case in ids}  # some are there twice
        originals = [Traits(c, rng.lognormal(3, 1), 3.0, bool(rng.integers(2)), scan[c]) for c in ids]
        made_from = {
            f"{case}-variant-{k}": (case, *rng.choice(ids, rng.integers(2), replace=False))
            for case in ids
            for k in (1, 2)
        }
        variants = [Traits(v, 1.0, 9.0, True, f"pixels of {v}", tuple(map(str, f))) for v, f in made_from.items()]
        mixed = [(originals + variants)[i] for i in rng.permutation(3 * number)]
        splits, plain = make_splits(mixed, seed), make_splits(originals, seed)
        assert (splits.test, splits.folds) == (plain.test, plain.folds)  # the same patients are held out
        held_out_somewhere = set()
        folds = range(len(splits.folds)) if len(splits.folds) > 1 else []
        for fold in (*folds, "all"):
            train, val = splits.select(fold)
            assert (set(train) & set(ids), val) == (set(plain.select(fold)[0]), plain.select(fold)[1])
            known = {scan[case] for case in train if case in scan}
            used = set(train) - set(ids)
            for variant, parents in made_from.items():
                assert (variant in used) == ({scan[p] for p in parents} <= known)
            away = {scan[case] for case in (splits.test if fold == "all" else [*splits.test, *val])}
            assert not {scan[p] for variant in used for p in made_from[variant]} & away
            held_out_somewhere |= set(made_from) - used
        assert held_out_somewhere or not splits.test


def test_variants_alone_are_no_data_set():
    with pytest.raises(InputError, match="every case is a synthetic variant"):
        make_splits([Traits("case_1-variant-1", 1.0, 1.0, False, "a", ("case_1",))], 0)
