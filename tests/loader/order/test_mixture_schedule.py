"""The schedule of a mixture: its weights at every prefix, its epochs, its ends."""

import random
from fractions import Fraction

import numpy as np
import pytest

from epistream.errors import OptionError
from epistream.loader.order.mixture_schedule import DatasetPosition, MixtureSchedule

WEIGHTS = [
    (1,),
    (1, 1),
    (3, 1),
    (0.9, 0.1),
    (1, 1, 1),
    (0.7, 0.2, 0.1),
    (1,) * 8,
    (0.999, 0.0005, 0.0005),
    (1, 2, 4, 8, 16, 32),
    tuple(Fraction(1, n) for n in range(1, 30)),
    (10**9, 1, 10**9 - 7),
]


def chosen(schedule, blocks, epoch=0):
    return schedule.locate(np.arange(blocks) * schedule.num_lanes, epoch)[0].tolist()


def random_weights():
    pick = random.Random(5)
    for _ in range(60):
        yield tuple(pick.choice((pick.random() + 1e-6, pick.randint(1, 1000))) for _ in range(pick.randint(2, 20)))


@pytest.mark.parametrize("weights", [*WEIGHTS, *random_weights()])
def test_every_prefix_holds_the_weights_within_two_blocks(weights):
    num_lanes, blocks = 4, 3000
    schedule = MixtureSchedule(weights, [10**15] * len(weights), num_lanes, stop=10**15)
    exact = [Fraction(str(weight)) for weight in weights]
    share = [weight / sum(exact) for weight in exact]
    datasets, _, _ = schedule.locate(np.arange(blocks * num_lanes))
    counts = np.cumsum(datasets[:, None] == np.arange(len(weights)), axis=0)
    wanted = np.arange(1, blocks * num_lanes + 1)[:, None] * np.array([float(part) for part in share])
    assert np.abs(counts - wanted).max() < 2 * num_lanes
    # Far out, exactly: the closed form does not drift.
    for position in (10**9 + 1, 10**12 + 5, 10**15 - 3):
        found = schedule.consumed(position)
        assert sum(at.position for at in found) == position
        assert all(abs(at.position - position * part) < 2 * num_lanes for at, part in zip(found, share, strict=True))


def test_schedule_of_known_weights_is_the_one_written_here():
    schedule = MixtureSchedule((3, 1, 2), [6, 6, 6], 1, stop=18)
    assert chosen(schedule, 12) == [0, 2, 0, 1, 0, 2, 0, 2, 0, 1, 0, 2]


def test_each_dataset_goes_through_its_own_epochs_in_order():
    schedule = MixtureSchedule((2, 1), [13, 22], 3, stop=300)
    datasets, epochs, positions = schedule.locate(np.arange(300))
    for dataset, size in ((0, 12), (1, 21)):  # cut to a multiple of the lanes
        own = datasets == dataset
        count = int(own.sum())
        assert (epochs[own] * size + positions[own]).tolist() == list(range(count))
        assert positions[own].max() == size - 1


def test_positions_keep_their_lanes():
    schedule = MixtureSchedule((2, 1, 5), [50, 33, 1000], 8, stop=4000)
    _, _, positions = schedule.locate(np.arange(4000))
    assert np.array_equal(positions % 8, np.arange(4000) % 8)


def test_consumed_counts_what_was_located():
    schedule = MixtureSchedule((5, 2), [30, 17], 4, stop=210)
    for epoch in (0, 1, 2):
        for position in range(0, 208, 7):
            before = [schedule.locate(np.arange(208), earlier)[0] for earlier in range(epoch)]
            datasets = np.concatenate([*before, schedule.locate(np.arange(position), epoch)[0]])
            counts = np.bincount(datasets, minlength=2).tolist()
            expected = [DatasetPosition(*divmod(count, size)) for count, size in zip(counts, (28, 16), strict=True)]
            assert schedule.consumed(position, epoch) == expected


def test_next_mixture_epoch_goes_on_where_each_dataset_was():
    schedule = MixtureSchedule((1, 1), [8, 40], 4)
    datasets, epochs, positions = (np.concatenate(both) for both in zip(
        schedule.locate(np.arange(schedule.num_windows), 0),
        schedule.locate(np.arange(schedule.num_windows), 1), strict=True,
    ))  # fmt: skip
    larger = datasets == 1
    assert (epochs[larger] * 40 + positions[larger]).tolist() == list(range(int(larger.sum())))


def test_first_exhausted_ends_with_the_epoch_of_the_dataset_that_runs_out_first():
    schedule = MixtureSchedule((1, 1), [20, 1000], 4)
    assert schedule.consumed(schedule.num_windows)[0] == (1, 0)
    _, epochs, _ = schedule.locate(np.arange(schedule.num_windows))
    assert epochs.max() == 0
    assert 36 <= schedule.num_windows <= 44


def test_all_exhausted_ends_when_the_last_dataset_has_given_its_epoch():
    schedule = MixtureSchedule((1, 1), [20, 1000], 4, stop="all_exhausted")
    at_end, before = schedule.consumed(schedule.num_windows), schedule.consumed(schedule.num_windows - 4)
    assert at_end[1] == (1, 0)
    assert before[1] == (0, 996)
    assert at_end[0].epoch == 49 or at_end[0] == (50, 0)


def test_a_number_of_windows_is_cut_to_whole_blocks():
    assert MixtureSchedule((1, 1), [20, 1000], 8, stop=101).num_windows == 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (), 4), "no datasets"),
        (((1, 0), (10, 10), 4), "dataset 1: weight 0, wanted a number above 0"),
        (((1, -0.5), (10, 10), 4), "dataset 1: weight -0.5"),
        (((1, float("nan")), (10, 10), 4), "dataset 1: weight nan"),
        (((float("inf"), 1), (10, 10), 4), "dataset 0: weight inf"),
        (((1, "much"), (10, 10), 4), "dataset 1: weight 'much'"),
        (((1, 1), (10,), 4), "2 weights for 1 datasets"),
        (((1, 1), (10, 3), 4), "dataset 1: 3 windows, wanted at least one for each of 4 lanes. Use lanes=3 or less"),
        (((1, 1), (10, 10), 4, "never"), "stop: 'never', wanted first_exhausted, all_exhausted or a number"),
        (((1, 1), (10, 10), 4, 3), "stop: 3 windows"),
    ],
)
def test_mixture_that_cannot_work_is_refused(arguments, message):
    with pytest.raises(OptionError, match=message):
        MixtureSchedule(*arguments)


def test_position_outside_the_epoch_is_refused():
    schedule = MixtureSchedule((1, 1), [20, 20], 4, stop=16)
    with pytest.raises(OptionError, match="wanted 0 to 15"):
        schedule.locate(np.array([16]))
