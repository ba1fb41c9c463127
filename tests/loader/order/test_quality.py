"""The numbers of shuffle quality against counting."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from epistream.loader.order.anchors import Anchors
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan
from epistream.loader.order.quality import distinct_by_third, distinct_episodes, expected_distinct


@pytest.mark.parametrize(
    ("windows", "batch"), [([1, 1, 1], 2), ([3, 1, 2], 3), ([4], 2), ([2, 2, 2], 6), ([2, 0, 3], 9)]
)
def test_expected_distinct_is_the_mean_over_all_draws(windows, batch):
    episodes = [episode for episode, count in enumerate(windows) for _ in range(count)]
    draws = list(combinations(episodes, min(batch, len(episodes))))
    assert expected_distinct(np.array(windows), batch) == pytest.approx(np.mean([len(set(draw)) for draw in draws]))


def dataset_of(num_shards, episodes, steps):
    episode = np.arange(num_shards * episodes)
    return SimpleNamespace(
        url="demo",
        shard_url=range(num_shards),
        shard_bytes=np.full(num_shards, 10**6),
        index_bytes=np.full(num_shards, 10**4),
        episode_shard=episode // episodes,
        episode_in_shard=episode % episodes,
        episode_length=np.full(len(episode), steps),
        episode_split=np.zeros(len(episode), np.uint8),
        splits=("all",),
        valid_ranges=(np.arange(len(episode) + 1), np.stack([episode * 0, episode * 0 + steps], 1)),
    )


def plan_of(num_shards, episodes, steps, **options):
    dataset = dataset_of(num_shards, episodes, steps)
    anchors = Anchors(dataset, None, (0, 0), drop_incomplete=False)
    return Plan.of(anchors, dataset, OrderOptions(**options)), anchors


def test_distinct_episodes_are_those_that_a_batch_holds():
    plan, anchors = plan_of(4, 3, 5, shuffle=False)
    assert distinct_episodes(plan, anchors, 7, np.array([0, 1, 7])).tolist() == [2, 2, 3]


def test_windows_per_episode_count_the_ranges_of_each():
    dataset = dataset_of(2, 2, 10)
    dataset.valid_ranges = (np.array([0, 2, 3, 3, 4]), np.array([[0, 3], [5, 10], [2, 4], [0, 10]]))
    assert Anchors(dataset, None, (0, 0), False).windows_per_episode.tolist() == [8, 2, 0, 10]


def test_an_order_with_a_tenth_of_the_shards_meets_as_many_episodes_as_a_permutation():
    # Resident shards and those entering make up 60 of 600.
    plan, anchors = plan_of(600, 10, 20, lanes=4, resident_shards=56)
    permuted = expected_distinct(anchors.windows_per_episode, 64)
    assert all(distinct > 0.98 * permuted for distinct in distinct_by_third(plan, anchors, 64))
