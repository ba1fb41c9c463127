"""The store's promises, one by one, with several stores in one process standing for several processes."""

import errno
import logging
import os
import threading
from pathlib import Path

import pytest
from cache_actors import (
    PAGE,
    SIZE,
    content,
    fill_with,
    get,
    key_of,
    names,
    open_test_store,
    read_all,
)

from epistream.cache.notes import Note, boot_time_s, read_note, write_note
from epistream.cache.store import NoRoomError, Outcome, TooLargeError
from epistream.errors import ChecksumError, DeadlineError, FetchError

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
    with pytest.raises(TooLargeError, match=r"wanted 0\.0 MiB for one shard.*raise budget_bytes"):
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


def test_acquire_with_a_failing_fill_leaves_nothing_and_carries_the_error_to_the_others(cache_path: Path) -> None:
    store, other = open_test_store(cache_path), open_test_store(cache_path)

    def fail(fd: int) -> None:
        raise ChecksumError("u: checksum a, wanted b. Upload it again.")

    with pytest.raises(ChecksumError):
        store.acquire(key_of(1), SIZE, fail)
    assert names(cache_path) == set()
    calls: list[int] = []
    with pytest.raises(ChecksumError, match="u: checksum a, wanted b"):
        other.acquire(key_of(1), SIZE, fill_with(1, fills=calls))
    assert calls == []


def test_acquire_after_a_note_has_expired_tries_again(cache_path: Path) -> None:
    store = open_test_store(cache_path, note_s=0.0)

    def fail(fd: int) -> None:
        raise FetchError("u: gone. Check it.")

    with pytest.raises(FetchError):
        store.acquire(key_of(1), SIZE, fail)
    assert read_all(get(store, 1)) == content(1)


def test_acquire_after_an_unexpected_failure_lets_the_next_one_try(cache_path: Path) -> None:
    store = open_test_store(cache_path)

    def fail(fd: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        store.acquire(key_of(1), SIZE, fail)
    assert names(cache_path) == set()
    assert read_all(get(store, 1)) == content(1)


def test_acquire_interrupted_by_the_user_leaves_nothing(cache_path: Path) -> None:
    store = open_test_store(cache_path)

    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.acquire(key_of(1), SIZE, interrupt)
    assert names(cache_path) == set()
    assert read_all(get(store, 1)) == content(1)


def test_acquire_with_torn_text_in_the_fill_file_ignores_it(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    for text in ("812", '{"kind": "fai', '{"kind": "failed"}', "[]", "\x00\x00", '{"kind": 1, "error": 2}'):
        (cache_path / f"{key_of(1)}.fill").write_text(text)
        assert read_all(get(store, 1)) == content(1)
        store.give_back()


def test_notes_keep_what_they_say_and_expire() -> None:
    note = Note("failed", "ChecksumError", "u: \u00e9" + "x" * 5000, 100.0)
    text = write_note(note)
    assert len(text) < 4096
    back = read_note(text)
    assert back is not None
    assert (back.kind, back.error, back.time_s) == ("failed", "ChecksumError", 100.0)
    assert isinstance(back.to_error(), ChecksumError)
    assert back.is_fresh(5.0, 104.9)
    assert not back.is_fresh(5.0, 105.1)
    assert not back.is_fresh(5.0, 99.0), "a note from the future is from another boot"


def test_acquire_behind_a_stopped_filler_ends_with_an_error_that_names_it(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    other = open_test_store(cache_path, fill_timeout_s=SHORT_S)

    def stall(fd: int) -> None:
        with pytest.raises(DeadlineError, match=rf"\.fill: held by process \[{os.getpid()}\] for 0\.05 s"):
            get(other, 1)
        fill_with(1)(fd)

    assert read_all(store.acquire(key_of(1), SIZE, stall)) == content(1)


def test_acquire_behind_a_stopped_accountant_ends_with_an_error_that_names_it(cache_path: Path) -> None:
    store, other = open_test_store(cache_path, lock_timeout_s=SHORT_S), open_test_store(cache_path)
    with other.directory.locked(1.0), pytest.raises(DeadlineError, match=rf"\.lock: held by process \[{os.getpid()}\]"):
        get(store, 1)
    assert names(cache_path) == set()
    assert read_all(get(store, 1)) == content(1)


def test_acquire_while_another_fills_other_keys_go_on(cache_path: Path) -> None:
    store, other = open_test_store(cache_path, cap=3 * SIZE), open_test_store(cache_path)

    def slow(fd: int) -> None:
        # The part counts already: only two more fit.
        for number in (2, 3, 4):
            get(other, number).close()
        assert names(cache_path) == {"1.part", "3.shard", "4.shard"}
        fill_with(1)(fd)

    assert read_all(store.acquire(key_of(1), SIZE, slow)) == content(1)


def test_acquire_by_threads_of_one_process_fills_once(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    fills: list[int] = []
    barrier = threading.Barrier(8, timeout=30)
    right: list[bool] = []

    def work() -> None:
        barrier.wait()
        lease = store.acquire(key_of(1), SIZE, fill_with(1, fills=fills))
        right.append(read_all(lease) == content(1))
        lease.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert right == [True] * 8
    assert fills == [1]


def test_acquire_that_gets_its_turn_after_another_completed_does_not_fill_again(
    cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = open_test_store(cache_path), open_test_store(cache_path)
    real, looks = store.lookup, []

    def look(key: str, size: int):
        found = real(key, size)
        looks.append(found)
        if len(looks) == 2:  # the last look before the lock: the other one is quicker
            get(other, 1).close()
        return found

    monkeypatch.setattr(store, "lookup", look)
    fills: list[int] = []
    assert read_all(store.acquire(key_of(1), SIZE, fill_with(1, fills=fills))) == content(1)
    assert fills == []


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


def test_evicting_leaves_no_fill_files_behind(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=2 * SIZE)
    for number in range(10):
        get(store, number).close()
    assert sorted(file.name for file in cache_path.glob("*.fill")) == [f"{key_of(8)}.fill", f"{key_of(9)}.fill"]


def test_lease_closed_twice_is_harmless_and_its_views_end(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    lease = get(store, 1)
    view = lease.view(0, 10)
    lease.close()
    lease.close()
    with pytest.raises(ValueError, match="released"):
        view[0]


def test_lease_closed_with_a_view_alive_frees_the_lock_and_keeps_the_bytes(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=SIZE)
    lease = get(store, 1)
    kept = lease.view(0, SIZE)[100:200]
    lease.close()
    get(store, 2).close()  # evicts 1: its lock is gone
    assert names(cache_path) == {"2.shard"}
    assert bytes(kept) == content(1)[100:200]


def test_lease_dropped_without_close_ends_with_its_last_reference(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=SIZE)
    lease = get(store, 1)
    del lease
    get(store, 2).close()
    assert names(cache_path) == {"2.shard"}


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
    store.directory.mark_kept()
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


def test_cap_of_the_first_user_is_in_force_and_a_differing_wish_is_told(
    cache_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_test_store(cache_path, cap=2 * SIZE)
    with caplog.at_level(logging.WARNING):
        second = open_test_store(cache_path, cap=5 * SIZE)
    assert f"budget of {2 * SIZE} bytes is in force, wanted {5 * SIZE}" in caplog.text
    assert first.budget().bytes == second.budget().bytes == 2 * SIZE


def test_cap_of_a_sole_user_replaces_that_of_the_dead(cache_path: Path) -> None:
    first = open_test_store(cache_path, cap=2 * SIZE)
    first.directory.mark_kept()
    first.directory.leave()
    assert open_test_store(cache_path).budget().bytes == 2 * SIZE, "no wish leaves it as it is"
    assert open_test_store(cache_path, cap=3 * SIZE).budget().bytes == 2 * SIZE


def test_cap_of_a_sole_user_with_a_wish_replaces_it(cache_path: Path) -> None:
    first = open_test_store(cache_path, cap=2 * SIZE)
    first.directory.mark_kept()
    first.directory.leave()
    assert open_test_store(cache_path, cap=3 * SIZE).budget().bytes == 3 * SIZE


def test_cap_in_torn_text_is_replaced(cache_path: Path) -> None:
    first = open_test_store(cache_path, cap=2 * SIZE)
    (cache_path / ".budget").write_text("12 MB?")
    assert open_test_store(cache_path, cap=3 * SIZE).budget().bytes == 3 * SIZE
    assert first.budget().bytes == 3 * SIZE


def test_give_back_frees_the_oldest_unleased(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    leases = {number: get(store, number) for number in (1, 2, 3, 4)}
    for number in (2, 3, 4):
        leases[number].close()
    assert store.give_back(SIZE) == SIZE
    assert names(cache_path) == {"1.shard", "3.shard", "4.shard"}
    assert store.give_back() == 2 * SIZE
    assert names(cache_path) == {"1.shard"}


def test_boot_clock_runs_forward() -> None:
    assert boot_time_s() <= boot_time_s()
