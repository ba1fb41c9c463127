"""Anchors: which steps windows stand at, against a slow enumeration."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from order_grid import whole_epoch

from epistream.errors import FormatError, OptionError
from epistream.loader.order.anchors import Anchors
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan


def dataset_of(episodes, splits=("all",)):
    """A manifest of `episodes`: (shard, place in the shard, length, split, valid ranges or None)."""
    shard, place, length, split, ranges = zip(*episodes, strict=True)
    ranges = [each if each is not None else [(0, steps)] for each, steps in zip(ranges, length, strict=True)]
    num_shards = max(shard) + 1
    offsets = np.cumsum([0, *map(len, ranges)])
    flat = np.array([pair for each in ranges for pair in each], np.int64).reshape(-1, 2)
    return SimpleNamespace(
        url="demo",
        shard_url=[f"shard-{s}.tar" for s in range(num_shards)],
        shard_bytes=np.full(num_shards, 2**20),
        index_bytes=np.full(num_shards, 2**10),
        episode_shard=np.array(shard, np.int64),
        episode_in_shard=np.array(place, np.int64),
        episode_length=np.array(length, np.int64),
        episode_split=np.array(split, np.uint8),
        splits=splits,
        valid_ranges=(offsets, flat),
    )


def slow_anchors(episodes, split, reach, drop_incomplete, repetitions=None):
    """(episode, step) of every window of every shard, in the order of the shards."""
    shards = [[] for _ in range(max(episode[0] for episode in episodes) + 1)]
    in_order = sorted(range(len(episodes)), key=lambda e: episodes[e][:2])
    for e in in_order:
        shard, _, length, its_split, ranges = episodes[e]
        if split is not None and its_split != split:
            continue
        for start, stop in ranges if ranges is not None else [(0, length)]:
            steps = [
                (e, step)
                for step in range(start, stop)
                if not drop_incomplete or (step + reach[0] >= 0 and step + reach[1] < length)
            ]
            shards[shard] += steps * (1 if repetitions is None else repetitions[e])
    return shards


def all_located(anchors):
    shard = np.repeat(np.arange(len(anchors.per_shard)), anchors.per_shard)
    k = np.concatenate([np.arange(count) for count in anchors.per_shard])
    episode, place, step = anchors.locate(shard, k)
    assert np.array_equal(place, anchors._dataset.episode_in_shard[episode])
    return shard.tolist(), list(zip(episode.tolist(), step.tolist(), strict=True))


def random_episodes(pick):
    episodes, places = [], {}
    for _ in range(pick.randint(1, 12)):
        shard, length = pick.randint(0, 4), pick.randint(1, 20)
        ranges = None
        if pick.random() < 0.4:
            cuts = sorted(pick.sample(range(length + 1), 2 * pick.randint(0, min(2, (length + 1) // 2))))
            ranges = list(zip(cuts[::2], cuts[1::2], strict=True))
        episodes.append((shard, places.setdefault(shard, 0), length, shard % 2, ranges))
        places[shard] += 1
    return episodes


@pytest.mark.parametrize("number", range(120))
def test_anchors_of_any_manifest_are_those_of_a_slow_enumeration(number):
    pick = random.Random(number)
    episodes = random_episodes(pick)
    split = pick.choice((None, 0, 1))
    reach = pick.choice(((0, 0), (-1, 3), (-4, 0), (0, 10), (2, 5), (-3, -1)))
    drop_incomplete = pick.random() < 0.5
    repetitions = None
    if pick.random() < 0.5:
        repetitions = [pick.randint(0, 3) for _ in episodes]
    expected = slow_anchors(episodes, split, reach, drop_incomplete, repetitions)
    arguments = [
        dataset_of(episodes, ("train", "val")),
        None if split is None else ("train", "val")[split],
        reach,
        drop_incomplete,
        None if repetitions is None else np.array(repetitions),
    ]
    if not any(expected):
        with pytest.raises(OptionError, match="demo, split"):
            Anchors(*arguments)
        return
    anchors = Anchors(*arguments)
    assert anchors.per_shard.tolist() == [len(windows) for windows in expected]
    assert anchors.num_windows == sum(map(len, expected))
    assert anchors.episodes_per_shard.tolist() == [len({e for e, _ in windows}) for windows in expected]
    shard, located = all_located(anchors)
    shards, sizes = np.unique(shard, return_counts=True)
    groups = anchors.group(shards, sizes, np.concatenate([np.arange(size) for size in sizes])).tolist()
    assert (
        len(set(zip(groups, [e for e, _ in located], strict=True))) == len(set(groups)) == len({e for e, _ in located})
    )
    assert max(groups) < len(episodes)
    assert located == [window for windows in expected for window in windows]
    for shard, windows in enumerate(expected):
        for window in set(windows):
            assert anchors.find(*window) == (shard, windows.index(window))


def test_find_refuses_a_step_without_a_window_and_says_where_they_are():
    anchors = Anchors(dataset_of([(0, 0, 10, 0, [(0, 3), (5, 9)]), (0, 1, 4, 0, None)]), None, (0, 0), False)
    assert anchors.find(1, 0) == (0, 7)
    with pytest.raises(OptionError, match=r"episode 0: no window stands at step 4; they stand at 0 to 2, 5 to 8"):
        anchors.find(0, 4)
    with pytest.raises(OptionError, match="another split, or no such episode"):
        anchors.find(2, 0)


def test_dataset_order_is_by_episode_even_where_shards_interleave():
    # Validation episodes sit in a shard of their own, as a packed split puts them.
    episodes = [(0, 0, 2, 0, None), (1, 0, 3, 1, None), (0, 1, 2, 0, None), (0, 2, 1, 0, None), (1, 1, 1, 1, None)]
    dataset = dataset_of(episodes, ("train", "val"))
    anchors = Anchors(dataset, None, (0, 0), False)
    plan = Plan.of(anchors, dataset, OrderOptions(shuffle=False))
    windows = np.array(whole_epoch(plan, 0))
    episode, _, step = anchors.locate(windows[:, 0], windows[:, 1])
    assert list(zip(episode.tolist(), step.tolist(), strict=True)) == [
        (0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (4, 0),
    ]  # fmt: skip
    assert [use.shard for use in plan.epoch(0).uses_from(0)] == [0, 1, 0, 1]
    assert plan.fingerprint != Plan.of(anchors, dataset, OrderOptions()).fingerprint


def test_dataset_order_of_whole_shards_is_one_run_a_shard():
    episodes = [(shard, place, 5, 0, None) for shard in range(3) for place in range(4)]
    runs = Anchors(dataset_of(episodes), None, (0, 0), False).runs()
    assert (runs.shard.tolist(), runs.first.tolist(), runs.count.tolist()) == ([0, 1, 2], [0, 0, 0], [20, 20, 20])


def test_unknown_split_is_refused_with_those_there_are():
    with pytest.raises(OptionError, match=r"demo: no split 'test', it has train, val"):
        Anchors(dataset_of([(0, 0, 5, 0, None)], ("train", "val")), "test", (0, 0), False)


def test_empty_split_is_refused_with_the_counts_of_all():
    with pytest.raises(OptionError, match=r"split val: no episode. Episodes by split: train 1, val 0"):
        Anchors(dataset_of([(0, 0, 5, 0, None)], ("train", "val")), "val", (0, 0), False)


def test_window_longer_than_every_episode_is_refused_with_the_cure():
    dataset = dataset_of([(0, 0, 5, 0, None), (0, 1, 9, 0, None)])
    with pytest.raises(
        OptionError, match=r"over 10 steps \(0 to 9\), the longest episode has 9.*drop_incomplete=False"
    ):
        Anchors(dataset, None, (0, 9), True)
    assert Anchors(dataset, None, (0, 9), False).num_windows == 14
    assert Anchors(dataset, None, (0, 8), True).num_windows == 1


@pytest.mark.parametrize("ranges", [[(0, 3), (2, 4)], [(0, 6)], [(-1, 2)], [(3, 2)], [(3, 4), (0, 1)]])
def test_valid_ranges_that_overlap_or_leave_the_episode_are_refused(ranges):
    dataset = dataset_of([(0, 0, 4, 0, None), (0, 1, 5, 0, ranges)])
    with pytest.raises(FormatError, match="demo, episode 1: valid range"):
        Anchors(dataset, None, (0, 0), False)


@pytest.mark.parametrize("repetitions", [[1], [1, -1], [1.0, 1.0], [[1, 1]]])
def test_repetitions_that_are_no_counts_are_refused(repetitions):
    dataset = dataset_of([(0, 0, 4, 0, None), (0, 1, 5, 0, None)])
    with pytest.raises(OptionError, match="one for each of the 2 episodes"):
        Anchors(dataset, None, (0, 0), False, np.array(repetitions))
