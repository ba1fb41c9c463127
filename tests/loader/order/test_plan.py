"""The plan: the sequence of windows of an epoch."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from order_grid import declared_shapes, plan_of, shapes, whole_epoch, windows_at
from slow_order import epoch_windows

from epistream.errors import OptionError
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan, default_resident_shards

GIB = 2**30


@pytest.mark.parametrize(("windows", "options"), list(shapes(90)))
def test_epoch_of_any_shape_is_the_sequence_of_the_definition(windows, options):
    plan = plan_of(windows, **options)
    for epoch in (0, 1):
        assert whole_epoch(plan, epoch) == epoch_windows(
            windows,
            [4] * len(windows),
            epoch,
            options["seed"],
            options["lanes"],
            plan.resident_shards,
            options.get("reshuffle_lanes", False),
        )


def test_epoch_of_a_known_plan_is_the_sequence_written_here():
    plan = plan_of([5, 3, 0, 6, 4], lanes=2, resident_shards=4, seed=42)
    # fmt: off
    assert whole_epoch(plan, 0) == [
        (0, 4), (3, 3), (0, 0), (3, 0), (4, 0), (4, 3), (0, 3), (3, 5), (1, 0),
        (3, 2), (1, 1), (4, 1), (0, 1), (4, 2), (1, 2), (3, 4), (0, 2), (3, 1),
    ]
    # fmt: on


def test_fingerprint_of_a_known_plan_is_the_one_written_here():
    plan = plan_of([5, 3, 0, 6, 4], lanes=2, resident_shards=4, seed=42)
    assert plan.fingerprint == "b8797cc0e470e1d37ff864688cef395c"


def test_identity_of_orders_that_declare_no_job_is_that_of_the_first_release():
    described = plan_of([5, 3, 0, 6, 4], seed=42).describe()
    assert described == {
        "order_version": 1,
        "windows_per_shard": "4359663c16d7fe12f0a4fa6a33332630",
        "windows_of_episodes": "875aa8a2328c6c23",
        "num_windows": 18,
        "shuffle": True,
        "seed": 42,
        "lanes": 8,
        "resident_shards": 16,
        "reshuffle_lanes": False,
    }
    # Bytes alone declare no job.
    assert plan_of([5, 3, 0, 6, 4], seed=42, resident_bytes=1).describe() == described


@pytest.mark.parametrize(("windows", "options"), declared_shapes())
def test_order_of_a_declared_job_is_that_of_the_l_and_k_that_it_chose(windows, options):
    plan = plan_of(windows, **options)
    own = {name: options.get(name, False) for name in ("seed", "reshuffle_lanes")}
    chosen = plan_of(windows, lanes=plan.num_lanes, resident_shards=plan.resident_shards, **own)
    assert plan.describe() == chosen.describe()
    assert plan.fingerprint == chosen.fingerprint
    assert whole_epoch(plan, 1) == whole_epoch(chosen, 1)


@pytest.mark.parametrize(
    ("options", "lanes", "resident_shards"),
    [
        ({}, 8, 64),  # 256 episodes are in 64 shards of 4
        ({"nodes": 1}, 8, 64),
        ({"nodes": 3}, 9, 64),
        ({"nodes": 127}, 127, 254),  # two a lane
        ({"nodes": 128}, 128, 256),
        ({"nodes": 8, "lanes": 16}, 16, 64),
        ({"nodes": 8, "lanes": 17}, 24, 64),
        ({"global_batch": 64}, 8, 64),  # the default does
        ({"global_batch": 4096}, 8, 2240),
        ({"nodes": 8, "global_batch": 4096}, 8, 2240),
        ({"nodes": 128, "global_batch": 4096}, 128, 1408),
        ({"nodes": 8, "global_batch": 4096, "resident_bytes": "100MiB"}, 8, 800),  # shards of 1 MiB
        ({"nodes": 8, "global_batch": 4096, "resident_bytes": 0}, 8, 64),  # never less than without
        ({"global_batch": 4096, "resident_shards": 2500}, 8, 2500),
        ({"global_batch": 4096, "resident_shards": 16}, 8, 2240),
        ({"global_batch": 10**9}, 8, 64),  # every batch is a whole epoch
        ({"shuffle": False, "nodes": 8, "global_batch": 4096}, 1, 1),
    ],
)
def test_declared_job_raises_lanes_and_resident_shards_to_what_suits_it(options, lanes, resident_shards):
    plan = plan_of([100] * 3000, **options)
    assert (plan.num_lanes, plan.resident_shards) == (lanes, resident_shards)


def test_windows_asked_for_in_any_order_are_those_of_their_positions():
    plan = plan_of([9, 30, 2, 14, 7, 21], lanes=4, seed=5)
    epoch = whole_epoch(plan, 2)
    shuffled = np.random.default_rng(0).permutation(plan.num_windows)
    assert windows_at(plan.epoch(2), shuffled) == [epoch[position] for position in shuffled]
    assert windows_at(plan.epoch(2), np.array([7, 7, 0], np.int64)) == [epoch[7], epoch[7], epoch[0]]
    assert windows_at(plan.epoch(2), np.array([], np.int64)) == []


@pytest.mark.parametrize("positions", [[-1], [83], [0, 100]])
def test_windows_outside_the_epoch_are_refused(positions):
    with pytest.raises(OptionError, match="wanted 0 to 82"):
        plan_of([9, 30, 2, 14, 7, 21]).epoch(0).windows(np.array(positions))


def test_lanes_keep_their_shards_over_epochs_unless_reshuffled():
    def shards_of_lane(plan, epoch):
        lanes = plan.lanes(epoch)
        return [lanes.pieces(lane).shard.tolist() for lane in range(lanes.num_lanes)]

    fixed, moving = plan_of([10] * 20, lanes=4), plan_of([10] * 20, lanes=4, reshuffle_lanes=True)
    assert shards_of_lane(fixed, 0) == shards_of_lane(fixed, 1) == shards_of_lane(moving, 0)
    assert shards_of_lane(moving, 0) != shards_of_lane(moving, 1)
    assert whole_epoch(fixed, 0) != whole_epoch(fixed, 1)


def test_lanes_are_as_many_as_windows_if_these_are_fewer():
    plan = plan_of([1, 1, 1], lanes=8)
    assert plan.num_lanes == 3
    assert sorted(whole_epoch(plan, 0)) == [(0, 0), (1, 0), (2, 0)]


def test_order_without_shuffling_is_dataset_order_in_one_lane():
    plan = plan_of([2, 0, 3], shuffle=False)
    assert plan.num_lanes == 1
    assert whole_epoch(plan, 7) == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert [use.shard for use in plan.epoch(0).uses_from(0)] == [0, 2]
    assert list(plan.epoch(0).uses_from(3)) == [(3, 5, 2)]


@pytest.mark.parametrize(("windows", "options"), list(shapes(40))[::2])
def test_shards_come_in_the_order_of_need_with_the_positions_that_need_them(windows, options):
    plan = plan_of(windows, **options)
    order, epoch = plan.epoch(1), whole_epoch(plan, 1)
    lanes = plan.num_lanes
    for start in {0, plan.num_windows // 3, plan.num_windows - 1}:
        uses = list(order.uses_from(start))
        assert all(early.first <= late.first for early, late in pairwise(uses))
        needed = [(p % lanes, epoch[p][0], p) for p in range(start, plan.num_windows)]
        for lane in range(lanes):
            own = list(order.uses_from(start, [lane]))
            assert sorted(own) == sorted(use for use in uses if use.first % lanes == lane)
            assert {use.shard for use in own} == {shard for at, shard, _ in needed if at == lane}
            spans = {use.shard: use for use in own}
            for at, shard, position in needed:
                if at == lane:
                    assert spans[shard].first <= position < spans[shard].stop


def test_a_lane_draws_from_k_shards_at_a_time_and_evenly_between_its_ends():
    plan = plan_of([60] * 12, lanes=1, resident_shards=4, seed=1)
    lane = plan.epoch(0).lane(0)
    assert (lane.parts, lane.num_segments) == (4, 9)
    for segment in range(9):
        shards, counts = np.unique(lane.build(segment).shard, return_counts=True)
        assert len(shards) == 4
        if 0 < segment < 8:
            assert counts.tolist() == [15, 15, 15, 15]
        else:  # no shard gives more than 2 / (k + 1) of the first or last
            assert counts.max() <= counts.sum() * 2 / 5


def test_plan_and_epoch_survive_pickling():
    plan = plan_of([9, 30, 2], lanes=2)
    order = plan.epoch(3)
    whole = whole_epoch(plan, 3)
    order.windows(np.arange(5))
    assert windows_at(pickle.loads(pickle.dumps(order)), np.arange(41)) == whole
    assert whole_epoch(pickle.loads(pickle.dumps(plan)), 3) == whole


def test_fingerprint_differs_with_anything_that_changes_the_order():
    base = {"lanes": 2, "seed": 1, "resident_shards": 8}
    plans = [plan_of([5, 6, 7], **{**base, **change}) for change in (
        {}, {"seed": 2}, {"lanes": 4}, {"resident_shards": 9}, {"shuffle": False}, {"reshuffle_lanes": True},
    )]  # fmt: skip
    plans.append(plan_of([5, 7, 6], **base))
    counts, options = np.array([5, 6, 7]), OrderOptions(**base)
    plans.append(Plan(counts, counts, np.array([4, 1, 4]), options))
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    assert plan_of([5, 6, 7], **base).fingerprint == plans[0].fingerprint


@pytest.mark.parametrize(
    ("num_shards", "shard_bytes", "episodes", "expected"),
    [
        (1000, GIB // 8, 16, 16),  # 256 episodes in 16 shards, which is 2 x lanes too
        (1000, GIB // 8, 8, 32),  # 256 episodes, exactly 4 GiB
        (1000, GIB // 8, 4, 32),  # 64 shards would hold them, 4 GiB holds 32
        (1000, 8 * GIB, 1, 16),  # 2 x lanes wins over 4 GiB
        (3, GIB // 8, 100, 16),
    ],
)
def test_default_resident_shards_follow_from_the_manifest(num_shards, shard_bytes, episodes, expected):
    sizes = np.full(num_shards, shard_bytes)
    counts = np.full(num_shards, episodes)
    assert default_resident_shards(np.ones(num_shards, np.int64), sizes, counts, 8) == expected


def test_default_resident_shards_look_only_at_shards_with_windows():
    per_shard = np.array([5] * 50 + [0] * 50)
    episodes = np.array([8] * 50 + [1] * 50)
    assert default_resident_shards(per_shard, np.full(100, 2**20), episodes, 8) == 32


def test_plan_without_windows_is_refused():
    with pytest.raises(OptionError, match="0 windows in 2 shards"):
        plan_of([0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 0}, "lanes: 0, wanted at least 1"),
        ({"seed": -1}, "seed: -1"),
        ({"lanes": 8.0}, "lanes: 8.0, wanted an integer"),
        ({"lanes": None}, "lanes: None, wanted an integer"),
        ({"resident_shards": "16"}, "resident_shards: '16', wanted an integer"),
        ({"resident_shards": 10}, "wanted at least 2 x lanes = 16. Use resident_shards=16, or lanes=5"),
        ({"resident_shards": 1}, "or shuffle=False"),
    ],
)
def test_order_options_that_cannot_work_are_refused_with_some_that_can(options, message):
    with pytest.raises(OptionError, match=message):
        OrderOptions(**options)


def test_negative_epoch_is_refused():
    with pytest.raises(OptionError, match="epoch: -1"):
        plan_of([1]).epoch(-1)


def test_a_plan_of_many_shards_computes_nothing_before_it_is_asked():
    count = 20_000
    plan = Plan(np.full(count, 10_000), np.full(count, 2**27), np.full(count, 20), OrderOptions())
    order = plan.epoch(0)
    windows_at(order, np.arange(64))
    windows_at(order, np.arange(100_000_000, 100_000_064))
    assert len(order._segments._values) <= 2 * plan.num_lanes


def test_threads_that_share_an_order_get_what_one_gets():
    plan = plan_of([40] * 60, lanes=4, resident_shards=12, seed=3)
    whole, order = whole_epoch(plan, 0), plan.epoch(0)

    def read(worker):
        return [windows_at(order, np.arange(t * 32, t * 32 + 32)) for t in range(worker, 75, 5)]

    with ThreadPoolExecutor(5) as threads:
        for worker, batches in enumerate(threads.map(read, range(5))):
            assert batches == [whole[t * 32 : t * 32 + 32] for t in range(worker, 75, 5)]
