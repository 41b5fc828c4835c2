import numpy as np
import pytest

from kits_dist.data.sampler import Group, TrainOrder, train_positions, val_positions


def natural(n, seed):
    return TrainOrder([Group("all", np.arange(n), 1.0)], seed)


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (2, 5), (3, 6), (3, 1)])
def test_each_epoch_holds_each_sample_once_over_all_ranks(world, batch):
    n, epochs = 31, 3  # a prime: no batch divides it
    order = natural(n, 5)
    seen = []
    for step in range(-(-n * epochs // (world * batch))):
        parts = [order.at(train_positions(step, batch, rank, world)) for rank in range(world)]
        assert all(len(samples) == batch for _, samples in parts)  # equal, full batches on every rank
        seen += [pair for part in parts for pair in zip(*(a.tolist() for a in part), strict=True)]
    for epoch in range(epochs):
        assert sorted(s for e, s in seen if e == epoch) == list(range(n))


def test_the_stream_does_not_depend_on_how_it_is_dealt():
    order = natural(31, 5)

    def dealt(world, batch, steps, start=0):
        """Global order: rank r's k-th sample of a step is the (k * world + r)-th of all."""
        stream = []
        for step in range(steps):
            parts = [order.at(train_positions(step, batch, rank, world, start))[1] for rank in range(world)]
            stream += np.stack(parts, axis=1).ravel().tolist()
        return stream

    assert dealt(1, 60, 1) == dealt(2, 5, 6) == dealt(3, 4, 5)
    assert dealt(1, 60, 1)[24:] == dealt(3, 4, 3, start=24)  # resumed after 24 samples on another number of ranks


def test_epochs_and_seeds_differ():
    orders = [natural(50, seed).at(np.arange(100))[1].reshape(2, 50).tolist() for seed in (0, 1)]
    assert orders[0][0] != orders[0][1] and orders[0][0] != orders[1][0] and orders[0][0] != sorted(orders[0][0])


@pytest.mark.parametrize(("n", "world", "batch"), [(17, 1, 4), (17, 3, 4), (2, 3, 4), (16, 2, 8)])
def test_validation_sees_each_slice_once(n, world, batch):
    batches = [val_positions(n, batch, rank, world) for rank in range(world)]
    assert sorted(p for rank in batches for one in rank for p in one.tolist()) == list(range(n))
    assert max(len(one) for rank in batches for one in rank) <= batch


def test_a_group_gets_its_exact_share_and_its_members_take_turns():
    rare, common = np.arange(7), np.arange(7, 60)
    order = TrainOrder([Group("rare", rare, 0.4), Group("common", common, 0.6)], seed=1)
    rounds, samples = order.at(np.arange(60 * 5))
    for epoch in range(5):
        assert np.isin(samples[epoch * 60 : (epoch + 1) * 60], rare).sum() == 24
    # 120 draws of 7 members: each 17 or 18 times; 180 of 53: each 3 or 4 times
    assert set(np.bincount(samples)[:7]) == {17, 18} and set(np.bincount(samples)[7:]) == {3, 4}
    pairs = list(zip(rounds.tolist(), samples.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)  # so augmentation, keyed by them, never repeats
    first = np.isin(samples[:60], rare)
    assert 5 < first[:30].sum() < 20  # mixed, not one after the other


def test_ten_million_slices_are_drawn_and_no_epoch_is_held():
    order = natural(10_000_000, 0)
    drawn = order.at(np.arange(9_999_000, 10_001_000))[1]  # across an epoch's end
    assert len(np.unique(drawn)) > 1900 and drawn.min() >= 0 and drawn.max() < 10_000_000
    held = [value.nbytes for value in vars(order).values() if isinstance(value, np.ndarray)]
    assert sum(held) < 81e6  # the members themselves, 8 bytes each


def test_many_groups_share_an_epoch_evenly():
    sizes = [3, 40, 1, 9, 18, 6, 24]  # 101 samples in 7 groups: 14 or 15 positions each
    edges = np.cumsum([0, *sizes])
    groups = [Group(str(k), np.arange(*edges[k : k + 2]), 1 / 7) for k in range(7)]
    order = TrainOrder(groups, seed=2)
    assert set(order.counts) == {14, 15} and sum(order.counts) == 101
    samples = order.at(np.arange(101 * 2))[1]
    for epoch in range(2):
        drawn = samples[epoch * 101 : (epoch + 1) * 101]
        assert np.histogram(drawn, edges)[0].tolist() == order.counts
