"""Spreading: every group lies evenly over the order, and nothing else is certain about it."""

import numpy as np
import pytest

from epistream.loader.order.random_integers import Purpose, stream
from epistream.loader.order.spread import spread


def raw(count, seed=0):
    return stream(Purpose.SEGMENT, seed, 0).random_raw(count)


@pytest.mark.parametrize("sizes", [[1], [7], [1, 1, 1, 1], [5, 0, 20, 3], [100, 1], [13] * 11])
def test_spread_puts_the_rth_of_a_group_into_the_rth_of_its_equal_stretches(sizes):
    group = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes)).tolist()
    for seed in range(10):
        order = spread(np.array(group), raw(len(group), seed)).tolist()
        assert sorted(order) == list(range(len(group)))
        met = [0] * len(sizes)
        latest_stretch = 0.0
        for thing in order:
            rank, size = met[group[thing]], sizes[group[thing]]
            # Nothing comes after a thing whose stretch begins where its own has ended.
            assert (rank + 1) / size > latest_stretch - 1e-9
            latest_stretch = max(latest_stretch, rank / size)
            met[group[thing]] += 1


def test_spread_of_equal_groups_meets_each_about_once_a_round():
    group = np.repeat(np.arange(50), 40)
    order = group[spread(group, raw(2000))]
    distinct = [len(set(order[start : start + 25].tolist())) for start in range(0, 2000, 25)]
    # Drawn without regard to groups, 25 of 50 groups would show 20 at a time.
    assert np.mean(distinct) > 23


def test_spread_keeps_the_order_within_a_group():
    group = np.array([0, 1, 0, 1, 0, 1, 0])
    order = spread(group, raw(7)).tolist()
    assert [thing for thing in order if group[thing] == 0] == [0, 2, 4, 6]


def test_spread_of_single_things_is_any_permutation():
    found = {tuple(spread(np.arange(3), raw(3, seed)).tolist()) for seed in range(100)}
    assert len(found) == 6


def test_spread_of_many_groups_is_that_of_few():
    group = np.random.default_rng(0).integers(0, 500, 3000)
    assert np.array_equal(spread(group, raw(3000)), spread(np.where(group == 0, 70_000, group), raw(3000)))


def test_spread_of_known_numbers_is_the_order_written_here():
    assert spread(np.array([0, 0, 0, 1, 1, 2, 2, 2]), raw(8)).tolist() == [5, 0, 1, 3, 6, 4, 7, 2]
