"""How many shards are open, and what is said when they do not fit."""

import numpy as np
import pytest
from made_up import made_up, plan_and_anchors
from order_grid import most_open, spans_of_blocks

from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan
from epistream.loader.order.working_set import budget_advice, bytes_of, open_bytes, open_shards, pool_slots

MIB = 2**20


def plan_of(count, **options):
    return Plan(np.full(count, 1000), np.full(count, 10 * MIB), np.full(count, 10), OrderOptions(**options))


def open_at_once(plan, in_flight):
    """The most shards whose span of use, widened by what is in flight, covers one position."""
    uses = list(plan.epoch(0).uses_from(0))
    starts = [use.first for use in uses]
    return max(len({use.shard for use in uses if use.first <= start < use.stop + in_flight}) for start in starts)


def test_open_shards_cover_what_an_epoch_uses_at_once():
    for lanes, resident in ((1, 4), (4, 16), (8, 16), (8, 40)):
        plan = plan_of(60, lanes=lanes, resident_shards=resident)
        for in_flight in (1, 64, 4000):
            found = open_at_once(plan, in_flight)
            bound = open_shards(plan, in_flight)
            # Shards at cuts are counted in both lanes, and an average is used for the segments in flight.
            assert found <= bound + lanes
            assert bound <= found + 2 * lanes


def test_open_shards_of_a_node_are_those_of_its_lanes():
    plan = plan_of(64, lanes=8, resident_shards=32)
    assert open_shards(plan, 0) == 32
    assert open_shards(plan, 0, range(0, 8, 2)) == 16
    assert open_bytes(plan, 0, [3]) == 40 * MIB


def test_open_shards_are_never_more_than_there_are():
    assert open_shards(plan_of(5, lanes=4), 10**6) == 5
    assert open_shards(plan_of(5, shuffle=False), 10) == 2


def test_budget_that_fits_needs_no_advice():
    assert budget_advice(plan_of(64, lanes=4, resident_shards=16), 300 * MIB, 64) is None


def test_advice_for_a_small_budget_names_a_smaller_k_that_fits():
    advice = budget_advice(plan_of(64, lanes=4, resident_shards=16), 170 * MIB, 64)
    assert "cache budget: 170.0 MiB, but the order draws from 20 shards at once" in advice
    assert "Use resident_shards=12 (160.0 MiB)" in advice
    assert budget_advice(plan_of(64, lanes=4, resident_shards=12), 170 * MIB, 64) is None


def test_advice_for_a_budget_that_lacks_a_byte_tells_the_sizes_apart():
    advice = budget_advice(plan_of(64, lanes=4, resident_shards=16), 200 * MIB - 1, 64)
    assert "cache budget: 209,715,199 bytes, but" in advice
    assert "up to 209,715,200 bytes." in advice


def test_advice_below_two_shards_a_lane_names_fewer_lanes_that_fit():
    advice = budget_advice(plan_of(64, lanes=4, resident_shards=16), 70 * MIB, 64)
    assert "Use lanes=2, resident_shards=4 (60.0 MiB)" in advice
    assert budget_advice(plan_of(64, lanes=2, resident_shards=4), 70 * MIB, 64) is None


def test_advice_where_nothing_fits_says_so():
    assert "No shuffled order fits" in budget_advice(plan_of(64, lanes=4), 20 * MIB, 64)


def test_declared_nodes_share_what_a_budget_must_hold():
    alone = plan_of(64, lanes=8, resident_shards=32)
    shared = plan_of(64, lanes=8, resident_shards=32, nodes=4)
    assert budget_advice(alone, 170 * MIB, 64) is not None
    assert budget_advice(shared, 170 * MIB, 64) is None
    advice = budget_advice(shared, 50 * MIB, 64)
    assert "the order draws from 10 shards at once" in advice
    assert "Use lanes=4, resident_shards=16 (50.0 MiB)" in advice
    assert budget_advice(plan_of(64, lanes=4, resident_shards=16, nodes=4), 50 * MIB, 64) is None
    # With fewer lanes than four, nodes would share them.
    assert "No shuffled order fits" in budget_advice(shared, 20 * MIB, 64)


def test_advice_for_a_declared_batch_says_that_it_raises_k():
    plan = plan_of(64, lanes=4, resident_shards=8, global_batch=640)
    assert plan.resident_shards > 8
    advice = budget_advice(plan, 170 * MIB, 64)
    assert "Use resident_shards=12 (160.0 MiB) without global_batch, which raises it" in advice


def test_a_node_draws_from_what_the_node_with_most_does():
    # 8 lanes over 5 shards: the first lane lies in one shard, others have a cut within.
    plan = plan_of(5, lanes=8)
    most = max(open_shards(plan, 0, [lane]) for lane in range(8))
    assert (open_shards(plan, 0, [0]), most) == (1, 2)
    assert bytes_of(plan, 8, 16, 0, num_nodes=8) == 20 * MIB
    declared = plan_of(5, lanes=8, nodes=8)
    assert "draws from 2 shards at once" in budget_advice(declared, 15 * MIB, 0)


def test_one_shard_is_one_shard():
    assert "draws from 1 shard at once" in budget_advice(plan_of(1), MIB, 64)


PICK = np.random.default_rng(5)
SHAPES_OF_BLOCKS = {
    "ten episodes a shard": ([4000] * 40, 400),
    "one episode a shard": ([400] * 200, 400),
    "episodes little longer than a block": ([37] * 200, 37),
    "episodes of one step": ([3] * 400, 1),
    "shards of one step and of one episode": (PICK.choice([1, 400], 300), 400),
    "ragged": (PICK.integers(1, 900, 200), 33),
}


@pytest.mark.parametrize("shape", SHAPES_OF_BLOCKS)
def test_blocks_in_use_are_never_more_than_the_slots_of_the_pool(shape):
    dataset = made_up(*SHAPES_OF_BLOCKS[shape])
    for block_steps, pool, lanes in ((8, 104, 8), (30, 112, 8), (30, 16, 1), (64, 32, 4)):
        plan, anchors = plan_and_anchors(
            dataset, by="blocks", block_steps=block_steps, pool_blocks=pool, lanes=lanes, seed=pool
        )
        lane, first, last = spans_of_blocks(plan, anchors, 0)
        for in_flight in (1, 64, 256, 1024):
            found = most_open(first, last, in_flight, plan.num_windows)
            assert found <= pool_slots(plan, in_flight) <= found * 1.25 + 12 or shape == "episodes of one step"
            for node in (range(0, lanes, 2), [lanes - 1]):
                own = np.isin(lane, list(node))
                found = most_open(first[own], last[own], in_flight, plan.num_windows)
                assert found <= pool_slots(plan, in_flight, node)


def test_slots_of_a_pool_are_its_blocks_and_those_that_enter_while_others_are_in_use():
    plan, _ = plan_and_anchors(made_up([4000] * 40, 400), by="blocks", block_steps=8, pool_blocks=104, lanes=8)
    assert [pool_slots(plan, in_flight) for in_flight in (0, 1, 8)] == [104] * 3
    # A lane's share of 64 windows lies in two steps of 8 windows each, where it does not begin with one.
    assert pool_slots(plan, 64) == 112
    assert pool_slots(plan, 64, [3]) <= 13 + 4
    assert pool_slots(plan_of(5), 64) == 0
    few, _ = plan_and_anchors(made_up([40], 20), by="blocks", block_steps=8, lanes=1)
    assert pool_slots(few, 64) == 6


def test_shards_in_use_count_those_that_the_pool_reaches_into():
    dataset = made_up([1000] * 60, 100)
    for lanes, resident, pool in ((1, 4, 300), (4, 16, 56), (8, 40, 400)):
        blocks = {"by": "blocks", "block_steps": 30, "pool_blocks": pool}
        plan, _ = plan_and_anchors(dataset, lanes=lanes, resident_shards=resident, **blocks)
        for in_flight in (1, 64, 4000):
            shard, _ = plan.epoch(0).windows(np.arange(plan.num_windows))
            first = np.array([np.flatnonzero(shard == each)[0] for each in range(60)])
            last = np.array([np.flatnonzero(shard == each)[-1] for each in range(60)])
            found, bound = most_open(first, last, in_flight, plan.num_windows), open_shards(plan, in_flight)
            # A shard at a cut is in use here from its first lane's windows to its last's.
            assert found <= bound + lanes
            assert open_shards(plan_of(60, lanes=lanes, resident_shards=resident), in_flight) <= bound


def test_advice_for_an_order_by_blocks_knows_that_one_in_storage_order_has_none():
    plan, _ = plan_and_anchors(made_up([1000] * 64, 100, 10 * MIB), lanes=4, by="blocks", pool_blocks=64)
    assert "No shuffled order fits: use a larger budget, smaller shards, or shuffle=False" in budget_advice(
        plan, 30 * MIB, 64
    )
