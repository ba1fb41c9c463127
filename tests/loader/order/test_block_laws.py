"""The four laws of the order by blocks, over a grid of shapes and topologies, alone and in mixtures."""

import random
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from laws import (
    assert_equal_batches,
    assert_partitions_exactly,
    assert_resumes_anywhere,
    assert_same_batches_everywhere,
)
from order_grid import TOPOLOGIES, Job, declared_shapes, plan_of, play, run_epoch, shapes, whole_epoch

import epistream as es
from epistream.errors import OptionError, StateError
from epistream.loader import agreement
from epistream.loader.order.mixture_plan import MixturePlan

SHAPES = [*list(shapes(42))[::2], *declared_shapes()[:5]]
# block_steps, and pool_blocks a lane.
SIZES = [(3, 2), (8, 6), (4, 40)]
REMAINDERS = ("drop", "pad", "uneven")


def by_blocks(windows, options, sizes):
    steps, pool = sizes
    return plan_of(windows, **options, by="blocks", block_steps=steps, pool_blocks=pool * options.get("lanes", 8))


@pytest.mark.parametrize(("number", "shape"), list(enumerate(SHAPES)))
def test_ranks_of_any_topology_partition_the_epoch_in_equal_batches(number, shape):
    plan = by_blocks(*shape, SIZES[number % 3])
    pick = random.Random(number)
    expected = whole_epoch(plan, 1)
    total = plan.num_windows
    assert sorted(expected) == [(shard, k) for shard, count in enumerate(shape[0]) for k in range(count)]
    for ranks_per_node in pick.sample(TOPOLOGIES, 4):
        size = sum(ranks_per_node)
        for batch_size in sorted({batch for batch in (1, 3, total // size) if 0 < batch * size <= total})[-2:]:
            job = Job(ranks_per_node, 0, batch_size)
            for remainder in REMAINDERS:
                run, repeats = run_epoch(plan, job, 1, remainder=remainder)
                assert_partitions_exactly(run, expected, remainder, job.global_batch, repeats)
                assert_same_batches_everywhere([run], expected, job.global_batch)
                if remainder != "uneven":
                    assert_equal_batches(run, batch_size)


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize(
    ("windows", "options", "sizes"),
    [
        ([40, 3, 17, 1, 29, 8], {"lanes": 4, "seed": 1}, (4, 3)),
        ([6] * 15, {"lanes": 3, "resident_shards": 9, "seed": 2}, (2, 2)),
        ([50], {"lanes": 8, "seed": 3, "reshuffle_lanes": True}, (8, 16)),
        ([9] * 30, {"nodes": 4, "global_batch": 48, "seed": 4}, (3, 5)),
    ],
)
def test_resume_after_any_batch_on_another_topology_continues_the_sequence(windows, options, sizes, remainder):
    plan = by_blocks(windows, options, sizes)
    jobs = [Job((1,), 0, 12), Job((2, 2), 0, 3), Job((2, 1), 0, 4), Job((1, 2, 3), 0, 2)]
    steps = 2 * -(-plan.num_windows // 12) + 2
    assert_resumes_anywhere(partial(play, plan, remainder), jobs, steps, stops=range(1, steps, 2))


def test_mixture_of_both_orders_gives_each_its_own_sequence():
    plans = (
        by_blocks([9, 14, 3, 20], {"lanes": 4, "seed": 1}, (4, 3)),
        plan_of([31, 8, 1, 1], lanes=4, seed=2),
    )
    mixture = MixturePlan(plans, (0.4, 0.6), stop="all_exhausted")
    found = [{}, {}]
    for epoch in range(3):
        positions = np.arange(mixture.num_windows)
        for dataset, own_epoch, own, _ in mixture.portions(epoch, positions, 12):
            shard, window = plans[dataset].epoch(own_epoch).windows(own)
            found[dataset].update(
                zip(
                    ((own_epoch, p) for p in own.tolist()),
                    zip(shard.tolist(), window.tolist(), strict=True),
                    strict=True,
                )
            )
    for plan, own in zip(plans, found, strict=True):
        whole = [whole_epoch(plan, epoch) for epoch in range(6)]
        assert len(own) > plan.num_windows
        assert all(window == whole[epoch][position] for (epoch, position), window in own.items())
    for start in (0, 37, mixture.num_windows - 1):
        uses = list(mixture.uses_from(1, start))
        assert [use.first for use in uses] == sorted(use.first for use in uses)
    assert mixture.describe()["plans"] == [plan.fingerprint for plan in plans]


def windows_of(stream):
    return [
        tuple(pair)
        for batch in stream
        for pair in zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def stream_of(aloha_shards):
    def make(by="blocks", **options):
        order = es.OrderOptions(lanes=2, by=by, **({"block_steps": 8, "pool_blocks": 8} if by == "blocks" else {}))
        return es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], order=order, **options)

    return make


def test_stream_by_blocks_gives_every_window_once_and_resumes_anywhere(stream_of):
    whole = windows_of(stream_of(remainder="pad"))
    assert len(set(whole)) == len(stream_of().job.part.plan.epoch(0).ends_block(np.arange(stream_of().job.num_windows)))
    for done in (1, 4):
        stream = stream_of(remainder="pad")
        for _ in zip(range(done), stream, strict=False):
            pass
        resumed = stream_of(remainder="pad")
        resumed.load_state_dict(stream.state_dict())
        assert windows_of(resumed) == whole[done * 10 :]


@pytest.mark.parametrize(
    ("saved", "ours", "message"),
    [
        ("windows", "blocks", "by is 'windows', this stream has 'blocks'"),
        ("blocks", "windows", "by is 'blocks', this stream has 'windows'"),
    ],
)
def test_state_of_the_other_order_is_refused_with_both_named(stream_of, saved, ours, message):
    with pytest.raises(StateError, match=message):
        stream_of(ours).load_state_dict(stream_of(saved).state_dict())


def test_state_of_other_blocks_is_refused_with_both_values(stream_of, aloha_shards):
    other = es.OrderOptions(lanes=2, block_steps=8, pool_blocks=9)
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], order=other)
    with pytest.raises(StateError, match=r"state: pool_blocks is 8, this stream has 9\. Make the stream"):
        stream.load_state_dict(stream_of().state_dict())


def test_state_by_windows_names_no_blocks(stream_of):
    assert not {"by", "block_steps", "pool_blocks"} & set(stream_of("windows").state_dict())


def test_validation_of_a_stream_by_blocks_is_in_the_order_of_the_dataset(stream_of):
    found = windows_of(stream_of(validation=True, split=None))
    assert len(found) == len(set(found))
    assert found == sorted(found)
    with pytest.raises(OptionError, match="shuffle: False with by='blocks'"):
        stream_of(shuffle=False)


@pytest.mark.parametrize("first", ["windows", "blocks"])
def test_ranks_of_the_two_orders_are_told_apart_whichever_comes_first(stream_of, monkeypatch, first):
    store, group = torch.distributed.HashStore(), torch.distributed.ProcessGroup(0, 2)
    distributed = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: 2,
        group=SimpleNamespace(WORLD=group),
        distributed_c10d=SimpleNamespace(_get_default_store=lambda: store),
    )
    monkeypatch.setattr(agreement, "distributed", distributed)
    monkeypatch.setattr(agreement, "_GROUPS", count())
    second = "blocks" if first == "windows" else "windows"
    agreement.check_agreement(stream_of(first, world=es.World.of(0, 2)).job)
    monkeypatch.setattr(agreement, "_GROUPS", count())  # as in a process of its own
    monkeypatch.setattr(agreement, "_STREAMS", type(agreement._STREAMS)())
    with pytest.raises(OptionError, match=f"by is '{second}', another rank has '{first}'"):
        agreement.check_agreement(stream_of(second, world=es.World.of(1, 2)).job)
