"""The store's promises, one by one, with several stores in one process standing for several processes."""

import errno
import logging
import os
from pathlib import Path

import pytest
from cache_actors import (
    PAGE,
    SIZE,
    content,
    counted_bytes,
    fill_with,
    get,
    key_of,
    names,
    noted_bytes,
    open_test_store,
    read_all,
)

from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.markers import mark_kept
from epistream.cache.store.store import NoRoomError, Outcome, TooLargeError

SHORT_S = 0.05


def test_acquire_fills_once_and_then_hits(cache_path: Path) -> None:
    fills: list[int] = []
    store, other = open_test_store(cache_path), open_test_store(cache_path)
    outcomes = [Outcome() for _ in range(3)]
    for each, outcome in zip((store, store, other), outcomes, strict=True):
        each.acquire(key_of(1), SIZE, fill_with(1, fills=fills), outcome=outcome).close()
    assert fills == [1]
    assert [(outcome.filled, outcome.hit) for outcome in outcomes] == [(True, False), (False, True), (False, True)]
    assert (cache_path / f"{key_of(1)}.shard").read_bytes() == content(1)


def test_acquire_of_a_hit_does_not_ask_the_caller_to_give_up_its_leases(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    calls: list[int] = []
    get(store, 1, before_wait=lambda: calls.append(1)).close()
    get(store, 1, before_wait=lambda: calls.append(2)).close()
    assert calls == [1]


def test_acquire_evicts_the_least_recently_used(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=3 * SIZE)
    for number in (1, 2, 3, 1):  # 1 is used again: 2 is the oldest
        get(store, number).close()
    outcome = Outcome()
    get(store, 4, outcome=outcome).close()
    assert names(cache_path) == {"1.shard", "3.shard", "4.shard"}
    assert outcome.num_evicted == 1


def test_acquire_never_evicts_what_is_leased(cache_path: Path) -> None:
    store, other = open_test_store(cache_path, cap=3 * SIZE), open_test_store(cache_path)
    lease = get(other, 1)
    for number in (2, 3, 4, 5):
        get(store, number).close()
    assert "1.shard" in names(cache_path)
    assert read_all(lease) == content(1)


def test_acquire_with_everything_leased_waits_for_a_lease_to_end(cache_path: Path) -> None:
    leases = []

    def observe(step: str) -> None:
        if step == "room.wait" and leases:
            leases.pop().close()

    store = open_test_store(cache_path, cap=SIZE, observe=observe)
    leases.append(get(store, 1))
    assert read_all(get(store, 2)) == content(2)


def test_acquire_with_everything_leased_gives_up_at_its_deadline_and_tells_the_others(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=SIZE, room_timeout_s=SHORT_S)
    patient = open_test_store(cache_path)
    lease = get(store, 1)
    with pytest.raises(NoRoomError, match=r"budget of 0\.0 MiB.*too much of it leased"):
        get(store, 2)
    # The others follow the note at once: their own deadline is far away.
    with pytest.raises(NoRoomError, match="leased"):
        get(patient, 2)
    lease.close()
    assert names(cache_path) == {"1.shard"}, "nothing is evicted for nothing"


def test_acquire_of_more_than_the_budget_is_refused_at_once(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=SIZE)
    message = r"a budget of 0\.016 MiB .*, wanted 0\.020 MiB for one shard\. Raise budget_bytes"
    with pytest.raises(TooLargeError, match=message):
        get(store, 1, SIZE + 1)
    assert names(cache_path) == set()


def test_acquire_rounds_sizes_up_to_pages(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=2 * PAGE)
    for number in (1, 2, 3):
        get(store, number, 1).close()
    assert names(cache_path) == {"2.shard", "3.shard"}


def test_acquire_of_an_empty_entry_gives_no_bytes(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    for _ in range(2):
        with_lease = store.acquire(key_of(1), 0, lambda fd: None)
        assert bytes(with_lease.view(0, 0)) == b""
        with_lease.close()


def test_acquire_finding_a_shard_of_a_wrong_size_fetches_it_again(
    cache_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_test_store(cache_path)
    for damaged in (b"", b"half"):
        (cache_path / f"{key_of(1)}.shard").write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            lease = get(store, 1)
        assert read_all(lease) == content(1)
        lease.close()
        assert f"{len(damaged)} bytes, wanted {SIZE}" in caplog.text


def test_hit_between_the_evictors_lock_and_unlink_does_not_lease_a_dead_shard(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=SIZE)
    get(store, 1).close()
    reader_step: list[str] = []

    def at_open(step: str) -> None:
        # The reader has opened the file; before it locks, the shard is evicted.
        if step == "hit.opened" and not reader_step:
            reader_step.append(step)
            get(store, 2).close()

    reader = open_test_store(cache_path, observe=at_open)
    assert reader.lookup(key_of(1), SIZE) is None
    assert names(cache_path) == {"2.shard"}


def test_filling_leaves_no_fill_files_behind(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=2 * SIZE)
    for number in range(10):
        get(store, number).close()
    assert list(cache_path.glob("*.fill")) == []


def test_fill_on_a_full_file_system_leaves_nothing(cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_test_store(cache_path, room_timeout_s=0.0)

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(NoRoomError, match="file system full"):
            get(store, 1)
    assert names(cache_path) == set()
    with pytest.raises(NoRoomError, match="file system full"):
        get(store, 1)  # the note is followed
    assert read_all(get(store, 2)) == content(2)


def test_stamps_from_a_clock_that_was_ahead_come_before_all_others(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=3 * SIZE)
    mark_kept(store.directory.dir_fd)
    for number in (1, 2):
        get(store, number).close()
        stamp_ns = 2**62 + number
        os.utime(cache_path / f"{key_of(number)}.shard", ns=(stamp_ns, stamp_ns))
    store.directory.leave()
    store = open_test_store(cache_path, cap=3 * SIZE)
    for number in (3, 4):
        get(store, number).close()
    assert names(cache_path) == {"2.shard", "3.shard", "4.shard"}
    get(store, 5).close()
    assert names(cache_path) == {"3.shard", "4.shard", "5.shard"}


def test_wall_clock_set_back_changes_nothing(cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_test_store(cache_path, cap=2 * SIZE)
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("time.time_ns", lambda: 0)
    for number in (1, 2, 3):
        get(store, number).close()
    assert names(cache_path) == {"2.shard", "3.shard"}


def test_give_back_frees_the_oldest_unleased(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    leases = {number: get(store, number) for number in (1, 2, 3, 4)}
    for number in (2, 3, 4):
        leases[number].close()
    assert store.give_back(SIZE) == SIZE
    assert names(cache_path) == {"1.shard", "3.shard", "4.shard"}
    assert store.give_back() == 2 * SIZE
    assert names(cache_path) == {"1.shard"}


def test_store_that_was_left_meanwhile_is_an_error_of_the_system_for_all_of_its_threads(cache_path):
    store = open_test_store(cache_path)
    get(store, 1).close()
    store.leave()
    with pytest.raises(OSError, match="Bad file descriptor"):
        get(store, 2)
    with pytest.raises(OSError, match="Bad file descriptor"):
        store.give_back()


def test_eviction_that_fails_half_way_keeps_nobody_from_what_it_had_taken(cache_path, monkeypatch):
    store = open_test_store(cache_path, cap=3 * SIZE)
    for number in (1, 2, 3):
        get(store, number).close()
    real, left = DESCRIPTORS.open, [1]

    def few(name, *more, **options):
        if str(name).endswith(".shard") and not left[0]:
            raise OSError(errno.EMFILE, "Too many open files")
        left[0] -= str(name).endswith(".shard")
        return real(name, *more, **options)

    num_open = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr(DESCRIPTORS, "open", few)
        with pytest.raises(OSError, match="Too many"):
            store.give_back()
    assert len(list(Path("/proc/self/fd").iterdir())) == num_open
    get(store, 1).close()
    assert names(cache_path) == {"1.shard", "2.shard", "3.shard"}
    get(store, 4).close()
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == 3 * SIZE
