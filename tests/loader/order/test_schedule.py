"""The schedule of one rank: its arithmetic at the ends, and what it refuses."""

import numpy as np
import pytest

from epistream.errors import OptionError
from epistream.loader.order.schedule import Schedule
from epistream.loader.order.world import World


def schedule(num_windows, batch_size, world=None, start=0, remainder="drop", num_lanes=4):
    return Schedule(num_windows, num_lanes, 0, 0, start, world or World(), batch_size, remainder)


def test_positions_of_one_process_are_the_next_of_the_epoch():
    found = [schedule(10, 3).positions(t)[0].tolist() for t in range(3)]
    assert found == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_positions_of_two_nodes_alternate():
    found = [schedule(16, 3, World.of(rank, 2, 1)).positions(1)[0].tolist() for rank in (0, 1)]
    assert found == [[6, 8, 10], [7, 9, 11]]


def test_positions_from_an_odd_start_keep_their_nodes():
    found = [schedule(16, 2, World.of(rank, 2, 1), start=3).positions(0)[0].tolist() for rank in (0, 1)]
    assert found == [[4, 6], [3, 5]]


def test_padding_repeats_the_last_windows_of_the_same_lanes():
    positions, is_repeat = schedule(10, 14, remainder="pad").positions(0)
    assert positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 6, 7, 8, 9]
    assert is_repeat.tolist() == [False] * 10 + [True] * 4
    positions, is_repeat = schedule(10, 6, start=9, remainder="pad").positions(0)
    assert positions.tolist() == [9, 6, 7, 8, 9, 6]
    assert is_repeat.tolist() == [False] + [True] * 5


def test_uneven_last_batch_is_short_or_missing():
    worlds = [World.of(rank, 4, 1) for rank in range(4)]
    last = [schedule(10, 2, world, remainder="uneven") for world in worlds]
    assert [each.num_batches for each in last] == [2, 2, 1, 1]
    assert [last[rank].positions(1)[0].tolist() for rank in (0, 1)] == [[8], [9]]


def test_num_batches_counts_what_is_left_from_the_start():
    assert [schedule(10, 3, start=start).num_batches for start in (0, 1, 2, 9, 10)] == [3, 3, 2, 0, 0]
    assert [schedule(10, 3, start=start, remainder="pad").num_batches for start in (0, 1, 9, 10)] == [4, 3, 1, 0]


def test_position_after_counts_windows_of_all_ranks_and_never_repeats():
    assert [schedule(10, 3, remainder="pad").position_after(t) for t in range(4)] == [3, 6, 9, 10]
    assert [schedule(16, 2, World.of(1, 4), start=5).position_after(t) for t in range(1)] == [13]


def test_lanes_of_a_node_are_those_congruent_to_it():
    def lanes(node, num_nodes):
        return list(schedule(64, 1, World.of(node, num_nodes, 1), num_lanes=8).lanes)

    assert lanes(0, 1) == list(range(8))
    assert lanes(1, 2) == [1, 3, 5, 7]
    assert lanes(5, 8) == [5]
    assert lanes(11, 16) == [3]
    assert lanes(2, 3) == list(range(8))
    assert lanes(3, 6) == [1, 3, 5, 7]


def test_dealing_turns_over_the_ranks_of_a_node_from_batch_to_batch():
    whose = [
        [rank for rank in range(4) if t * 4 in schedule(400, 1, World.of(rank, 4)).positions(t)[0]] for t in range(100)
    ]
    assert {len(owners) for owners in whose} == {1}
    assert np.bincount([owners[0] for owners in whose]).min() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0), "batch_size: 0, wanted at least 1"),
        ((10, 11), 'epoch has 10: .* Use batch_size=10 or less, or remainder="pad"'),
        ((10, 3, World.of(0, 4)), "3 x 4 ranks = 12 windows a batch.*Use batch_size=2 or less"),
        ((3, 1, World.of(0, 4)), 'every batch would be dropped. Use remainder="pad"'),
        ((10, 1, None, 11), "start: 11, wanted a position from 0 to 10"),
        ((10, 1, None, 0, "keep"), "remainder: 'keep', wanted one of drop, pad, uneven"),
    ],
)
def test_schedule_that_cannot_work_is_refused_with_one_that_can(arguments, message):
    with pytest.raises(OptionError, match=message):
        schedule(*arguments)


@pytest.mark.parametrize("batch_index", [-1, 3])
def test_batch_that_does_not_exist_is_refused(batch_index):
    with pytest.raises(OptionError, match="wanted 0 to 2"):
        schedule(10, 3).positions(batch_index)
