"""One fill at a time: who waits for it, who goes on when it fails, and what the others are told."""

import json
import os
import threading
from pathlib import Path

import pytest
from cache_actors import SIZE, content, fill_with, get, key_of, names, open_test_store, read_all

from epistream.cache.store.markers import Note, boot_time_s, read_note, write_note
from epistream.errors import ChecksumError, DeadlineError, FetchError

SHORT_S = 0.05


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


def test_acquire_failing_with_an_error_without_words_leaves_nothing(cache_path: Path) -> None:
    class WordlessError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def fail(fd: int) -> None:
        raise WordlessError

    store = open_test_store(cache_path)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(WordlessError):
        store.acquire(key_of(1), SIZE, fail)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
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


@pytest.mark.parametrize("time_s", [10**400, -(10**400), "x", None])
def test_note_with_a_time_that_cannot_be_is_none(time_s: object) -> None:
    assert read_note(json.dumps({"kind": "failed", "error": "FetchError", "text": "u: no", "time_s": time_s})) is None


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


def test_boot_clock_runs_forward() -> None:
    assert boot_time_s() <= boot_time_s()
