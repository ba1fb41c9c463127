"""What is said of an order: the words, what nodes fetch, and that advice which is followed keeps its promise."""

import json
import re

import numpy as np
import pytest
from made_up import made_up, plan_and_anchors

from epistream.loader.order.judgement import FAIR, GOOD, fetch_factor, judge, word_for
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import fitting_lanes
from epistream.loader.order.quality import distinct_episodes, expected_distinct, report

PICK = np.random.default_rng(11)
SHAPES = {
    "large": (PICK.integers(3000, 5000, 20_000), 400),
    "one episode a shard": (PICK.integers(100, 300, 3000), 1000),
    "short episodes": (PICK.integers(1000, 2000, 1000), 20),
    "ragged": (np.maximum(1, PICK.pareto(1.5, 800) * 1000).astype(int), 200),
    "sixty shards": (np.full(60, 2000), 100),
    "few episodes, most of them in a batch": (np.full(55, 300), 30),
    "ten shards": (np.full(10, 4000), 100),
    "one shard": ([5000], 50),
    "one episode": ([5000], 5000),
    "windows fewer than lanes": ([1, 1, 1], 1),
}
NODES = (1, 8, 127, 128)


def followed(advice):
    """The options that an advice prints, and the L and K that it says they are."""
    declared, lanes, resident = re.search(
        r"OrderOptions\((.*?)\), which is lanes=(\d+), resident_shards=(\d+)", advice
    ).groups()
    words = dict(word.split("=") for word in declared.split(", "))
    values = {name: value.strip('"') if '"' in value else int(value) for name, value in words.items()}
    return values, int(lanes), int(resident)


@pytest.mark.parametrize(
    ("share", "word"), [(1.3, "good"), (0.9, "good"), (0.89, "fair"), (0.5, "fair"), (0.49, "poor")]
)
def test_words_begin_where_the_table_says(share, word):
    assert (GOOD, FAIR) == (0.9, 0.5)
    assert word_for(share) == word


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_advice_that_is_followed_gives_what_it_promised(shape, nodes):
    dataset = made_up(*SHAPES[shape], shard_bytes=10**8)
    plan, _ = plan_and_anchors(dataset)
    found = judge(plan, nodes * 64, nodes)
    assert (found.advice is None) == (found.better is None)
    if found.advice is None:
        assert found.word == "good"
        assert not found.is_worth_a_warning
        return
    declared, lanes, resident = followed(found.advice)
    for options in (declared, {"lanes": lanes, "resident_shards": resident}):
        better, _ = plan_and_anchors(dataset, **options)
        assert (better.num_lanes, better.resident_shards) == (lanes, resident)
        again = judge(better, nodes * 64, nodes)
        assert again.word == "good"
        assert again.now == found.better
        assert again.better is None
        assert not again.is_worth_a_warning


def test_orders_of_one_eight_and_many_nodes_are_called_what_they_are():
    plan, _ = plan_and_anchors(made_up(*SHAPES["large"], shard_bytes=10**8))
    words = {nodes: judge(plan, nodes * 256, nodes) for nodes in NODES}
    assert {nodes: found.word for nodes, found in words.items()} == {1: "fair", 8: "poor", 127: "poor", 128: "poor"}
    assert {nodes: round(found.now.fetch_factor) for nodes, found in words.items()} == {1: 1, 8: 1, 127: 127, 128: 16}
    assert {nodes: found.is_worth_a_warning for nodes, found in words.items()} == {
        1: False,
        8: True,
        127: True,
        128: True,
    }
    assert "each of 128 nodes fetches 16.0 times its share, as lanes=8 is no multiple of 128" in words[128].summary
    assert "OrderOptions(nodes=8, global_batch=2048), which is lanes=8, " in words[8].advice
    assert words[127].better.lanes == 127


def test_promised_variety_is_there_when_episodes_are_counted():
    dataset = made_up(PICK.integers(300, 500, 2000), 40)
    before, anchors = plan_and_anchors(dataset)
    after, _ = plan_and_anchors(dataset, nodes=8, global_batch=1024)
    permuted = expected_distinct(anchors.windows_per_episode, 1024)
    batches = np.linspace(0, after.num_windows // 1024 - 1, 40).astype(int)
    for plan, nodes in ((before, 8), (after, 8)):
        share = distinct_episodes(plan, anchors, 1024, batches).mean() / permuted
        assert judge(plan, 1024, nodes).now.distinct_share == pytest.approx(share, abs=0.05)
    assert judge(before, 1024, 8).word == "poor"
    assert share >= GOOD


@pytest.mark.parametrize(("lanes", "nodes"), [(8, 1), (8, 4), (8, 3), (6, 4), (5, 10), (8, 16), (127, 128), (1, 5)])
@pytest.mark.parametrize("num_shards", [1, 12, 600])
def test_fetch_factor_is_what_nodes_fetch_when_counted(lanes, nodes, num_shards):
    dataset = made_up(np.full(num_shards, 600 // num_shards * 10), 5)
    plan, anchors = plan_and_anchors(dataset, lanes=lanes, resident_shards=2 * lanes)
    fetched = report(plan, anchors, 1, nodes, 1).fetch_bytes / (num_shards * 10**6)
    factor = fetch_factor(plan, plan.num_lanes, nodes)
    # A shard at a cut counts once a lane, unless the node keeps all its shards anyway.
    assert factor >= min(fetched, nodes) - 1e-9
    assert factor <= fetched * (1 + 2 * lanes / num_shards)
    if num_shards == 600 and lanes < 10:
        assert factor == pytest.approx(nodes / np.gcd(nodes, lanes), rel=0.02)


def test_nodes_that_share_few_shards_are_told_and_not_warned_of():
    found = judge(plan_and_anchors(made_up([4000], 20))[0], 512, 8)
    assert "each of 8 nodes fetches 8.0 times its share, as there are few shards" in found.summary
    assert not found.is_worth_a_warning
    assert found.advice is None


def test_declared_job_bounded_by_its_bytes_is_told_the_bytes():
    dataset = made_up(*SHAPES["large"], shard_bytes=10**9)
    plan, _ = plan_and_anchors(dataset, nodes=8, global_batch=2048)
    assert plan.resident_shards == 8 * 8  # 8 GiB hold 8 shards of 1 GB, on each of 8 nodes
    found = judge(plan, 2048, 8)
    assert found.word == "poor"
    declared, _, resident = followed(found.advice)
    assert declared["resident_bytes"] == f"{-(-resident // 8 * 10**9 // 2**30)}GiB"
    assert judge(plan_and_anchors(dataset, **declared)[0], 2048, 8).word == "good"


def test_declared_values_count_on_another_topology_and_the_judgement_is_of_what_runs():
    plan, _ = plan_and_anchors(made_up(*SHAPES["large"]), nodes=8, global_batch=2048)
    assert judge(plan, 2048, 8).advice is None
    elsewhere = judge(plan, 2048, 6)  # resumed on six nodes: the order stays
    assert (elsewhere.now.lanes, elsewhere.word) == (8, "good")
    assert elsewhere.now.fetch_factor == pytest.approx(3, rel=0.01)
    _, lanes, _ = followed(elsewhere.advice)
    assert lanes == 12


def test_order_without_shuffling_is_not_judged():
    assert judge(plan_and_anchors(made_up([50] * 9, 5), shuffle=False)[0], 16, 4) is None


@pytest.mark.parametrize("options", [{}, {"lanes": 3}, {"reshuffle_lanes": True}])
def test_judgement_as_json_holds_the_figures_and_the_sentences(options):
    found = judge(plan_and_anchors(made_up([50] * 90, 5), **options)[0], 512, 4)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["word"] == found.word
    assert told["now"]["lanes"] == found.now.lanes
    assert str(found) == f"{told['summary']}. {told['advice']}" if told["advice"] else told["summary"]


@pytest.mark.parametrize(
    ("lanes", "nodes", "num_shards", "expected"),
    [
        (8, 1, 1000, 8),
        (8, 8, 1000, 8),
        (8, 3, 1000, 9),
        (8, 127, 1000, 127),
        (8, 128, 10**5, 128),
        (16, 8, 1000, 16),
        (8, 1, 10, 5),  # two shards a lane
        (8, 4, 13, 4),
        (8, 128, 10, 128),  # but a lane for each node
        (8, 1, 1, 1),
    ],
)
def test_lanes_that_fit_are_a_multiple_of_the_nodes_with_two_shards_each(lanes, nodes, num_shards, expected):
    assert fitting_lanes(lanes, nodes, num_shards) == expected


def test_default_options_declare_nothing():
    assert (OrderOptions().nodes, OrderOptions().global_batch) == (None, None)


@pytest.mark.parametrize(
    ("windows", "steps", "pool", "batch", "nodes"),
    [([4000] * 300, 400, 112, 64, 1), ([4000] * 300, 400, 48, 64, 1), ([400] * 900, 400, 128, 256, 8)],
)
def test_an_order_by_blocks_is_judged_by_counting_and_its_advice_keeps_its_promise(windows, steps, pool, batch, nodes):
    dataset = made_up(windows, steps, shard_bytes=10**8)
    plan, anchors = plan_and_anchors(dataset, by="blocks", block_steps=30, pool_blocks=pool)
    found = judge(plan, batch, nodes)
    middle = plan.num_windows // batch // 2
    counted = distinct_episodes(plan, anchors, batch, np.arange(middle, middle + 100)).mean()
    share = counted / expected_distinct(anchors.windows_per_episode, batch)
    assert found.now.distinct_share == pytest.approx(share, abs=0.06)
    assert found.now.pool_blocks == pool
    assert f"pool_blocks={pool})" in found.summary
    if found.word == "good":
        assert found.advice is None
        return
    assert f"pool_blocks={found.better.pool_blocks}" in found.declared
    declared, lanes, resident = followed(found.advice)
    better, _ = plan_and_anchors(dataset, **declared)
    assert (better.num_lanes, better.resident_shards, better.pool_blocks) == (lanes, resident, found.better.pool_blocks)
    now = judge(better, batch, nodes).now
    assert now.distinct_share == pytest.approx(found.better.distinct_share, abs=0.02)
    assert now.distinct_share > found.now.distinct_share


def test_only_an_order_by_blocks_is_said_to_have_a_pool():
    plan, _ = plan_and_anchors(made_up([4000] * 300, 400))
    assert judge(plan, 64, 1).now.pool_blocks is None
    assert "pool_blocks" not in str(judge(plan, 2048, 8))
