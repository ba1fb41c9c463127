"""Entries that a process makes itself: made once, counted, evicted like any other, never waited for."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part

MIB = 1 << 20


def entry_of(number: int) -> Entry:
    return Entry((Part(f"/nowhere/{number}.tar", 10, "0" * 32),), content=f"made {number}")


def filler(value: int, calls: list[int] | None = None):
    def fill(view: memoryview) -> None:
        if calls is not None:
            calls.append(value)
        view[:] = bytes([value]) * len(view)

    return fill


@pytest.fixture
def folder(tmp_path) -> Path:
    # On a disk here: the rules are those of any directory.
    return tmp_path / "cache"


def cache_of(folder: Path, budget_bytes: int = 4 * MIB, mode="shm", **more) -> NodeCache:
    return NodeCache(CacheOptions(mode=mode, directory=str(folder), budget_bytes=budget_bytes, **more))


def value_of(opened) -> int:
    with opened:
        data = bytes(opened.blobs[0].read(0, opened.blobs[0].size))
    assert len(set(data)) == 1
    return data[0]


def test_made_entry_is_made_once_and_found_by_others(folder):
    calls: list[int] = []
    with cache_of(folder) as first, cache_of(folder) as second:
        assert value_of(first.open_made(entry_of(1), MIB, filler(7, calls))) == 7
        assert value_of(second.open_made(entry_of(1), MIB, filler(8, calls))) == 7
        assert calls == [7]
        assert (first.stats().made_fills, second.stats().made_hits) == (1, 1)
        assert (first.stats().fills, second.stats().hits) == (0, 0)


def test_made_entry_beyond_the_budget_is_declined_without_waiting(folder):
    with cache_of(folder, 2 * MIB) as cache:
        assert cache.open_made(entry_of(1), 3 * MIB, filler(1)) is None
        held = [cache.open_made(entry_of(number), MIB, filler(number)) for number in (1, 2)]
        assert cache.open_made(entry_of(3), MIB, filler(3)) is None  # both are leased
        held[0].close()
        assert cache.open_made(entry_of(3), MIB, filler(3), may_evict=False) is None
        # The vain search is remembered for a moment.
        opened = None
        deadline = time.monotonic() + 30
        while opened is None and time.monotonic() < deadline:
            opened = cache.open_made(entry_of(3), MIB, filler(3))
        assert value_of(opened) == 3
        assert sum(path.stat().st_size for path in folder.glob("*.shard")) == 2 * MIB
        held[1].close()


def test_made_entry_that_another_makes_now_is_not_waited_for(folder):
    with cache_of(folder) as cache:
        value_of(cache.open_made(entry_of(1), MIB, filler(1)))
        lock = os.open(folder / f"{entry_of(2).key}.fill", os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cache.open_made(entry_of(2), MIB, filler(2)) is None
        os.close(lock)
        assert value_of(cache.open_made(entry_of(2), MIB, filler(2))) == 2


def test_made_entry_whose_maker_fails_leaves_nothing(folder):
    def fail(view: memoryview) -> None:
        view[0] = 1
        raise ValueError("torn frame")

    with cache_of(folder) as cache:
        with pytest.raises(ValueError, match="torn frame"):
            cache.open_made(entry_of(1), MIB, fail)
        assert not list(folder.glob("*.shard"))
        assert not list(folder.glob("*.part"))
        assert value_of(cache.open_made(entry_of(1), MIB, filler(2))) == 2


def test_made_entry_is_locked_only_by_its_lease(folder):
    with cache_of(folder) as cache:
        kept: list[memoryview] = []
        opened = cache.open_made(entry_of(1), MIB, lambda view: kept.append(view[:10]))
        path = folder / f"{entry_of(1).key}.shard"
        with path.open("rb") as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened.close()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # although the maker still looks at its mapping


def test_made_entry_with_the_cache_off_is_declined(folder):
    with cache_of(folder, mode="off") as cache:
        assert cache.open_made(entry_of(1), MIB, filler(1)) is None
        assert not folder.exists()
