"""The four laws over a grid of shapes and topologies."""

import random
from functools import partial

import numpy as np
import pytest
from laws import (
    assert_equal_batches,
    assert_partitions_exactly,
    assert_resumes_anywhere,
    assert_same_batches_everywhere,
    merge_workers,
)
from order_grid import (
    TOPOLOGIES,
    Job,
    declared_shapes,
    plan_of,
    play,
    run_epoch,
    schedule_of,
    shapes,
    whole_epoch,
    windows_at,
)
from slow_order import epoch_windows, rank_positions

SHAPES = list(shapes(42))
DECLARED = declared_shapes()
REMAINDERS = ("drop", "pad", "uneven")


def slow_epoch(windows, epoch, plan):
    options = plan.options
    arguments = options.seed, plan.num_lanes, plan.resident_shards, options.reshuffle_lanes
    return epoch_windows(windows, [4] * len(windows), epoch, *arguments)


def batch_sizes(total, size):
    """A small batch, an odd one, and one that is the whole epoch: those that fit."""
    return sorted({batch for batch in (1, 3, total // size) if 0 < batch * size <= total})


@pytest.mark.parametrize(("windows", "options"), [*SHAPES, *DECLARED])
def test_ranks_of_any_topology_partition_the_epoch_in_equal_batches(windows, options):
    plan = plan_of(windows, **options)
    pick = random.Random(options["seed"])
    epoch = pick.randint(0, 3)
    expected = slow_epoch(windows, epoch, plan)
    for ranks_per_node in pick.sample(TOPOLOGIES, 5):
        for batch_size in batch_sizes(plan.num_windows, sum(ranks_per_node))[-2:]:
            job = Job(ranks_per_node, 0, batch_size)
            for remainder in REMAINDERS:
                run, repeats = run_epoch(plan, job, epoch, remainder=remainder)
                assert_partitions_exactly(run, expected, remainder, job.global_batch, repeats)
                assert_same_batches_everywhere([run], expected, job.global_batch)
                if remainder != "uneven":
                    assert_equal_batches(run, batch_size)


@pytest.mark.parametrize(("windows", "options"), [*SHAPES[::4], *DECLARED])
def test_global_batches_are_equal_on_all_topologies(windows, options):
    plan = plan_of(windows, **options)
    expected = slow_epoch(windows, 1, plan)
    for global_batch in (4, 24):
        topologies = [ranks for ranks in TOPOLOGIES if global_batch % sum(ranks) == 0]
        jobs = [Job(ranks, 0, global_batch // sum(ranks)) for ranks in topologies]
        for remainder in REMAINDERS[global_batch > plan.num_windows :]:
            runs = [run_epoch(plan, job, 1, remainder=remainder)[0] for job in jobs]
            assert_same_batches_everywhere(runs, expected, global_batch)


@pytest.mark.parametrize(("windows", "options"), [*SHAPES[::3], *DECLARED])
def test_batches_of_a_rank_are_those_of_the_definition(windows, options):
    plan = plan_of(windows, **options)
    total, pick = plan.num_windows, random.Random(options["seed"])
    for ranks_per_node in pick.sample(TOPOLOGIES, 6):
        job = Job(ranks_per_node, 0, 2)
        start = pick.choice((0, pick.randint(0, total)))
        for remainder in REMAINDERS[job.global_batch > total :]:
            for place, world in job.ranks():
                schedule = schedule_of(plan, world, 2, 5, start, remainder)
                found = [schedule.positions(t) for t in range(schedule.num_batches)]
                wanted = rank_positions(
                    total, plan.num_lanes, options["seed"], 5, start, 2, remainder, ranks_per_node, place
                )
                assert [list(zip(*map(np.ndarray.tolist, batch), strict=True)) for batch in found] == wanted


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
def test_round_robin_over_workers_gives_the_batches_of_one(num_workers):
    plan = plan_of([13, 4, 22, 9, 31], lanes=4, seed=3)
    (batches,), _ = run_epoch(plan, Job((1,), num_workers, 6), remainder="pad")
    assert merge_workers([batches[worker::num_workers] for worker in range(num_workers)]) == batches


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize(
    ("windows", "options"),
    [
        ([40, 3, 17, 1, 29, 8], {"lanes": 4, "seed": 1}),
        ([6] * 15, {"lanes": 3, "resident_shards": 9, "seed": 2}),
        ([50], {"lanes": 8, "seed": 3, "reshuffle_lanes": True}),
        ([9] * 30, {"nodes": 4, "global_batch": 48, "seed": 4}),  # neither four nodes nor batches of 48 run
    ],
)
def test_resume_after_any_batch_on_another_topology_continues_the_sequence(windows, options, remainder):
    plan = plan_of(windows, **options)
    jobs = [
        Job((1,), 0, 12),
        Job((2, 2), 0, 3),
        Job((4,), 0, 3),
        Job((2, 1), 0, 4),
        Job((1,) * 4, 0, 3),
        Job((1, 2, 3), 0, 2),
    ]
    # Two epochs and a bit: every stop lies in the first or second, resumed in either.
    steps = 2 * -(-plan.num_windows // 12) + 2
    assert_resumes_anywhere(partial(play, plan, remainder), jobs, steps)


@pytest.mark.parametrize("remainder", ["pad", "uneven"])
def test_resume_with_other_batch_sizes_continues_the_sequence_of_windows(remainder):
    plan = plan_of([40, 3, 17, 1, 29, 8], lanes=4, seed=1)
    expected = whole_epoch(plan, 0)
    for first, second, third in [(12, 8, 3), (5, 1, 20), (7, 97, 2)]:
        sequence, position = [], 0
        for global_batch, num_batches in ((first, 2), (second, 3), (third, 10**6)):
            job = Job((1,), 0, global_batch)
            schedule = schedule_of(plan, next(job.ranks())[1], global_batch, 0, position, remainder)
            for t in range(min(num_batches, schedule.num_batches)):
                positions, is_repeat = schedule.positions(t)
                sequence += windows_at(plan.epoch(0), positions[~is_repeat])
                after = schedule.position_after(t)
            position = after
            if position == plan.num_windows:
                break
        assert sequence == expected


def test_a_rank_on_the_same_topology_resumes_its_own_batches():
    plan = plan_of([31, 22, 9, 40], lanes=4, seed=9)
    job = Job((4, 4), 0, 2)
    whole, _ = run_epoch(plan, job)
    for stop in range(len(whole[0])):
        rest, _ = run_epoch(plan, job, start=stop * job.global_batch)
        assert rest == [batches[stop:] for batches in whole]


def test_nodes_whose_number_divides_the_lanes_read_disjoint_lanes():
    plan = plan_of([20] * 16, lanes=8)
    for num_nodes in (1, 2, 4, 8):
        job = Job((2,) * num_nodes, 0, 4)
        for (node, _), world in job.ranks():
            schedule = schedule_of(plan, world, 4)
            positions = np.concatenate([schedule.positions(t)[0] for t in range(schedule.num_batches)])
            assert set((positions % 8).tolist()) == set(schedule.lanes) == set(range(node, 8, num_nodes))


def test_every_rank_of_a_node_meets_every_lane():
    plan = plan_of([100] * 16, lanes=8)
    for _, world in Job((8,), 0, 4).ranks():
        schedule = schedule_of(plan, world, 4)
        positions = np.concatenate([schedule.positions(t)[0] for t in range(schedule.num_batches)])
        assert set((positions % 8).tolist()) == set(range(8))
