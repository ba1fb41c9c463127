"""The counters of a loader: what is added up, what an interval is, and what survives a close."""

import json

import pytest

import epistream as es
from epistream.cache.stats import CacheStats
from epistream.loader.frames.keeping import DecodedStats
from epistream.loader.monitoring.stats import LoaderStats, StatsRecorder
from epistream.loader.workers import thread_time
from epistream.loader.workers.thread_time import ThreadTime, ThreadTimer, read_thread_time
from epistream.loader.workers.worker import Message

LOW = ["action", "observation.state"]


def message(busy_s: float = 1.0, idle_s: float = 0.5, cpu_s: float = 0.75, hits: int = 0) -> Message:
    effort = ThreadTime(cpu_s=cpu_s, queue_s=0.125, storage_bytes=512)
    cache = CacheStats(hits=hits, tier="shm", reason="asked for")
    return Message(1, 0, 0, 8, None, busy_s, idle_s, cache, effort)


def test_stats_of_two_workers_are_summed_and_the_rest_of_busy_time_is_blocked():
    recorder = StatsRecorder()
    recorder.begin()
    recorder.receive(0, message(hits=3), waited_s=0.25)
    recorder.receive(1, message(hits=4), waited_s=0.5)
    recorder.receive(0, message(hits=5), waited_s=0.0)
    for copied in (False, True, False):
        recorder.hand_out(8, copied)
    stats = recorder.snapshot(shared_cache=False)
    assert (stats.num_batches, stats.num_windows, stats.num_copied_batches) == (3, 24, 1)
    assert (stats.worker_busy_s, stats.worker_idle_s) == (3.0, 1.5)
    assert stats.effort == ThreadTime(2.25, 0.375, 1536)
    assert stats.worker_blocked_s == 0.375
    assert stats.cache.hits == 9  # the newest of each worker
    assert (stats.data_wait_s, stats.start_wait_s) == (0.75, 0.25)


def test_stats_of_threads_take_the_newest_count_of_the_cache_they_share():
    recorder = StatsRecorder()
    for worker, hits in ((0, 1), (1, 2), (0, 3)):
        recorder.receive(worker, message(hits=hits), waited_s=0.0)
    assert recorder.snapshot(shared_cache=True).cache.hits == 3


def test_stats_after_a_restart_keep_what_the_old_workers_counted():
    recorder = StatsRecorder()
    recorder.receive(0, message(hits=7), waited_s=1.0)
    recorder.restart(shared_cache=False)
    assert recorder.snapshot(shared_cache=False).cache.hits == 7
    recorder.receive(0, message(hits=2), waited_s=1.0)
    stats = recorder.snapshot(shared_cache=False)
    assert stats.cache.hits == 9
    assert stats.start_wait_s == 2.0  # new workers start anew


def decoded_message(*counts, why=""):
    return Message(1, 0, 0, 8, decoded=DecodedStats(*counts, why))


def test_stats_of_decoded_frames_add_up_over_workers_and_their_successors():
    recorder = StatsRecorder()
    recorder.receive(0, decoded_message(1, 2, 3, 40, 100), waited_s=0.0)
    recorder.receive(1, decoded_message(10, 20, 30, 60, 100, why="an old reason"), waited_s=0.0)
    recorder.receive(0, decoded_message(2, 3, 4, 50, 100, why="the newest"), waited_s=0.0)
    assert recorder.snapshot(shared_cache=False).decoded == DecodedStats(12, 23, 34, 60, 100, "the newest")
    recorder.restart(shared_cache=False)
    recorder.receive(0, decoded_message(100, 0, 0, 100, 100), waited_s=0.0)
    assert recorder.snapshot(shared_cache=False).decoded == DecodedStats(112, 23, 34, 100, 100, "the newest")


def test_stats_of_decoded_frames_of_threads_are_those_of_their_process():
    recorder = StatsRecorder()
    for worker, count in ((0, 1), (1, 2), (0, 3)):
        recorder.receive(worker, decoded_message(count, count, 0, 5, 9), waited_s=0.0)
    recorder.restart(shared_cache=True)
    assert recorder.snapshot(shared_cache=True).decoded == DecodedStats(3, 3, 0, 5, 9)
    recorder.receive(0, decoded_message(7, 3, 0, 5, 9), waited_s=0.0)
    assert recorder.snapshot(shared_cache=True).decoded == DecodedStats(7, 3, 0, 5, 9)


def test_stats_snapshot_does_not_change_afterwards():
    recorder = StatsRecorder()
    recorder.receive(0, message(), waited_s=1.0)
    recorder.hand_out(8, copied=False)
    before = recorder.snapshot(shared_cache=False)
    recorder.receive(0, message(), waited_s=1.0)
    recorder.hand_out(8, copied=False)
    assert (before.num_batches, before.effort.cpu_s) == (1, 0.75)


def test_stats_data_wait_share_leaves_the_start_out():
    stats = LoaderStats(num_batches=9, elapsed_s=12.0, data_wait_s=5.0, start_wait_s=2.0)
    assert stats.data_wait_share == 0.3


@pytest.mark.parametrize(
    "stats",
    [
        LoaderStats(),
        LoaderStats(num_batches=1, elapsed_s=2.0, data_wait_s=2.0, start_wait_s=2.0),
        LoaderStats(num_batches=1, elapsed_s=1.0, data_wait_s=2.0, start_wait_s=2.0),
    ],
)
def test_stats_with_nothing_but_a_start_have_no_share(stats):
    assert stats.data_wait_share == 0.0
    assert stats.windows_per_s >= 0.0


def test_stats_since_is_what_was_added():
    earlier = LoaderStats(
        num_batches=2,
        num_windows=16,
        elapsed_s=1.0,
        data_wait_s=0.5,
        start_wait_s=0.5,
        effort=ThreadTime(1.0, 0.5, 512),
        cache=CacheStats(hits=1, fills=2, tier="shm"),
        decoded=DecodedStats(1, 2, 3, 40, 100, "full"),
    )
    later = LoaderStats(
        num_batches=5,
        num_windows=40,
        num_copied_batches=1,
        elapsed_s=3.0,
        data_wait_s=1.5,
        start_wait_s=0.5,
        effort=ThreadTime(3.0, 0.75, 1024),
        cache=CacheStats(hits=4, fills=2, tier="disk"),
        decoded=DecodedStats(5, 7, 9, 60, 100, "fuller"),
    )
    added = later.since(earlier)
    assert (added.num_batches, added.num_windows, added.num_copied_batches) == (3, 24, 1)
    assert (added.elapsed_s, added.data_wait_s, added.start_wait_s) == (2.0, 1.0, 0.0)
    assert added.effort == ThreadTime(2.0, 0.25, 512)
    assert (added.cache.hits, added.cache.fills, added.cache.tier) == (3, 0, "disk")
    assert added.decoded == DecodedStats(4, 5, 6, 60, 100, "fuller")
    assert added.windows_per_s == 12.0


def test_effort_of_work_is_cpu_time_of_this_thread():
    before = read_thread_time()
    sum(range(200_000))
    spent = read_thread_time() - before
    assert spent.cpu_s > 0
    assert spent.queue_s >= 0


def test_effort_meter_asks_rarely_and_loses_nothing(monkeypatch):
    now, total = 10.0, ThreadTime(1.0, 0.5, 512)
    monkeypatch.setattr(thread_time.time, "perf_counter", lambda: now)
    monkeypatch.setattr(thread_time, "read_thread_time", lambda: total)
    timer = ThreadTimer()
    now, total = 10.001, ThreadTime(2.0, 0.75, 1024)
    assert timer.lap() == ThreadTime()
    now, total = 10.006, ThreadTime(4.0, 1.0, 2048)
    assert timer.lap() == ThreadTime(3.0, 0.5, 1536)
    assert timer.lap() == ThreadTime()


@pytest.mark.parametrize("way", [{"num_workers": 2}, {"num_workers": 0, "num_threads": 2}, {"num_workers": 0}])
def test_loader_stats_count_every_window_and_survive_close(aloha_shards, way):
    if way == {"num_workers": 0}:
        way = {"num_workers": 0, "num_threads": 0}
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=LOW)
    with es.StreamingLoader(stream, **way) as loader:
        assert [len(batch["step_index"]) for batch in loader] == [10] * 14
        first = loader.stats()
        loader.close()
        assert loader.stats() == first
        for _ in loader:
            pass
        second = loader.stats()
    assert (first.num_windows, second.num_windows) == (140, 280)
    assert second.cache.direct > first.cache.direct > 0
    assert first.worker_busy_s > 0
    assert first.effort.cpu_s >= 0
    assert json.loads(json.dumps(second.to_json()))["num_batches"] == 28
