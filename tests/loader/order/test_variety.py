"""The closed form of distinct episodes in a batch, against counting and against exact figures."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
from made_up import made_up, plan_and_anchors

from epistream.loader.order.lanes import Lanes
from epistream.loader.order.quality import distinct_episodes, expected_distinct
from epistream.loader.order.variety import EpisodeMix, _met

RAGGED = np.maximum(1, np.random.default_rng(4).normal(2000, 600, 300)).astype(int)


def counted(plan, anchors, global_batch, epochs=1):
    """The mean over all batches of an epoch, or sixty of them."""
    num_batches = plan.num_windows // global_batch
    batches = np.unique(np.linspace(0, num_batches - 1, min(num_batches, 60)).astype(int))
    return np.mean([distinct_episodes(plan, anchors, global_batch, batches, epoch).mean() for epoch in range(epochs)])


@pytest.mark.parametrize("stretches", [0.0, 0.25, 0.7, 1.0, 1.3, 1.9, 2.0, 3.5])
def test_an_interval_meets_an_evenly_spread_thing_as_often_as_in_a_simulation(stretches):
    pick = np.random.default_rng(0)
    places = np.arange(8) + pick.random((100_000, 8))
    begin = 2 + pick.random((100_000, 1))
    met = ((places >= begin) & (places < begin + stretches)).any(axis=1).mean()
    assert _met(np.array([stretches]))[0] == pytest.approx(met, abs=0.01)


@pytest.mark.parametrize(
    ("windows_per_shard", "steps", "global_batch", "lanes", "resident"),
    [
        (RAGGED, 400, 64, 8, 16),
        (RAGGED, 400, 256, 8, 16),
        (RAGGED, 400, 256, 8, 64),
        (RAGGED, 400, 2048, 8, 64),
        (RAGGED, 400, 4096, 4, 80),  # a batch takes half a segment of each lane
        (RAGGED, 20, 512, 8, 16),  # short episodes: a segment has one or two windows of each
        (RAGGED, 2000, 512, 8, 128),  # one episode a shard
        (RAGGED[:6], 100, 64, 8, 16),  # fewer shards than lanes: all are resident
        (RAGGED[:40], 100, 128, 4, 16),  # the ends of the epoch are half of it
        (np.full(400, 50), 50, 1600, 2, 40),  # a batch reaches over many segments
        (np.tile([40, 4000], 60), 400, 256, 4, 24),
    ],
)
def test_distinct_episodes_are_those_that_counting_finds(windows_per_shard, steps, global_batch, lanes, resident):
    dataset = made_up(windows_per_shard, steps)
    plan, anchors = plan_and_anchors(dataset, lanes=lanes, resident_shards=resident)
    share = plan.episode_mix(plan.num_lanes).share(global_batch, plan.parts)
    permuted = expected_distinct(anchors.windows_per_episode, global_batch)
    assert share == pytest.approx(counted(plan, anchors, global_batch) / permuted, abs=0.06)


@pytest.mark.parametrize("global_batch", [1, 8, 500, 30_000])
def test_distinct_episodes_of_a_permutation_are_the_exact_ones_almost(global_batch):
    plan, anchors = plan_and_anchors(made_up(RAGGED, 90))
    exact = expected_distinct(anchors.windows_per_episode, global_batch)
    assert plan.episode_mix(8).distinct_permuted(global_batch) == pytest.approx(exact, rel=0.01)


def test_distinct_episodes_grow_with_the_resident_shards_up_to_all():
    plan, _ = plan_and_anchors(made_up(RAGGED, 400))
    mix = plan.episode_mix(4)
    shares = [mix.share(512, parts) for parts in range(2, 90)]
    assert all(more >= fewer - 0.01 for fewer, more in pairwise(shares))
    assert shares[0] < 0.3
    assert shares[-1] >= 1


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_parts_for_a_share_are_the_fewest_that_reach_it(share):
    plan, _ = plan_and_anchors(made_up(RAGGED, 400))
    mix = plan.episode_mix(4)
    parts = mix.parts_for(512, share)
    assert parts > 2
    assert mix.share(512, parts) >= share > mix.share(512, parts - 1)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_parts_of_few_shards_are_two_or_all(num_shards):
    plan, _ = plan_and_anchors(made_up(np.full(num_shards, 100), 10))
    for lanes in (1, 8):
        assert 2 <= plan.episode_mix(lanes).parts_for(64, 0.95) <= 3


@pytest.mark.parametrize(("num_lanes", "seed"), list(product((1, 2, 3, 7, 40), range(4))))
def test_counts_of_lanes_are_those_of_their_pieces(num_lanes, seed):
    pick = np.random.default_rng(seed)
    per_shard = pick.integers(0, 30, 20)
    per_shard[3] += 300  # over several lanes
    lanes = Lanes(pick.permutation(20), per_shard, num_lanes)
    episodes = pick.integers(1, 9, 20)
    counts = lanes.counts(episodes)
    pieces = [lanes.pieces(lane) for lane in range(num_lanes)]
    assert counts.pieces.tolist() == [len(each) for each in pieces] == [lanes.num_pieces(n) for n in range(num_lanes)]
    assert counts.squares.tolist() == [math.fsum(each.count**2.0) for each in pieces]
    assert counts.values.sum() == episodes[per_shard > 0].sum()
    shares = [np.sum(episodes[each.shard] * each.count / per_shard[each.shard]) for each in pieces]
    assert counts.values.tolist() == pytest.approx(shares, abs=1)


def test_figures_are_made_of_operations_that_give_the_same_bits_everywhere(monkeypatch):
    """Ranks compute K from them, each on its machine, where functions of libm and numpy's sums may differ."""

    def refuse(*_, **__):
        raise AssertionError("not the same on every machine")

    plan, _ = plan_and_anchors(made_up(RAGGED, 90))
    for name in ("exp", "log", "log1p", "expm1", "power", "sqrt", "dot", "mean", "sum", "interp", "prod", "einsum"):
        monkeypatch.setattr(np, name, refuse)
    for name in ("exp", "log", "log1p", "pow", "lgamma", "sqrt"):
        monkeypatch.setattr(math, name, refuse)
    mix = EpisodeMix(plan.lanes(), plan.shard_episodes, plan._episodes.windows_per_episode)
    assert mix.parts_for(512, 0.95) == 5
