"""The order by blocks, against its definition in plain lists, and what readers rely on."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from made_up import made_up, plan_and_anchors
from order_grid import declared_shapes, most_open, plan_of, shapes, spans_of_blocks, whole_epoch, windows_at
from slow_order import epoch_by_blocks

from epistream.errors import OptionError
from epistream.loader.order import epoch as epoch_module
from epistream.loader.order.anchors import Anchors
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan
from epistream.loader.order.working_set import open_shards

# block_steps and pool_blocks a lane: single windows, blocks that are cut, and a pool that holds whole lanes.
SIZES = [(1, 2), (3, 5), (8, 16), (32, 3), (4, 200)]


def by_blocks(windows, sizes, **options):
    steps, pool = sizes
    return plan_of(windows, **options, by="blocks", block_steps=steps, pool_blocks=pool * options.get("lanes", 8))


def average_steps(windows, episodes=4):
    """(episode, run, step) of each window of shards whose episodes are taken to be of equal length."""
    each = [max(-(-count // episodes), 1) for count in windows]
    return [[(k // e, 0, k % e) for k in range(count)] for count, e in zip(windows, each, strict=True)]


def slow_epoch(plan, steps_of_shard, epoch):
    options, numbers = plan.options, (plan.num_lanes, plan.resident_shards)
    blocks = plan.blocks.steps, plan.pool_blocks
    return epoch_by_blocks(steps_of_shard, epoch, options.seed, *numbers, blocks, options.reshuffle_lanes)


def ends_of(plan, epoch):
    order, windows = plan.epoch(epoch), whole_epoch(plan, epoch)
    ends = order.ends_block(np.arange(plan.num_windows)).tolist()
    return [window for window, is_end in zip(windows, ends, strict=True) if is_end]


@pytest.mark.parametrize(("number", "shape"), list(enumerate([*shapes(70), *declared_shapes()])))
def test_epoch_of_any_shape_is_the_sequence_of_the_definition(number, shape):
    windows, options = shape
    for sizes in (SIZES[number % 5], SIZES[(number + 2) % 5]):
        plan = by_blocks(windows, sizes, **options)
        expected, ends = slow_epoch(plan, average_steps(windows), number % 3)
        assert whole_epoch(plan, number % 3) == expected
        found = ends_of(plan, number % 3)
        assert len(found) == len(ends)
        assert set(found) == ends


def ragged(pick):
    """A manifest of episodes of 1 to 40 steps with valid ranges, and its windows: (episode, run, step) by shard."""
    num_shards = pick.randint(1, 9)
    count = pick.randint(num_shards, 30)
    shard = sorted([*range(num_shards), *(pick.randrange(num_shards) for _ in range(count - num_shards))])
    length = [pick.choice((1, 2, pick.randint(1, 40))) for _ in range(count)]
    ranges = []
    for steps in length:
        cuts = sorted(pick.sample(range(steps + 1), min(steps + 1, pick.choice((2, 4)))))
        ranges.append([(0, steps)] if pick.random() < 0.5 else list(zip(cuts[::2], cuts[1::2], strict=False)))
    ranges[0] = [(0, length[0])]
    repetitions = [1, *(pick.choice((0, 1, 3)) for _ in range(count - 1))] if pick.random() < 0.5 else [1] * count
    dataset = made_up([1], 1)
    dataset.shard_url = range(num_shards)
    dataset.shard_bytes, dataset.index_bytes = np.full(num_shards, 10**6), np.zeros(num_shards, np.int64)
    dataset.episode_shard = np.array(shard)
    dataset.episode_in_shard = np.array([e - shard.index(of) for e, of in enumerate(shard)])
    dataset.episode_length, dataset.episode_split = np.array(length), np.zeros(count, np.uint8)
    offsets = np.cumsum([0, *map(len, ranges)])
    dataset.valid_ranges = offsets, np.array([pair for each in ranges for pair in each], np.int64).reshape(-1, 2)
    steps = [[] for _ in range(num_shards)]
    for e, of in enumerate(shard):
        for number, (start, stop) in enumerate(ranges[e]):
            for again in range(repetitions[e]):
                steps[of] += [(e, (number, again), step) for step in range(start, stop)]
    return dataset, np.array(repetitions), steps


@pytest.mark.parametrize("seed", range(60))
def test_epoch_of_valid_ranges_and_repetitions_is_the_sequence_of_the_definition(seed):
    pick = random.Random(seed)
    dataset, repetitions, steps = ragged(pick)
    anchors = Anchors(dataset, None, (0, 0), False, None if (repetitions == 1).all() else repetitions)
    lanes = pick.choice((1, 2, 3, 8))
    options = OrderOptions(
        seed=seed, lanes=lanes, resident_shards=lanes * pick.choice((2, 3, 5)),
        by="blocks", block_steps=pick.choice((1, 4, 7, 30)), pool_blocks=lanes * pick.choice((2, 3, 12)),
    )  # fmt: skip
    plan = Plan.of(anchors, dataset, options)
    assert anchors.per_shard.tolist() == [len(each) for each in steps]
    expected, ends = slow_epoch(plan, steps, 1)
    assert whole_epoch(plan, 1) == expected
    assert set(ends_of(plan, 1)) == ends


@pytest.mark.parametrize("seed", range(40))
def test_blocks_of_any_run_are_those_of_a_walk_over_its_steps(seed):
    pick = random.Random(seed)
    dataset, repetitions, steps = ragged(pick)
    anchors = Anchors(dataset, None, (0, 0), False, None if (repetitions == 1).all() else repetitions)
    for block_steps in (1, 3, 8, 64):
        counts = []
        for shard, windows in enumerate(steps):
            names = [(episode, run, step // block_steps) for episode, run, step in windows]
            starts = [k for k in range(len(names)) if k == 0 or names[k] != names[k - 1]]
            counts.append(len(starts))
            for _ in range(8 if names else 0):
                first = pick.randrange(len(names))
                count = pick.randint(1, len(names) - first)
                expected = [first, *(k for k in starts if first < k < first + count)]
                assert anchors.blocks(shard, first, count, block_steps).tolist() == expected
        assert anchors.num_blocks(block_steps).tolist() == counts


def test_epoch_of_a_known_plan_is_the_sequence_written_here():
    plan = plan_of([5, 3, 0, 6, 4], lanes=2, resident_shards=4, seed=42, by="blocks", block_steps=2, pool_blocks=4)
    # fmt: off
    assert whole_epoch(plan, 0) == [
        (0, 3), (3, 3), (0, 2), (3, 2), (4, 0), (3, 4), (0, 1), (3, 5), (1, 2),
        (3, 0), (0, 0), (3, 1), (0, 4), (4, 3), (1, 0), (4, 1), (1, 1), (4, 2),
    ]
    # fmt: on
    assert plan.fingerprint == "65c2545246d3f78a7391f8a902ca5923"


def test_order_by_blocks_says_so_and_others_are_described_as_ever():
    options = {"lanes": 2, "resident_shards": 4, "seed": 42}
    windows = plan_of([5, 3, 0, 6, 4], **options)
    blocks = plan_of([5, 3, 0, 6, 4], **options, by="blocks")
    assert plan_of([5, 3, 0, 6, 4], **options, by="windows").fingerprint == windows.fingerprint
    assert blocks.describe() == {**windows.describe(), "by": "blocks", "block_steps": 32, "pool_blocks": 32}
    others = [{"block_steps": 8}, {"block_steps": 9}, {"pool_blocks": 33}]
    fingerprints = {plan_of([5, 3, 0, 6, 4], **options, **other).fingerprint for other in others}
    assert len(fingerprints | {windows.fingerprint, blocks.fingerprint}) == 5


@pytest.mark.parametrize("steps", [1, 25, 90])
@pytest.mark.parametrize(("block_steps", "pool"), [(8, 12), (30, 5), (7, 2)])
def test_a_lane_draws_from_no_more_blocks_than_its_pool_holds(steps, block_steps, pool):
    dataset = made_up([300] * 12 + [7] * 5, steps)
    for lanes in (1, 4):
        plan, anchors = plan_and_anchors(
            dataset, lanes=lanes, by="blocks", block_steps=block_steps, pool_blocks=pool * lanes
        )
        for epoch in (0, 1):
            lane, first, last = spans_of_blocks(plan, anchors, epoch)
            for number in range(lanes):
                own = lane == number
                assert most_open(first[own] // lanes, last[own] // lanes, 1, plan.num_windows // lanes + 1) <= pool
            assert plan.epoch(epoch).ends_block(np.sort(last)).all()


def test_windows_of_a_block_come_seldom_closer_than_half_a_period():
    pool, steps = 10, 20
    plan, anchors = plan_and_anchors(
        made_up([400] * 20, 400), lanes=1, by="blocks", block_steps=steps, pool_blocks=pool
    )
    shard, window = plan.epoch(0).windows(np.arange(1500, plan.num_windows - 1500))
    episode, _, step = anchors.locate(shard, window)
    blocks = episode * 100 + step // steps
    gaps = np.concatenate([np.diff(np.flatnonzero(blocks == block)) for block in np.unique(blocks)])
    # A period is as many windows as the pool has blocks.
    assert np.mean(gaps < pool / 2) < 0.01
    assert gaps.mean() == pytest.approx(pool, rel=0.02)


@pytest.mark.parametrize(("windows", "options"), list(shapes(40))[::2])
def test_shards_come_in_the_order_of_need_with_all_positions_that_need_them(windows, options):
    for sizes in ((3, 5), (32, 3)):
        plan = by_blocks(windows, sizes, **options)
        order, epoch = plan.epoch(1), whole_epoch(plan, 1)
        lanes = plan.num_lanes
        for start in {0, plan.num_windows // 3, plan.num_windows - 1}:
            uses = list(order.uses_from(start))
            assert all(early.first <= late.first for early, late in pairwise(uses))
            assert all(start <= use.first < use.stop <= plan.num_windows for use in uses)
            for lane in range(lanes):
                spans = {use.shard: use for use in order.uses_from(start, [lane])}
                for position in range(start, plan.num_windows):
                    if position % lanes == lane:
                        span = spans[epoch[position][0]]
                        assert span.first <= position < span.stop


def test_shards_are_named_little_longer_than_they_are_needed():
    plan, _ = plan_and_anchors(
        made_up([4000] * 40, 400), lanes=4, resident_shards=16, by="blocks", block_steps=30, pool_blocks=56
    )
    shard, _ = plan.epoch(0).windows(np.arange(plan.num_windows))
    lane = np.arange(plan.num_windows) % 4
    # A pool of 14 blocks and half a block in each of 4 shards, at either end.
    most = 4 * (14 * 30 + 4 * 30)
    for use in plan.epoch(0).uses_from(0):
        needed = np.flatnonzero((shard == use.shard) & (lane == use.first % 4))
        assert needed[0] - use.first <= most
        assert use.stop - needed[-1] <= most + (use.stop > plan.num_windows - 4) * 4 * 14 * 30
    uses = list(plan.epoch(0).uses_from(0))
    open_at_once = max(len({use.shard for use in uses if use.first <= at.first < use.stop + 64}) for at in uses)
    assert open_at_once <= open_shards(plan, 64) + 4


def test_shards_needed_from_anywhere_are_named_without_putting_a_segment_together(monkeypatch):
    plan, _ = plan_and_anchors(made_up([4000] * 40, 400), by="blocks")
    monkeypatch.setattr(Anchors, "blocks", None)
    assert len({use.shard for use in plan.epoch(0).uses_from(plan.num_windows // 2)}) > 20


@pytest.mark.parametrize("room", [0, 300, 24 * 2**20])
@pytest.mark.parametrize(("windows", "options"), list(shapes(50))[::5])
def test_windows_asked_for_in_any_order_are_those_of_their_positions(windows, options, room, monkeypatch):
    monkeypatch.setattr(epoch_module, "_DEALT_BYTES", room)
    plan = by_blocks(windows, (3, 4), **options)
    epoch = whole_epoch(plan, 2)
    pick = np.random.default_rng(1)
    shuffled = pick.permutation(plan.num_windows)
    order = plan.epoch(2)
    assert windows_at(order, shuffled) == [epoch[position] for position in shuffled]
    for position in pick.integers(0, plan.num_windows, 30).tolist():
        assert windows_at(order, np.array([position])) == [epoch[position]]
    assert windows_at(order, np.arange(plan.num_windows)[::-1]) == epoch[::-1]


def test_blocks_are_whole_however_many_segments_share_a_shard():
    # Parts of 12.5 windows would cut a block of 30 into three, each of which decodes the frames of all.
    plan, anchors = plan_and_anchors(
        made_up([400] * 600, 400), lanes=1, resident_shards=32, by="blocks", block_steps=30, pool_blocks=16
    )
    assert sum(len(plan.epoch(0).lane(0).build(g).ends_block) for g in range(3)) > 0
    assert len(ends_of(plan, 0)) == int(anchors.num_blocks(30).sum()) == 600 * 14


def test_threads_and_copies_get_what_one_reader_gets():
    plan = by_blocks([40] * 60, (8, 5), lanes=4, resident_shards=12, seed=3)
    whole, order = whole_epoch(plan, 0), plan.epoch(0)

    def read(worker):
        return [windows_at(order, np.arange(t * 32, t * 32 + 32)) for t in range(worker, 75, 5)]

    with ThreadPoolExecutor(5) as threads:
        for worker, batches in enumerate(threads.map(read, range(5))):
            assert batches == [whole[t * 32 : t * 32 + 32] for t in range(worker, 75, 5)]
    assert whole_epoch(pickle.loads(pickle.dumps(plan)), 0) == whole
    assert windows_at(pickle.loads(pickle.dumps(order)), np.arange(plan.num_windows)) == whole


def test_a_reader_in_sequence_keeps_few_segments():
    plan = by_blocks([200] * 400, (8, 12), lanes=4, resident_shards=200)
    order = plan.epoch(0)
    for first in range(0, plan.num_windows - 64, 400):
        order.windows(np.arange(first, first + 64))
        assert all(len(order.lane(lane)._laid) <= 3 for lane in range(4))
    assert all(len(order.lane(lane)._permuted) <= 50 for lane in range(4))


def test_a_plan_of_many_shards_computes_nothing_before_it_is_asked():
    count = 20_000
    options = OrderOptions(by="blocks", block_steps=32)
    plan = Plan(np.full(count, 10_000), np.full(count, 2**27), np.full(count, 20), options)
    order = plan.epoch(0)
    windows_at(order, np.arange(64))
    windows_at(order, np.arange(100_000_000, 100_000_064))
    assert sum(len(order.lane(lane)._laid_before) for lane in range(8)) <= 8 * 8


def test_order_without_blocks_ends_none():
    for options in ({}, {"shuffle": False}, {"by": "windows"}):
        assert plan_of([9, 4], **options).epoch(0).ends_block(np.arange(13)).tolist() == [False] * 13
    with pytest.raises(OptionError, match="wanted 0 to 12"):
        plan_of([9, 4], by="blocks").epoch(0).ends_block(np.array([13]))


@pytest.mark.parametrize(
    ("options", "group_steps", "resolved"),
    [
        ({}, None, ("windows", None, None)),
        ({}, 2, ("windows", None, None)),
        ({}, 3, ("blocks", 9, None)),
        ({}, 30, ("blocks", 30, None)),
        ({}, 10**6, ("blocks", 65_536, None)),
        ({"by": "windows"}, 30, ("windows", None, None)),
        ({"by": "blocks"}, None, ("blocks", 32, None)),
        ({"by": "blocks"}, 1, ("blocks", 8, None)),
        ({"block_steps": 5}, 30, ("blocks", 5, None)),
        ({"pool_blocks": 64}, None, ("blocks", 32, 64)),
        ({"shuffle": False}, 30, ("windows", None, None)),
    ],
)
def test_what_is_left_open_follows_from_the_groups_of_the_video(options, group_steps, resolved):
    found = OrderOptions(**options).resolved(group_steps)
    assert (found.by, found.block_steps, found.pool_blocks) == resolved
    assert found.resolved(7) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"by": "windows", "block_steps": 8},
            "block_steps: 8 with by='windows'.* Use by='blocks', or leave block_steps",
        ),
        ({"by": "windows", "pool_blocks": 64}, "pool_blocks: 64 with by='windows'"),
        ({"shuffle": False, "by": "blocks"}, "shuffle: False with by='blocks', wanted .* Use shuffle=True, or leave"),
        ({"shuffle": False, "block_steps": 8}, "shuffle: False with block_steps=8"),
        ({"pool_blocks": 15}, "pool_blocks: 15, wanted at least 2 x lanes = 16. Use pool_blocks=16, or lanes=7"),
        ({"pool_blocks": 1}, "Use pool_blocks=16, or by='windows'"),
        ({"by": "episodes"}, "by: 'episodes'"),
        ({"block_steps": 0}, "block_steps: 0"),
        ({"block_steps": 65_537}, "block_steps: 65537"),
    ],
)
def test_options_that_cannot_work_are_refused_with_some_that_can(options, message):
    with pytest.raises(OptionError, match=message):
        OrderOptions(**options)


def test_declared_nodes_raise_the_pool_to_two_blocks_a_lane():
    plan = plan_of([9] * 600, nodes=64, by="blocks", pool_blocks=16)
    assert (plan.num_lanes, plan.pool_blocks, plan.blocks.pool) == (64, 128, 2)
    assert plan_of([9] * 600, nodes=64, by="blocks").pool_blocks == 64 * 16


@pytest.mark.parametrize(
    ("options", "block_bytes", "wanted"),
    [
        ({}, 1, 128),
        ({}, 1 << 26, 64),
        ({}, 1 << 30, 16),  # two blocks a lane in any case
        ({"nodes": 128}, 1, 16 * 128),
        ({"nodes": 16}, 1 << 28, 16 * 16),  # 16 blocks of 256 MiB on each of 16 nodes
        ({"lanes": 4, "pool_blocks": 99}, 1 << 40, 99),
    ],
)
def test_pool_by_default_is_16_blocks_a_lane_within_4_gib_a_node(options, block_bytes, wanted):
    order = OrderOptions(by="blocks", **options).resolved(None, lambda steps: block_bytes)
    assert (order.block_steps, order.pool_blocks) == (32, wanted)
