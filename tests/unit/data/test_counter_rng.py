import hashlib
import tracemalloc

import numpy as np
import pytest

from kits_dist.data.counter_rng import hashed, mix, permuted
from kits_dist.data.sampler import Group, TrainOrder


def permutation(size: int, *keys: int) -> np.ndarray:
    return permuted(np.arange(size), np.full(size, size), np.repeat(hashed(*keys), size))


@pytest.mark.parametrize("size", [*range(1, 40), 100, 1000, 65_164])
def test_it_is_a_permutation(size):
    assert np.array_equal(np.sort(permutation(size, 3, size)), np.arange(size))


def test_splitmix64_gives_the_numbers_of_its_authors():
    """The first outputs for seed 0 (java.util.SplittableRandom): finalizer of multiples of the golden ratio."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = golden * np.arange(1, 4, dtype=np.uint64)
    assert [hex(n) for n in mix(states).tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_keys_are_told_apart_whatever_their_place():
    assert len({hashed(a, b, c)[0] for a in range(4) for b in range(4) for c in range(4)}) == 64
    assert np.array_equal(hashed(5, np.arange(3), 7), [hashed(5, k, 7)[0] for k in range(3)])


@pytest.mark.parametrize("size", [7, 24, 101])
def test_every_place_is_as_likely_as_any_other(size):
    """Chi-square of where elements go over 4,000 epochs, and of what comes after what; 5 standard deviations."""
    index, keys = np.tile(np.arange(size), 4000), np.repeat(hashed(11, np.arange(4000)), size)
    drawn = permuted(index, np.full(len(index), size), keys).reshape(4000, size)
    places = np.stack([np.bincount(drawn[:, i], minlength=size) for i in range(size)])
    pairs = np.bincount((drawn[:, :-1] * size + drawn[:, 1:]).ravel(), minlength=size * size).reshape(size, size)
    pairs = pairs[~np.eye(size, dtype=bool)]
    for counts, free in ((places, (size - 1) ** 2), (pairs, pairs.size - 1)):
        chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert abs(chi2 - free) < 5 * np.sqrt(2 * free), (chi2, free)


def test_permutations_of_several_sizes_in_one_call_are_those_of_one_size_each():
    size = np.array([5, 24, 1000, 24])
    key = np.repeat(hashed(9), 4)
    assert permuted(np.array([3, 20, 777, 4]), size, key).tolist() == [
        permutation(5, 9)[3],
        permutation(24, 9)[20],
        permutation(1000, 9)[777],
        permutation(24, 9)[4],
    ]


def dealt(kind: str, n: int) -> list[Group]:
    """One group, a rare one and the others, or one each 200 samples."""
    everyone = np.arange(n)
    if kind == "natural":
        return [Group("all", everyone, 1.0)]
    if kind == "tumor":
        holds = everyone % 10 == 0
        return [Group("tumor", everyone[holds], 0.33), Group("others", everyone[~holds], 0.67)]
    return [Group(str(k), part, 200 / n) for k, part in enumerate(np.split(everyone, n // 200))]


def test_the_order_of_recorded_runs_is_kept():
    """Computed on 2026-11-24; another order would make every resumed run see some slices twice and others never."""
    assert permutation(10, 3, 1).tolist() == [1, 4, 7, 2, 6, 5, 8, 3, 9, 0]
    drawn = permuted(np.array([0, 1, 9_999_999]), np.full(3, 10_000_000), np.repeat(hashed(0), 3))
    assert drawn.tolist() == [6659217, 5487400, 3544220]
    found = hashlib.sha256()
    for kind in ("natural", "tumor", "case"):
        for part in TrainOrder(dealt(kind, 65_000), 7).at(np.arange(60_000, 85_000, 3)):
            found.update(part.astype("<i8").tobytes())
    assert found.hexdigest()[:16] == "2587304fee3a745f"


@pytest.mark.parametrize("kind", ["natural", "tumor", "case"])
def test_a_rank_holds_the_numbers_of_its_samples_once_and_no_permutation(kind):
    n = 1_000_000
    tracemalloc.start()
    order = TrainOrder(dealt(kind, n), 0)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    drawn = [order.at(np.arange(first, first + 128))[1] for first in (0, n - 64)]
    taken = tracemalloc.get_traced_memory()[1] - held
    tracemalloc.stop()
    assert held < 4 * n + 600 * len(order.groups) + 10_000  # 4 bytes each; a group's name, view and share
    assert taken < 1e5 and len(set(np.concatenate(drawn).tolist())) > 200  # a batch costs a batch
