"""Entries that a reader keeps mapped: how often the cache is asked, and what becomes of those that are evicted."""

from types import SimpleNamespace

import numpy as np
import pytest

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.loader.frames.kept_arrays import KeptArrays
from epistream.loader.reading.array_tables import ArrayTables
from epistream.sharding.format.features import Feature

SHAPES = {"a": (np.dtype("<i4"), (5, 2)), "b": (np.dtype("u1"), (5,))}
SIZE = 64 + 5


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class FullCache:
    """A cache that has nothing, and no room."""

    def __init__(self):
        self.looked, self.tried = [], []

    def open_made(self, entry, size, fill, **how):
        (self.looked if fill is None else self.tried).append(entry)


def entry_of(number):
    return Entry((Part("/a.tar", 10, "0" * 32),), f"test {number}")


def test_full_cache_is_asked_once_for_all_and_each_missing_entry_looked_for_once_in_a_while():
    cache, clock = FullCache(), Clock()
    kept = KeptArrays(cache, 8, clock)

    def batch(numbers):
        kept.begin_batch()
        for number in numbers:
            assert kept.open(number, lambda number=number: number, SHAPES, lambda arrays: None, may_evict=False) is None

    for _ in range(50):
        batch(range(100))
    assert len(cache.tried) == 1
    assert sorted(cache.looked) == list(range(1, 100))
    assert kept.is_missing(0)
    assert not kept.may_make
    tries = []
    for _ in range(200):  # 100 s
        clock.now += 0.5
        batch(range(100))
        tries.append(len(cache.tried))
    assert tries[0] == 2
    assert tries[-1] <= 10  # after pauses of 0.25, 0.5, 1, 2, 4, 8, 16 seconds, and then of 30
    assert len(cache.looked) <= 100 * 52


@pytest.mark.alone  # what has no room is tried again after seconds
def test_tables_of_a_thousand_shards_without_room_cost_a_try_and_a_look_each():
    cache = FullCache()
    tables = ArrayTables({"action": Feature("action", "array", "float32", (7,), "npy")}, cache, 64)
    index = SimpleNamespace(num_rows=10)
    tar = SimpleNamespace(is_mapped=False, has_ranges=False)
    for _ in range(20):
        tables.begin_batch()
        for number in range(1000):
            opened = SimpleNamespace(naming="", number=number, tar=tar, index=index, source=entry_of(number))
            assert tables.take(opened) == {}
    assert len(cache.tried) == 1
    assert len(cache.looked) <= 1000 * 3  # more only if this took seconds


@pytest.fixture
def cache(tmp_path):
    with NodeCache(CacheOptions(mode="shm", directory=str(tmp_path / "cache"), budget_bytes=1 << 20)) as cache:
        yield cache


def fill(arrays):
    arrays["a"][:] = np.arange(10).reshape(5, 2)
    arrays["b"][:] = 7


def files(cache):
    from pathlib import Path

    return [path for path in Path(cache.options.directory).iterdir() if path.suffix == ".shard"]


def test_entry_is_held_from_batch_to_batch_and_others_may_evict_it(cache):
    clock = Clock()
    kept = KeptArrays(cache, 8, clock)
    kept.begin_batch()
    held = kept.open(0, lambda: entry_of(0), SHAPES, fill, may_evict=True)
    assert held.arrays["a"].tolist() == np.arange(10).reshape(5, 2).tolist()
    assert not held.arrays["a"].flags.writeable
    clock.now += 0.3
    kept.begin_batch()
    assert kept.get(0) is held
    [path] = files(cache)
    store = cache._use().stores.get("shm")
    assert store.give_back() > 0  # no lease stands in its way
    assert not path.exists()
    # In this batch it may still be read, and in the next it is found gone.
    assert kept.get(0) is held
    assert held.arrays["a"][4, 1] == 9
    clock.now += 0.3
    kept.begin_batch()
    assert kept.get(0) is None
    assert held.arrays == {}
    assert not kept.may_make  # somebody needed the room
    clock.now += 1.0
    kept.begin_batch()
    again = kept.open(0, lambda: entry_of(0), SHAPES, fill, may_evict=True)
    assert again.arrays["b"].tolist() == [7] * 5
    kept.close()


@pytest.mark.parametrize("is_short", [False, True])
def test_entries_that_were_evicted_are_given_back_even_if_nobody_asks_for_them(cache, is_short):
    clock = Clock()
    kept = KeptArrays(cache, 8, clock)
    kept.begin_batch()
    held = [kept.open(k, lambda k=k: entry_of(k), SHAPES, fill, may_evict=True) for k in range(3)]
    cache._use().stores.get("shm").give_back()
    kept.begin_batch()
    assert all(each.arrays for each in held)
    if is_short:
        kept.begin_batch(is_short=True)
    else:
        clock.now += 1.1
        kept.begin_batch()
    assert [each.arrays for each in held] == [{}, {}, {}]


def test_entry_in_use_is_among_the_last_to_leave(cache):
    clock = Clock()
    kept = KeptArrays(cache, 8, clock)
    kept.begin_batch()
    for number in range(3):
        kept.open(number, lambda number=number: entry_of(number), SHAPES, fill, may_evict=True)
    clock.now += 0.3
    kept.begin_batch()
    kept.get(0)
    store = cache._use().stores.get("shm")
    store.give_back(4096 * 2)
    [left] = files(cache)
    assert left.name == f"{cache._use().direct.identified(entry_of(0)).key}.shard"
    kept.close()


def test_written_bytes_are_seen_by_all_who_have_the_entry_open(cache):
    first, second = (KeptArrays(cache, 8) for _ in range(2))
    for kept in (first, second):
        kept.begin_batch()
    one = first.open(0, lambda: entry_of(0), SHAPES, lambda arrays: None, may_evict=True)
    other = second.open(0, lambda: entry_of(0), SHAPES, None, may_evict=True)
    assert other.arrays["b"].tolist() == [0] * 5
    assert one.offsets == {"a": 0, "b": 64}
    assert one.write(64 + 3, b"\x05")
    assert other.write(64 + 4, np.array([6], np.uint8).data)
    assert other.arrays["b"].tolist() == one.arrays["b"].tolist() == [0, 0, 0, 5, 6]
    one.close()
    assert not one.write(64, b"\x01")
    assert other.arrays["b"][0] == 0
    second.close()
