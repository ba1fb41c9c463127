"""The running total: right after whatever happened, found wrong and mended, and nobody counts files without need."""

import os
import resource
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
    note_total,
    noted_bytes,
    open_test_store,
    read_all,
)

from epistream.cache.admin import clear, resize
from epistream.cache.store.lease import Lease
from epistream.cache.store.markers import mark_kept
from epistream.cache.store.store import NoRoomError, ShardStore
from epistream.errors import FetchError


def make(store: ShardStore, number: int, size: int = SIZE, *, may_evict: bool = True) -> Lease | None:
    return store.try_acquire(key_of(number), size, fill_with(number, size), may_evict=may_evict)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one whenever a directory is listed."""
    calls: list[object] = []
    real = os.listdir

    def listdir(path: int | str = ".") -> list[str]:
        calls.extend([path] if isinstance(path, int) else [])  # the cache lists by descriptor
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    return calls


# --- the cost ------------------------------------------------------------------------------------------------


def test_fills_and_looks_at_the_budget_list_no_directory_where_there_is_room(
    cache_path: Path, listings: list[object]
) -> None:
    store = open_test_store(cache_path, cap=1000 * SIZE)
    listings.clear()
    for number in range(100):
        get(store, number).close()
        assert store.held_bytes() == (number + 1) * SIZE
    assert store.budget().terms["cap"] == 1000 * SIZE
    assert listings == []
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == 100 * SIZE


def test_eviction_counts_the_files_once_for_all_that_were_there(cache_path: Path, listings: list[object]) -> None:
    store = open_test_store(cache_path, cap=50 * SIZE)
    for number in range(50):
        get(store, number).close()
    listings.clear()
    for number in range(50, 150):
        get(store, number).close()
        assert names(cache_path) == {f"{each}.shard" for each in range(number - 49, number + 1)}
    assert len(listings) <= 3
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == 50 * SIZE


def test_search_without_room_is_not_repeated_at_once(cache_path: Path, listings: list[object]) -> None:
    store = open_test_store(cache_path, cap=4 * SIZE)
    leases = [make(store, number) for number in range(4)]
    listings.clear()
    assert [make(store, 10 + number, may_evict=False) for number in range(100)] == [None] * 100
    assert len(listings) == 1
    # A smaller one is another matter, and so is one that others may leave for.
    assert make(store, 200, PAGE, may_evict=False) is None
    leases.pop().close()
    made = make(store, 300)
    assert made is not None
    made.close()


def test_search_without_room_is_repeated_once_this_process_gave_something_back(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=2 * SIZE)
    for number in (1, 2):
        get(store, number).close()
    assert make(store, 3, may_evict=False) is None
    store.give_back(SIZE)
    made = make(store, 3, may_evict=False)
    assert made is not None
    made.close()


# --- the order -----------------------------------------------------------------------------------------------


def test_what_was_used_since_the_survey_stays_and_the_next_oldest_leaves(cache_path: Path) -> None:
    store, other = open_test_store(cache_path, cap=4 * SIZE), open_test_store(cache_path)
    for number in (1, 2, 3, 4, 5):  # the first eviction notes the order
        get(store, number).close()
    get(other, 2).close()
    get(store, 6).close()
    assert names(cache_path) == {"2.shard", "4.shard", "5.shard", "6.shard"}
    get(store, 7).close()
    assert names(cache_path) == {"2.shard", "5.shard", "6.shard", "7.shard"}


def test_what_was_leased_for_long_leaves_first_when_its_lease_has_ended(cache_path: Path) -> None:
    store, other = open_test_store(cache_path, cap=4 * SIZE), open_test_store(cache_path)
    lease = get(other, 1)
    for number in (2, 3, 4, 5, 6):
        get(store, number).close()
    assert names(cache_path) == {"1.shard", "4.shard", "5.shard", "6.shard"}
    lease.close()
    get(store, 7).close()
    assert names(cache_path) == {"4.shard", "5.shard", "6.shard", "7.shard"}


def test_what_another_process_evicted_and_filled_again_is_not_taken_for_the_old_one(cache_path: Path) -> None:
    store, other = open_test_store(cache_path, cap=4 * SIZE), open_test_store(cache_path)
    for number in (1, 2, 3, 4, 5):
        get(store, number).close()
    for number in (6, 2):  # 2 leaves for 6, and comes again for 3
        get(other, number).close()
    assert names(cache_path) == {"2.shard", "4.shard", "5.shard", "6.shard"}
    get(store, 7).close()
    assert names(cache_path) == {"2.shard", "5.shard", "6.shard", "7.shard"}


def test_one_that_needs_the_room_of_more_than_can_be_open_gets_it(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=700 * PAGE)
    for number in range(700):
        get(store, number, PAGE).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())  # other tests leave some open
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, highest + 300), hard))
    try:
        lease = get(store, 1000, 690 * PAGE)
        assert read_all(lease) == content(1000, 690 * PAGE)
        lease.close()
        assert counted_bytes(cache_path) == noted_bytes(cache_path) == 700 * PAGE
        for number in range(700):
            get(store, number, PAGE).close()
        assert store.give_back() == 700 * PAGE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert names(cache_path) == set()
    assert noted_bytes(cache_path) == 0


# --- right whatever happens ----------------------------------------------------------------------------------


def test_total_follows_failures_discards_and_the_command_line(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=8 * SIZE)

    def fail(fd: int) -> None:
        assert noted_bytes(cache_path) == counted_bytes(cache_path)
        raise FetchError("u: gone. Check it.")

    for number in range(8):
        get(store, number, (number + 1) * PAGE).close()
    with pytest.raises(FetchError):
        store.acquire(key_of(9), SIZE, fail)
    assert noted_bytes(cache_path) == counted_bytes(cache_path)
    store.discard(key_of(7))
    store.discard(key_of(7))
    assert noted_bytes(cache_path) == counted_bytes(cache_path)
    before = counted_bytes(cache_path)
    given = resize(cache_path, 4 * PAGE)
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == before - given <= 4 * PAGE
    clear(cache_path, forget=False)
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == 0


def test_total_is_in_doubt_after_the_last_user_removed_what_is_not_kept(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=8 * SIZE)
    for number in (1, 2):
        get(store, number).close()
    mark_kept(store.directory.dir_fd, [key_of(2)])
    store.directory.leave()
    assert noted_bytes(cache_path) is None
    store = open_test_store(cache_path, cap=8 * SIZE)
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == SIZE


@pytest.mark.parametrize(
    "text", ["", "clean", "clean 1", "clean 1 x\n", "dirty 00 000\n", "\0\0", "clean 1 nan\n", "7"]
)
def test_total_that_is_torn_is_counted_again(cache_path: Path, text: str) -> None:
    store = open_test_store(cache_path, cap=2 * SIZE)
    get(store, 1).close()
    (cache_path / ".lock").write_text(text)
    get(store, 2).close()
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == 2 * SIZE


def test_total_whose_file_is_removed_by_hand_is_counted_again(cache_path: Path) -> None:
    store, other = open_test_store(cache_path, cap=2 * SIZE), open_test_store(cache_path)
    get(store, 1).close()
    (cache_path / ".lock").unlink()
    get(other, 2).close()
    get(store, 3).close()
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == 2 * SIZE


def test_total_on_a_full_file_system_is_in_doubt_and_counted_each_time(
    cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_test_store(cache_path, cap=2 * SIZE)
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if data[:5] in (b"clean", b"dirty"):
            os.truncate(fd, 0)
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    for number in (1, 2, 3):
        get(store, number).close()
        assert noted_bytes(cache_path) is None
    assert names(cache_path) == {"2.shard", "3.shard"}


# --- wrong ---------------------------------------------------------------------------------------------------


def test_total_that_is_too_low_lets_too_much_in_only_until_it_is_due(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=4 * SIZE)
    for number in range(4):
        get(store, number).close()
    note_total(cache_path, 0)
    for number in (4, 5):
        get(store, number).close()
    assert counted_bytes(cache_path) == 6 * SIZE
    note_total(cache_path, 2 * SIZE, due_in_s=-1.0)
    get(store, 6).close()
    assert names(cache_path) == {"3.shard", "4.shard", "5.shard", "6.shard"}
    assert noted_bytes(cache_path) == 4 * SIZE


def test_total_that_is_too_low_is_found_when_the_file_system_is_full(cache_path: Path) -> None:
    # Nobody evicts by it, and nobody believes for longer than an hour that it needs no check.
    store = open_test_store(cache_path, cap=2 * SIZE)
    get(store, 1).close()
    note_total(cache_path, 0, due_in_s=1e9)
    for number in (2, 3):
        get(store, number).close()
    assert names(cache_path) == {"2.shard", "3.shard"}


def test_total_that_is_too_high_refuses_nobody(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=4 * SIZE, room_timeout_s=0.0)
    note_total(cache_path, 1 << 40)
    made = make(store, 1, may_evict=False)
    assert made is not None
    note_total(cache_path, 1 << 40)
    held = [get(store, number) for number in (2, 3, 4)]
    assert noted_bytes(cache_path) == 4 * SIZE
    with pytest.raises(NoRoomError):
        get(store, 5)
    for lease in (made, *held):
        lease.close()


def test_files_of_a_release_without_a_total_are_found_when_it_is_due(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=2 * SIZE, check_s=0.0)
    get(store, 1).close()
    (cache_path / f"{key_of(2)}.shard").write_bytes(content(2))
    (cache_path / f"{key_of(2)}.fill").touch()
    get(store, 3).close()
    assert names(cache_path) == {"2.shard", "3.shard"}
    assert list(cache_path.glob("*.fill")) == []
    (cache_path / f"{key_of(2)}.shard").unlink()
    get(store, 4).close()
    assert names(cache_path) == {"3.shard", "4.shard"}


def test_what_the_dead_left_goes_before_anybody_is_evicted_or_refused(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=4 * SIZE)
    for number in (1, 2, 3):
        get(store, number).close()
    with (cache_path / f"{key_of(9)}.part").open("wb") as part:
        part.truncate(SIZE)
    note_total(cache_path, 4 * SIZE)
    made = make(store, 4, may_evict=False)
    assert made is not None
    made.close()
    assert names(cache_path) == {"1.shard", "2.shard", "3.shard", "4.shard"}


def test_own_part_of_a_filler_that_died_is_replaced_without_counting(cache_path: Path, listings: list[object]) -> None:
    store = open_test_store(cache_path, cap=4 * SIZE)
    with (cache_path / f"{key_of(1)}.part").open("wb") as part:
        part.truncate(2 * SIZE)
    note_total(cache_path, 2 * SIZE)
    listings.clear()
    get(store, 1).close()
    assert listings == []
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == SIZE
