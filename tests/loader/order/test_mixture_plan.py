"""Mixtures of whole orders: the laws hold for them as for one dataset."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from laws import (
    assert_equal_batches,
    assert_partitions_exactly,
    assert_resumes_anywhere,
    assert_same_batches_everywhere,
    global_batches,
)
from order_grid import TOPOLOGIES, Job, plan_of, whole_epoch

from epistream.errors import OptionError
from epistream.loader.order.mixture_plan import MixturePlan
from epistream.loader.order.mixture_schedule import DatasetPosition
from epistream.loader.order.schedule import Schedule

PLANS = (
    plan_of([9, 14, 3, 20], lanes=4, seed=1),
    plan_of([31, 8, 1, 1], lanes=4, seed=2),
    plan_of([7, 6], lanes=4, seed=3),
)
MIXTURE = MixturePlan(PLANS, (0.3, 0.6, 0.1), stop="all_exhausted")


def windows_at(epoch, positions):
    found = np.empty((len(positions), 3), np.int64)
    for dataset, own_epoch, own, rows in MIXTURE.portions(epoch, positions, max(len(positions), 1)):
        shard, window = PLANS[dataset].epoch(own_epoch).windows(own)
        found[rows] = np.stack([np.full_like(shard, dataset), shard, window], axis=1)
    return list(map(tuple, found.tolist()))


def slow_epochs(count):
    """`count` mixture epochs: each dataset's own sequence, epoch after epoch, dealt out by blocks of four."""
    waiting, next_epoch, epochs = [[] for _ in PLANS], [0] * len(PLANS), []
    for epoch in range(count):
        sequence = []
        for dataset in MIXTURE.schedule.locate(np.arange(0, MIXTURE.num_windows, 4), epoch)[0].tolist():
            if not waiting[dataset]:
                whole = whole_epoch(PLANS[dataset], next_epoch[dataset])
                waiting[dataset] = whole[: len(whole) // 4 * 4]
                next_epoch[dataset] += 1
            sequence += [(dataset, *window) for window in waiting[dataset][:4]]
            waiting[dataset] = waiting[dataset][4:]
        epochs.append(sequence)
    return epochs


def run_epoch(job, epoch, start, remainder):
    """What the ranks get, the repeats, and the position after each batch."""
    run, repeats, after = [], [], []
    for _, world in job.ranks():
        schedule = Schedule(MIXTURE.num_windows, 4, 0, epoch, start, world, job.batch_size, remainder)
        batches = []
        for batch_index in range(schedule.num_batches):
            positions, is_repeat = schedule.positions(batch_index)
            batches.append(windows_at(epoch, positions))
            repeats += [window for window, flag in zip(batches[-1], is_repeat.tolist(), strict=True) if flag]
        run.append(batches)
        after = [schedule.position_after(t) for t in range(len(batches))]
    return run, repeats, after


def test_windows_of_a_mixture_are_the_datasets_own_sequences_in_turn():
    for epoch, expected in enumerate(slow_epochs(3)):
        assert windows_at(epoch, np.arange(MIXTURE.num_windows)) == expected
    shuffled = np.random.default_rng(0).permutation(MIXTURE.num_windows)
    assert windows_at(2, shuffled) == [expected[position] for position in shuffled]


@pytest.mark.parametrize("remainder", ["drop", "pad", "uneven"])
def test_ranks_partition_a_mixture_in_the_same_batches_everywhere(remainder):
    expected = slow_epochs(2)[1]
    runs = []
    for ranks in (ranks for ranks in TOPOLOGIES if 12 % sum(ranks) == 0):
        job = Job(ranks, 0, 12 // sum(ranks))
        run, repeats, _ = run_epoch(job, 1, 0, remainder)
        assert_partitions_exactly(run, expected, remainder, 12, repeats)
        if remainder != "uneven":
            assert_equal_batches(run, job.batch_size)
        runs.append(run)
    assert_same_batches_everywhere(runs, expected, 12)


def play(remainder, job, state, num_steps):
    epoch, position = state or (0, 0)
    batches, states = [], []
    while len(batches) < num_steps:
        run, _, after = run_epoch(job, epoch, position, remainder)
        batches += global_batches(run)
        states += [(epoch, at) for at in after]
        epoch, position = epoch + 1, 0
    return batches[:num_steps], states[:num_steps]


@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_mixture_resumes_anywhere(remainder):
    jobs = [Job((1,), 0, 12), Job((2, 2), 0, 3), Job((1, 2), 0, 4)]
    steps = 2 * (MIXTURE.num_windows // 12) + 2
    assert_resumes_anywhere(partial(play, remainder), jobs, steps, stops=range(1, steps, 4))


def test_no_window_of_a_dataset_comes_twice_in_its_own_epoch():
    seen = set()
    for epoch in range(3):
        positions = np.arange(MIXTURE.num_windows)
        own_epochs = MIXTURE.schedule.locate(positions, epoch)[1].tolist()
        for own_epoch, window in zip(own_epochs, windows_at(epoch, positions), strict=True):
            assert (own_epoch, window) not in seen
            seen.add((own_epoch, window))


def test_position_of_a_window_is_where_it_was_located():
    schedule = MIXTURE.schedule
    for epoch in (0, 1, 2):
        located = schedule.locate(np.arange(MIXTURE.num_windows), epoch)
        for position, (dataset, own_epoch, own) in enumerate(zip(*map(np.ndarray.tolist, located), strict=True)):
            assert schedule.position_of(dataset, DatasetPosition(own_epoch, own)) == (epoch, position)


@pytest.mark.parametrize("lanes", [None, [1, 3], [2]])
def test_shards_of_a_mixture_come_in_the_order_of_need(lanes):
    for epoch, start in ((0, 0), (1, 37), (1, MIXTURE.num_windows - 1)):
        uses = list(MIXTURE.uses_from(epoch, start, lanes))
        assert all(early.first <= late.first for early, late in pairwise(uses))
        assert all(start <= use.first < use.stop <= MIXTURE.num_windows for use in uses)
        wanted = [p for p in range(start, MIXTURE.num_windows) if lanes is None or p % 4 in lanes]
        needed = {}
        for position, (dataset, shard, _) in zip(wanted, windows_at(epoch, np.array(wanted)), strict=True):
            needed.setdefault((dataset, shard), []).append(position)
            assert any(
                (use.dataset, use.shard) == (dataset, shard) and use.first <= position < use.stop for use in uses
            )
        assert {(use.dataset, use.shard) for use in uses} >= set(needed)


def test_portions_of_batches_are_their_windows_by_dataset_and_its_epoch():
    positions = np.arange(30, 65)  # two batches of 14, and a short one
    located = MIXTURE.schedule.locate(positions, 1)
    seen = []
    for portion in MIXTURE.portions(1, positions, 14):
        assert located[0][portion.rows].tolist() == [portion.dataset] * len(portion.positions)
        assert located[1][portion.rows].tolist() == [portion.epoch] * len(portion.positions)
        assert located[2][portion.rows].tolist() == portion.positions.tolist()
        seen += [(row // 14, portion.dataset, portion.epoch, row) for row in portion.rows.tolist()]
    assert seen == sorted(seen)
    assert sorted(row for *_, row in seen) == list(range(len(positions)))
    assert MIXTURE.own_epochs(1, 30) == [place.epoch for place in MIXTURE.schedule.consumed(30, 1)]


def test_portion_of_one_dataset_is_all_of_it_where_it_was():
    positions = np.array([5, 2, 9])
    [portion] = PLANS[0].portions(3, positions, 2)
    assert (portion.dataset, portion.epoch, portion.positions.tolist()) == (0, 3, [5, 2, 9])
    assert positions[portion.rows].tolist() == [5, 2, 9]
    assert PLANS[0].own_epochs(3, 7) == [3]


def test_plans_of_different_lanes_are_refused_with_lanes_that_serve_all():
    with pytest.raises(OptionError, match=r"8, 3 lanes, wanted the same.*lanes=3\) for all of them \(dataset 1 has 3"):
        MixturePlan((plan_of([20]), plan_of([3])), (1, 1))
    with pytest.raises(OptionError, match="no datasets"):
        MixturePlan((), ())
    with pytest.raises(OptionError, match="epoch: -1"):
        list(MIXTURE.uses_from(-1, 0))


def test_description_names_what_decides_the_order():
    assert MIXTURE.describe() == {
        "weights": ["0.3", "0.6", "0.1"],
        "stop": "all_exhausted",
        "plans": [plan.fingerprint for plan in PLANS],
    }
