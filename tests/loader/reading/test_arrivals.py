"""Waiting for shards that are read ahead: as long as that is better than reading them, and never for the dead."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import epistream as es
from epistream.cache.ahead_board import AheadBoard, number_of
from epistream.cache.source import page_cache
from epistream.cache.store.places import file_system_type, is_memory
from epistream.loader.reading import arrivals
from epistream.loader.reading.arrivals import Arrivals
from epistream.loader.shards.shard_entry import shard_entry

RECORDINGS = Path(__file__).resolve().parents[3] / "examples" / "data" / "aloha"


class Clock:
    """Time that passes only in sleeps, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 100.0
        self.events: list[tuple[float, object]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for at, event in list(self.events):
            if at <= self.now:
                self.events.remove((at, event))
                event()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "shards"
    es.pack(RECORDINGS, folder, shard_size="1MiB")
    return es.open_dataset(folder)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(arrivals, "time", made)
    return made


@pytest.fixture
def waiting(dataset, clock):
    """The leader's board, and the arrivals of a reader that takes a batch to cost a second."""
    path = Path(dataset.index_url[0])
    leader, made = AheadBoard(path), Arrivals()
    made.follow(path)
    yield leader, made
    leader.close()
    made.close()


def numbers(dataset) -> list[int]:
    return [number_of(shard_entry(dataset, shard)) for shard in range(dataset.num_shards)]


def test_batch_waits_until_its_shard_is_there_and_gives_up_what_it_holds_once(dataset, clock, waiting) -> None:
    leader, reader = waiting
    first, second = numbers(dataset)[:2]
    leader.expect(first)
    leader.tell(1, 20)
    clock.events = [(clock.now + 3, lambda: leader.arrive(first))]
    released = []
    reader.begin_batch()
    began = clock.now
    reader.wait_for(dataset, 0, lambda: released.append(0))
    assert 3 <= clock.now - began < 3.1
    reader.wait_for(dataset, 1, lambda: released.append(1))
    leader.expect(first)
    reader.wait_for(dataset, 0, lambda: released.append(2))
    assert released == [0], "the second is not expected, and the first was there"
    reader.begin_epoch()
    leader.arrive(first)
    leader.expect(second)
    clock.events = [(clock.now + 1, lambda: leader.arrive(second))]
    reader.begin_batch()
    reader.wait_for(dataset, 1, lambda: released.append(3))
    assert released == [0, 3]


def test_batch_waits_as_many_times_its_own_cost_as_the_leader_says_and_for_no_other_shard_then(
    dataset, clock, waiting
) -> None:
    leader, reader = waiting
    for number in numbers(dataset):
        leader.expect(number)
    count = iter(range(1, 10_000))
    leader.tell(next(count), 4)

    def go_on() -> None:
        leader.tell(next(count), 4)
        clock.events.append((clock.now + 0.5, go_on))

    clock.events = [(clock.now, go_on)]
    reader.begin_batch()
    began = clock.now
    reader.wait_for(dataset, 0, lambda: None)
    assert 4 <= clock.now - began < 4.1
    reader.wait_for(dataset, 1, lambda: None)
    assert clock.now - began < 4.1
    clock.now += 2  # it reads them itself
    reader.end_batch()
    reader.begin_batch()
    began = clock.now
    reader.wait_for(dataset, 0, lambda: None)
    assert 8 <= clock.now - began < 8.2


def test_leader_that_does_nothing_for_seconds_is_waited_for_once(dataset, clock, waiting) -> None:
    leader, reader = waiting
    for number in numbers(dataset):
        leader.expect(number)
    leader.tell(5, 200)
    began = clock.now
    for shard in range(2):
        reader.begin_batch()
        reader.wait_for(dataset, shard, lambda: None)
        clock.now += 1  # it reads it itself
        reader.end_batch()
    assert 7 <= clock.now - began < 7.2
    leader.tell(6, 200)  # it goes on
    clock.events = [(clock.now + 1, lambda: leader.arrive(numbers(dataset)[0]))]
    began = clock.now
    reader.begin_batch()
    reader.wait_for(dataset, 0, lambda: None)
    assert 1 <= clock.now - began < 1.1


def test_first_batch_waits_for_nothing_and_tells_the_leader_until_it_is_read(dataset, clock, waiting) -> None:
    leader, reader = waiting
    leader.expect(numbers(dataset)[0])
    leader.tell(1, 200)
    reader.begin_batch(is_first=True)
    reader.wait_for(dataset, 0, lambda: pytest.fail("it waits"))
    assert leader.is_first()
    reader.end_batch()
    assert not leader.is_first()


def test_leader_that_dies_meanwhile_is_not_waited_for(dataset, clock, waiting) -> None:
    leader, reader = waiting
    leader.expect(numbers(dataset)[0])
    leader.tell(1, 200)
    clock.events = [(clock.now + 1, leader.close)]
    reader.begin_batch()
    began = clock.now
    reader.wait_for(dataset, 0, lambda: None)
    assert clock.now - began < 1.1


def test_nobody_waits_where_nobody_reads_ahead(dataset, clock, waiting, monkeypatch) -> None:
    leader, reader = waiting
    asked = []
    told = AheadBoard.told
    monkeypatch.setattr(AheadBoard, "told", lambda board: asked.append(0) or told(board))
    leader.expect(numbers(dataset)[0])
    for _ in range(50):
        reader.begin_batch()
        reader.wait_for(dataset, 0, lambda: pytest.fail("it waits"))
        reader.end_batch()
    assert len(asked) == 1, "asked anew only when time has passed"
    Arrivals().wait_for(dataset, 0, lambda: pytest.fail("it waits"))


def evict(folder: Path) -> None:
    for file in folder.iterdir():
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@pytest.mark.parametrize("way", [{"num_workers": 2}, {"num_workers": 0, "num_threads": 2}])
@pytest.mark.parametrize("mode", ["auto", "off"])
def test_loader_gives_the_same_batches_from_a_disk_that_is_judged_slow(way, mode, tmp_path, monkeypatch) -> None:
    if is_memory(file_system_type(tmp_path)):
        pytest.skip("the folder of the tests is in memory, wanted on a disk")
    es.pack(RECORDINGS, tmp_path / "shards", shard_size="1MiB")
    cache = es.CacheOptions(mode=mode, directory=f"/dev/shm/epistream-slow-{os.getpid()}")
    kinds = {"batch_size": 8, "decode": "per_read", "window": es.Window(action=range(4)), "cache": cache}
    stream = es.EpisodeStream(tmp_path / "shards", **kinds)
    expected = [{name: np.asarray(value).copy() for name, value in batch.items()} for batch in stream]
    monkeypatch.setattr(page_cache, "_FAST_S", 0.0)
    evict(tmp_path / "shards")
    with es.StreamingLoader(es.EpisodeStream(tmp_path / "shards", **kinds), **way) as loader:
        for epoch in range(2):
            batches = [{name: np.asarray(value).copy() for name, value in batch.items()} for batch in loader]
            assert len(batches) == len(expected)
            if epoch == 0:
                for batch, other in zip(batches, expected, strict=True):
                    for name, value in other.items():
                        np.testing.assert_array_equal(batch[name], value)
        report = str(loader.report())
    assert "read where and when needed" not in report
    assert [thread.name for thread in threading.enumerate() if thread.name == "epistream-read-ahead"] == []
