"""Filling ahead: one filler per node and plan, bounded, handed over when it dies, and never needed."""

import fcntl
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import xxhash
from cache_actors import DEADLINE_S, context, run_prefetcher

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part

SIZE = 16 * 4096
NUM = 12


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    made = []
    for number in range(NUM):
        data = bytes([number]) * SIZE
        (tmp_path / f"{number}.tar").write_bytes(data)
        made.append(Entry((Part(str(tmp_path / f"{number}.tar"), SIZE, xxhash.xxh3_128_hexdigest(data)),)))
    return made


def cache_at(path: Path, room: int) -> NodeCache:
    return NodeCache(CacheOptions(mode="shm", directory=str(path), budget_bytes=room * SIZE))


def until(condition: Callable[[], bool]) -> None:
    """Look again and again, until it holds or the deadline of a test has passed."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def present(path: Path, entries: list[Entry]) -> list[int]:
    return [number for number, entry in enumerate(entries) if (path / f"{entry.key}.shard").exists()]


def is_leased(path: Path, entry: Entry) -> bool:
    import fcntl

    fd = os.open(path / f"{entry.key}.shard", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_prefetcher_brings_what_lies_ahead_and_no_more(cache_path: Path, entries: list[Entry]) -> None:
    with cache_at(cache_path, 12) as cache:
        prefetcher = cache.prefetcher("p", entries, ahead=3)
        prefetcher.start()
        until(lambda: present(cache_path, entries) == [0, 1, 2])
        prefetcher.advance(2)
        until(lambda: present(cache_path, entries) == [0, 1, 2, 3, 4])
        until(lambda: not is_leased(cache_path, entries[1]))
        assert is_leased(cache_path, entries[2])
        with cache.open(entries[3]) as opened:
            assert bytes(opened.blobs[0].read(0, 3)) == b"\x03\x03\x03"
        stats = cache.stats()
        assert (stats.hits, stats.fills, stats.prefetches) == (1, 5, 5)
        prefetcher.close()
        assert not is_leased(cache_path, entries[2])


def test_prefetcher_that_is_overtaken_goes_on_from_there(cache_path: Path, entries: list[Entry]) -> None:
    with cache_at(cache_path, 12) as cache:
        prefetcher = cache.prefetcher("p", iter(entries), ahead=2)
        prefetcher.advance(7)
        prefetcher.start()
        until(lambda: present(cache_path, entries) == [7, 8])
        prefetcher.advance(100)
        until(lambda: not is_leased(cache_path, entries[8]))
        assert present(cache_path, entries) == [7, 8]


def test_a_process_evicts_what_its_plan_is_about_to_use_last(cache_path: Path, entries: list[Entry]) -> None:
    with cache_at(cache_path, 4) as cache, cache_at(cache_path, 4) as other:
        for number in (3, 0, 1, 2):  # 3 and 0 are the least recently used
            other.open(entries[number]).close()
        with held_by_another(cache_path, "p"):  # who fills is none of its business
            prefetcher = cache.prefetcher("p", entries[:4:3], ahead=4)
            prefetcher.start()
            until(lambda: prefetcher.upcoming == {entries[0].key, entries[3].key})
            cache.open(entries[4]).close()
            assert present(cache_path, entries) == [0, 2, 3, 4]
            prefetcher.advance(1)
            until(lambda: prefetcher.upcoming == {entries[3].key})
            cache.open(entries[5]).close()
            assert present(cache_path, entries) == [2, 3, 4, 5], "0 was passed and is the oldest now"


def test_entries_without_checksums_are_protected_under_the_keys_that_they_are_kept_by(
    cache_path: Path, entries: list[Entry]
) -> None:
    plain = [Entry((Part(entry.parts[0].url, SIZE),)) for entry in entries]
    with cache_at(cache_path, 4) as cache, cache_at(cache_path, 4) as other:
        paths = []
        for entry in plain[:4]:  # 0 is the least recently used
            other.open(entry).close()
            paths += set(cache_path.glob("*.shard")) - set(paths)
        with held_by_another(cache_path, "p"):
            prefetcher = cache.prefetcher("p", plain[:1], ahead=2)
            prefetcher.start()
            until(lambda: prefetcher.upcoming == {paths[0].stem})
            cache.open(plain[4]).close()
            assert [path.exists() for path in paths] == [True, False, True, True]


def test_memory_pressure_spares_upcoming_entries_without_checksums(
    cache_path: Path, entries: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [Entry((Part(entry.parts[0].url, SIZE),)) for entry in entries]
    with cache_at(cache_path, 12) as cache, cache_at(cache_path, 12) as other:
        paths = []
        for entry in plain[:4]:  # 0 is the least recently used
            other.open(entry).close()
            paths += set(cache_path.glob("*.shard")) - set(paths)
        with held_by_another(cache_path, "p"):
            prefetcher = cache.prefetcher("p", plain[:1], ahead=2)
            prefetcher.start()
            until(lambda: prefetcher.upcoming == {paths[0].stem})
            monkeypatch.setattr("epistream.cache.store.pressure.pressure_percent", lambda system: 50.0)
            cache.open(plain[4]).close()
            assert [path.exists() for path in paths] == [True, False, True, True]


def test_closed_prefetchers_are_let_go_when_another_is_made(cache_path: Path, entries: list[Entry]) -> None:
    with cache_at(cache_path, 12) as cache:
        first = cache.prefetcher("p", entries, ahead=3)
        first.close()
        alive = weakref.ref(first)
        del first
        cache.prefetcher("p", entries, ahead=3)
        gc.collect()
        assert alive() is None


@contextmanager
def held_by_another(path: Path, plan: str) -> Iterator[None]:
    fd = os.open(path / f"prefetch-{plan}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield
    os.close(fd)


def test_prefetchers_of_all_plans_leave_room_for_the_readers(cache_path: Path, entries: list[Entry]) -> None:
    # Room for 6; two processes use the directory (two caches here): 3 stay free for them, 3 are for prefetching.
    with cache_at(cache_path, 6) as cache, cache_at(cache_path, 6) as other:
        other.open(entries[11]).close()
        first = cache.prefetcher("one", entries[:5], ahead=5)
        first.start()
        until(lambda: sum(is_leased(cache_path, entries[number]) for number in present(cache_path, entries)) == 3)
        second = other.prefetcher("two", entries[5:10], ahead=5)
        second.start()
        # A reader can still hold one of its own, for each process, and one more comes in.
        held = [each.open(entries[number]) for each, number in ((cache, 8), (other, 9))]
        cache.open(entries[10]).close()
        assert cache.stats().bypasses == 0
        assert sum(is_leased(cache_path, entries[number]) for number in present(cache_path, entries)) <= 5
        for opened in held:
            opened.close()


def test_prefetcher_with_room_for_the_readers_only_does_nothing(cache_path: Path, entries: list[Entry]) -> None:
    looked = threading.Event()

    def lazily() -> Iterator[Entry]:
        yield entries[0]
        looked.set()
        yield entries[1]

    with cache_at(cache_path, 2) as cache:
        prefetcher = cache.prefetcher("p", lazily(), ahead=2)
        prefetcher.start()
        assert looked.wait(DEADLINE_S)
        prefetcher.close()
        assert present(cache_path, entries) == []


def test_only_one_of_two_with_the_same_plan_fills(cache_path: Path, entries: list[Entry]) -> None:
    with cache_at(cache_path, 12) as cache, cache_at(cache_path, 12) as other:
        prefetchers = [each.prefetcher("p", entries, ahead=4) for each in (cache, other)]
        prefetchers[0].start()
        until(lambda: present(cache_path, entries) == [0, 1, 2, 3])
        prefetchers[1].start()
        prefetchers[1].advance(4)
        prefetchers[0].advance(4)
        until(lambda: present(cache_path, entries) == list(range(8)))
        assert other.stats().prefetches == 0
        prefetchers[0].close()
        prefetchers[1].advance(8)
        until(lambda: present(cache_path, entries) == list(range(12)))
        until(lambda: other.stats().prefetches == 4)  # counted a moment after the last file is there


@pytest.mark.parametrize("step", ["turn.none", "reserve.locked", "fill.allocated", "fill.renamed", "hit.locked"])
def test_prefetcher_killed_another_goes_on(cache_path: Path, entries: list[Entry], step: str) -> None:
    mine, theirs = context().Pipe(duplex=False)
    process = context().Process(target=run_prefetcher, args=(str(cache_path), 12 * SIZE, entries, step, theirs))
    with cache_at(cache_path, 12) as cache:
        if step == "hit.locked":
            cache.open(entries[0]).close()
        process.start()
        theirs.close()
        if step == "turn.none":
            assert mine.poll(DEADLINE_S)  # it has filled three, and holds them
            os.kill(process.pid, signal.SIGKILL)
        process.join(DEADLINE_S)
        assert process.exitcode == -9
        prefetcher = cache.prefetcher("p", entries, ahead=5)
        prefetcher.start()
        until(lambda: present(cache_path, entries) == [0, 1, 2, 3, 4])
        assert list(cache_path.glob("*.part")) == []
    assert list(cache_path.parent.iterdir()) == []


def test_prefetcher_meeting_an_error_leaves_it_to_the_reader(cache_path: Path, entries: list[Entry]) -> None:
    bad = Entry((Part("/none/such.tar", SIZE, "0" * 32),))
    with cache_at(cache_path, 12) as cache:
        prefetcher = cache.prefetcher("p", [entries[0], bad, entries[1]], ahead=3)
        prefetcher.start()
        until(lambda: present(cache_path, entries) == [0, 1])
        prefetcher.advance(3)


def test_prefetcher_of_files_that_are_read_in_place_does_nothing(cache_path: Path, entries: list[Entry]) -> None:
    with NodeCache(CacheOptions(mode="off", directory=str(cache_path))) as cache:
        prefetcher = cache.prefetcher("p", entries, ahead=3)
        prefetcher.start()
        prefetcher.close()
    assert not cache_path.exists()
