"""What the log says of the order: once, on one rank, louder where something should be done."""

import logging

import numpy as np
import pytest
from made_up import made_up, plan_and_anchors
from torch.utils.data import DataLoader

import epistream as es
from epistream.loader.order.mixture_plan import MixturePlan
from epistream.loader.order_log import log_order
from epistream.loader.reading.job import ReadJob

WORLD = es.World


@pytest.fixture
def told(caplog):
    """What was logged: (level, message)."""
    caplog.set_level(logging.INFO, "epistream.loader.order_log")
    return lambda: [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "epistream.loader.order_log"
    ]


class Part:
    """As much of a `DatasetPart` as is looked at."""

    def __init__(self, dataset, **options):
        self.dataset = dataset
        self.plan, self.anchors = plan_and_anchors(dataset, **options)


def job_of(world, batch_size=32, datasets=1, **options):
    parts = tuple(Part(made_up(np.full(400, 1000), 50), **options) for _ in range(datasets))
    mixture = MixturePlan([part.plan for part in parts], [1] * datasets) if datasets > 1 else None
    return ReadJob(parts, world, batch_size, "drop", None, mixture)


@pytest.mark.parametrize(
    ("world", "options", "level", "words"),
    [
        (WORLD(), {}, "INFO", "shuffle good: a batch of 32 windows holds 1.0"),
        (WORLD.of(0, 16), {}, "INFO", "shuffle fair: a batch of 512 windows holds 0."),
        (WORLD.of(0, 64, 8), {}, "WARNING", "shuffle poor: a batch of 2,048 windows holds 0.1"),
        (WORLD.of(0, 3, 1), {}, "WARNING", "each of 3 nodes fetches 3.0 times its share"),
        (WORLD.of(0, 64, 8), {"nodes": 8, "global_batch": 2048}, "INFO", "shuffle good"),
    ],
)
def test_order_is_told_on_rank_0_at_the_level_of_its_worth(told, world, options, level, words):
    log_order(job_of(world, **options))
    [(found, message)] = told()
    assert found == level
    assert words in message
    assert message.startswith("made up: ")
    assert message.endswith(".")


def test_other_ranks_and_orders_without_shuffling_are_silent(told):
    log_order(job_of(WORLD.of(1, 64, 8)))
    log_order(job_of(WORLD.of(0, 64, 8), shuffle=False))
    assert told() == []


def test_mixture_is_told_of_lanes_that_are_no_multiple_of_its_nodes(told):
    log_order(job_of(WORLD.of(0, 12, 4), datasets=2))
    [(level, message)] = told()
    assert level == "WARNING"
    assert "each of 3 nodes fetches 3 times its share, as lanes=8 is no multiple of 3" in message
    assert "Give all streams OrderOptions(lanes=9)" in message


@pytest.mark.parametrize("options", [{"nodes": 3}, {"lanes": 9}])
def test_mixture_whose_lanes_fit_its_nodes_is_silent(told, options):
    log_order(job_of(WORLD.of(0, 12, 4), datasets=2, **options))
    assert told() == []


def test_loader_tells_of_its_order_once_over_all_epochs(aloha_shards, told):
    with es.StreamingLoader(
        es.EpisodeStream(aloha_shards, batch_size=70, features=["action"]), num_workers=1
    ) as loader:
        for _ in range(2):
            list(loader)
    [(level, message)] = told()
    assert (level, "shuffle good" in message) == ("INFO", True)


def test_stream_without_a_loader_tells_of_its_order_once_over_all_epochs(aloha_shards, told):
    stream = es.EpisodeStream(aloha_shards, batch_size=70, features=["action"])
    for epoch in range(2):
        stream.set_epoch(epoch)
        list(DataLoader(stream, batch_size=None))
    assert len(told()) == 1


def test_workers_of_a_stock_loader_share_that_the_order_was_told(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=35, features=["action"])
    for epoch in range(2):
        stream.set_epoch(epoch)
        assert stream._cells.tolist()[:7] == [epoch, 0, 0, int(epoch > 0), 0, 0, 1]
        assert len(list(DataLoader(stream, batch_size=None, num_workers=2))) == 4
    assert stream.cursor == (1, 0)


def test_ranks_of_which_nobody_knows_the_nodes_are_not_said_to_fetch_in_vain(told):
    nodes_unknown = WORLD(0, 3, node=0, num_nodes=3, uneven=True)
    log_order(job_of(nodes_unknown))
    [(level, message)] = told()
    assert level == "INFO"
    assert "nodes" not in message
