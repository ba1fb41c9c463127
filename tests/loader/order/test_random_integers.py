"""Golden values: were one of these to change, every saved state would resume into another order."""

import numpy as np
import pytest

from epistream.errors import OptionError
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.random_integers import Purpose, draw, permutation, stable_argsort


def test_permutation_of_known_numbers_is_the_one_written_here():
    assert permutation(8, Purpose.SHARDS, 0, 0).tolist() == [1, 3, 4, 2, 6, 7, 0, 5]
    assert permutation(8, Purpose.WINDOWS, 2**63 + 5, 3, 7, 1).tolist() == [2, 4, 1, 6, 5, 3, 0, 7]


def test_draw_of_known_numbers_is_the_one_written_here():
    assert [draw(1000, Purpose.DEAL, 1, 2, position) for position in range(5)] == [906, 748, 499, 858, 712]


def test_permutation_of_nothing_and_of_one_is_itself():
    assert permutation(0, Purpose.SHARDS, 1, 1).tolist() == []
    assert permutation(1, Purpose.SHARDS, 1, 1).tolist() == [0]


def test_neighbouring_numbers_give_unrelated_permutations():
    keys = [(seed, epoch, lane) for seed in (0, 1, 2**32, 2**40) for epoch in range(3) for lane in range(3)]
    permutations = {tuple(permutation(20, purpose, *key)) for key in keys for purpose in Purpose}
    assert len(permutations) == len(keys) * len(Purpose)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "0", True, None])
def test_seed_that_is_no_64_bit_integer_is_refused(seed):
    with pytest.raises(OptionError, match=r"seed: .* wanted an integer"):
        OrderOptions(seed=seed)


@pytest.mark.parametrize("highest", [1, 2, 50, 3000, 2**63])
@pytest.mark.parametrize("count", [0, 1, 2, 17, 2000])
def test_argsort_keeps_equal_values_in_their_order_however_many_there_are(highest, count):
    values = np.random.default_rng(count).integers(0, highest, count, np.uint64)
    assert stable_argsort(values).tolist() == sorted(range(count), key=values.tolist().__getitem__)
