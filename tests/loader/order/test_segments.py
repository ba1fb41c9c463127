"""Segments: what is dealt ahead changes no window, stays within its room, and permutes each piece a few times only."""

import numpy as np
import pytest
from order_grid import plan_of, shapes

from epistream.loader.order import epoch as epoch_module
from epistream.loader.order import segments as segments_module
from epistream.loader.order.random_integers import Purpose


def built(lane, numbers):
    return {number: [array.tolist() for array in lane.build(number)[1:3]] for number in numbers}


def each_alone(plan, lane, epoch=0):
    """Every segment, each by a lane order that has seen no other."""
    found = {}
    for number in range(plan.epoch(epoch).lane(lane).num_segments):
        found |= built(plan.epoch(epoch).lane(lane), [number])
    return found


@pytest.fixture
def permuted(monkeypatch):
    """How often each piece was permuted, by (lane, shard)."""
    counts = {}

    def permutation(count, purpose, seed, epoch, first=0, second=0):
        if purpose == Purpose.WINDOWS:
            counts[first, second] = counts.get((first, second), 0) + 1
        return original(count, purpose, seed, epoch, first, second)

    original = segments_module.permutation
    monkeypatch.setattr(segments_module, "permutation", permutation)
    return counts


@pytest.mark.parametrize("room", [0, 300, 24 * 2**20])
@pytest.mark.parametrize(("windows", "options"), list(shapes(50))[::3])
def test_segments_are_the_same_in_whatever_order_they_are_asked_for(windows, options, room, monkeypatch):
    monkeypatch.setattr(epoch_module, "_DEALT_BYTES", room)
    plan = plan_of(windows, **options)
    pick = np.random.default_rng(1)
    for number in range(plan.num_lanes):
        wanted = each_alone(plan, number)
        everything = list(range(len(wanted)))
        lane = plan.epoch(0).lane(number)
        assert built(lane, everything) == wanted
        assert built(lane, everything[::-1]) == wanted
        some = pick.integers(0, len(wanted), 20).tolist()
        assert built(lane, sorted(some)) == built(lane, some) == {segment: wanted[segment] for segment in some}


@pytest.mark.parametrize("resident", [2, 10, 50, 200])
def test_a_lane_read_in_sequence_permutes_each_piece_about_one_and_a_half_times_whatever_k_is(resident, permuted):
    lane = plan_of([20] * 600, lanes=1, resident_shards=resident).epoch(0).lane(0)
    for segment in range(lane.num_segments):
        lane.build(segment)
    # The first segment is dealt alone, as nobody knows yet that the next will follow, and then a row that is short.
    assert len(permuted) == 600
    assert sum(permuted.values()) <= 1.5 * 600 + 2 * resident + 2


def test_a_lane_without_room_ahead_permutes_every_piece_of_each_segment_and_no_more(permuted, monkeypatch):
    monkeypatch.setattr(epoch_module, "_DEALT_BYTES", 0)
    lane = plan_of([20] * 60, lanes=1, resident_shards=10).epoch(0).lane(0)
    for segment in range(lane.num_segments):
        lane.build(segment)
    assert sum(permuted.values()) == 51 * 10


def test_a_segment_asked_for_out_of_sequence_permutes_its_own_pieces_only(permuted):
    lane = plan_of([60] * 600, lanes=1, resident_shards=50).epoch(0).lane(0)
    for segment in (300, 17, 500):
        permuted.clear()
        lane.build(segment)
        assert sum(permuted.values()) == len(permuted) == 50


def test_what_is_dealt_ahead_stays_within_its_room_over_all_lanes(monkeypatch):
    monkeypatch.setattr(epoch_module, "_DEALT_BYTES", 64_000)
    plan = plan_of([200] * 400, lanes=4, resident_shards=200)
    order = plan.epoch(0)
    most = 0
    for first in range(0, plan.num_windows - 64, 400):
        order.windows(np.arange(first, first + 64))
        dealt = [order.lane(lane)._dealt for lane in range(4)]
        # The segments at the ends are longer than what may be kept, and are dealt alone.
        most = max(most, sum(each.window.nbytes for each in dealt if len(each.segments) > 1))
        assert all(len(each.segments) <= 2 * 50 for each in dealt)
    assert 10_000 < most <= 64_000


def test_windows_and_shards_of_a_segment_are_kept_in_narrow_integers():
    lane = plan_of([200] * 40, lanes=1, resident_shards=20).epoch(0).lane(0)
    segment = lane.build(0)
    assert (segment.shard.dtype, segment.window.dtype) == (np.uint16, np.uint16)
    wide = plan_of([70_000], lanes=1).epoch(0).lane(0).build(0)
    assert wide.window.dtype == np.uint32
    assert sorted(wide.window.tolist()) == list(range(70_000))
    shard, window = plan_of([200] * 40).epoch(0).windows(np.arange(10))
    assert (shard.dtype, window.dtype) == (np.int64, np.int64)


def test_shards_needed_from_the_beginning_are_named_without_putting_a_segment_together(permuted):
    order = plan_of([20] * 60, lanes=4, resident_shards=20).epoch(0)
    assert len({use.shard for use in order.uses_from(0)}) == 60
    assert permuted == {}
