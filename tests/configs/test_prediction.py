"""Predictions: each thing that can limit a node does, at the rate that was measured."""

from dataclasses import replace

import pytest

import epistream as es
from epistream.configs.prediction import Choice, predict
from epistream.configs.survey import Place, Survey
from epistream.loader.measuring.rates import LoadRate

# Four cores; one worker reads 100 windows/s, four of them 320 (processes) or 200 (threads).
FOUND = Survey(
    place=Place("a local file system (ext4)", shared_by_pages=True),
    dataset_bytes=1000,
    num_windows=100,
    decoded_bytes=30_000,
    batch_size=10,
    batch_bytes=50,
    num_cores=4,
    alone={"processes": LoadRate(1, 100.0, 7), "threads": LoadRate(1, 100.0)},
    together={"processes": LoadRate(4, 320.0, 7), "threads": LoadRate(4, 200.0)},
    more_frames=1.0,
    finish_s=0.0001,
    fetch_bytes_per_s=2000.0,
    main_bytes=11,
)


@pytest.mark.parametrize(
    ("kind", "number", "ranks", "rate"),
    [
        ("processes", 1, 1, 100.0),
        ("processes", 2, 1, 2 * 100 * (1 - 0.2 / 3)),
        ("processes", 4, 1, 320.0),
        ("processes", 9, 1, 320.0),
        ("processes", 2, 2, 320.0),
        ("threads", 1, 1, 100.0),
        ("threads", 4, 1, 200.0),
        ("threads", 4, 2, 320.0),
    ],
)
def test_rate_follows_the_workers_up_to_the_cores(kind, number, ranks, rate):
    found = predict(FOUND, Choice(kind, number, 2), ranks, cache_bytes=10**6)
    assert found.windows_per_s == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(
    ("changed", "cache_bytes", "limit", "rate"),
    [
        (FOUND, 10**6, "reading", 100.0),
        (replace(FOUND, finish_s=1.0), 10**6, "hand-over", 10.0),
        (replace(FOUND, fetch_bytes_per_s=20.0), 10**6, "reading", 100.0),  # once is enough, it stays
        (replace(FOUND, fetch_bytes_per_s=20.0), 999, "fetching", 2.0),
        (replace(FOUND, more_frames=2.0), 10**6, "reading", 50.0),
    ],
)
def test_limit_is_the_least_term(changed, cache_bytes, limit, rate):
    found = predict(changed, Choice("processes", 1, 2), 1, cache_bytes)
    assert found.limit == limit
    assert found.windows_per_s == pytest.approx(rate)


@pytest.mark.parametrize(("number", "limit"), [(3, "reading"), (4, "cores"), (5, "cores")])
def test_limit_is_the_cores_when_there_are_no_more(number, limit):
    assert predict(FOUND, Choice("processes", number, 2), 1, cache_bytes=10**6).limit == limit


def test_first_epoch_fetches_whatever_fits():
    found = predict(replace(FOUND, fetch_bytes_per_s=20.0), Choice("processes", 1, 2), 1, cache_bytes=10**6)
    assert (found.first_epoch_windows_per_s, found.windows_per_s) == (2.0, 100.0)


def test_memory_counts_every_rank_worker_slot_and_what_the_cache_may_hold():
    found = predict(FOUND, Choice("processes", 3, 2), 2, cache_bytes=600)
    assert found.ring_bytes == 3 * 4 * 2 * 50
    assert found.process_bytes == 2 * 11 + 6 * 7
    assert found.cache_bytes == 600
    assert found.memory_bytes == 1200 + 64 + 600
    threads = predict(FOUND, Choice("threads", 3, 2), 2, cache_bytes=10**6)
    assert (threads.process_bytes, threads.cache_bytes) == (22, 1000)


def test_memory_counts_the_small_batches_that_share_slots():
    found = replace(FOUND, batch_bytes=1 << 20, num_windows=10_000)
    # Two workers of each of two ranks, in four slots each: 16 batches of 1 MiB in each, of 500 batches a rank.
    assert predict(found, Choice("threads", 2, 2), 2, cache_bytes=600).ring_bytes == 2 * 2 * 4 * 16 << 20
    short = replace(found, num_windows=10 * 2 * 40)  # 40 batches a rank: each worker has four slots' worth
    assert predict(short, Choice("threads", 2, 2), 2, cache_bytes=600).ring_bytes == 2 * 2 * 4 * 5 << 20


def test_memory_of_batches_is_that_of_the_loaders_ring(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=2, features=["action"], remainder="pad")
    job = stream.job
    found = replace(FOUND, num_windows=stream.num_windows, batch_size=2, batch_bytes=job.layout.num_bytes)
    with es.StreamingLoader(stream, num_workers=0, num_threads=2) as loader:
        next(iter(loader))
        ring, together = loader._crew.pool.ring, loader._crew.slots.batches_per_slot
    assert together > 1
    predicted = predict(found, Choice("threads", 2, 2), 1, cache_bytes=600).ring_bytes
    assert predicted == ring.num_slots * together * job.layout.num_bytes


def test_rate_on_a_machine_with_one_core():
    one = LoadRate(1, 100.0)
    found = replace(
        FOUND, num_cores=1, alone={"processes": one, "threads": one}, together={"processes": one, "threads": one}
    )
    assert predict(found, Choice("processes", 1, 2), 1, 10**6).windows_per_s == pytest.approx(100, rel=0.01)
