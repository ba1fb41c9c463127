"""What a directory keeps when its last user has left."""

import errno
import os
from pathlib import Path

import pytest
from cache_actors import SIZE, counted_bytes, fill_with, get, key_of, noted_bytes, open_test_store

from epistream.cache.store import markers
from epistream.cache.store.budget import Limits
from epistream.cache.store.markers import mark_kept
from epistream.cache.store.partial import Partial
from epistream.cache.store.store import Outcome, ShardStore


def mark(store: ShardStore, numbers: list[int] | None) -> None:
    with store.directory.locked(1.0):
        mark_kept(store.directory.dir_fd, None if numbers is None else [key_of(number) for number in numbers])


def left_by_its_last_user(path: Path) -> list[str]:
    return sorted(file.stem for file in path.glob("*.shard")) if path.exists() else []


def test_chosen_keys_outlive_the_last_user_and_others_go(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    for number in (1, 2, 3):
        get(store, number).close()
    mark(store, [1])
    mark(store, [3, 1])
    assert (cache_path / ".keep").read_text().split() == sorted([key_of(1), key_of(3)]), "each once"
    store.directory.leave()
    assert left_by_its_last_user(cache_path) == sorted([key_of(1), key_of(3)])


@pytest.mark.parametrize("order", [(None, [1]), ([1], None)])
def test_all_is_kept_once_somebody_wanted_all(cache_path: Path, order: tuple[list[int] | None, ...]) -> None:
    store = open_test_store(cache_path)
    get(store, 2).close()
    for numbers in order:
        mark(store, numbers)
    store.directory.leave()
    assert left_by_its_last_user(cache_path) == [key_of(2)]


def test_no_key_kept_is_nothing_kept(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    get(store, 1).close()
    mark(store, [])
    store.directory.leave()
    assert not cache_path.exists()


@pytest.mark.parametrize("before", [[], [1]])
def test_keys_that_find_no_room_to_be_written_change_nothing(
    cache_path: Path, before: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_test_store(cache_path)
    for number in (1, 2):
        get(store, number).close()
    mark(store, before)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            mark(store, [2])
    assert not list(cache_path.glob(".keep.*"))
    store.directory.leave()
    assert left_by_its_last_user(cache_path) == [key_of(number) for number in before]


@pytest.mark.parametrize("note", ["of another boot", "none", "torn"])
def test_what_was_made_on_a_disk_does_not_outlive_the_boot_in_which_it_was_written(
    cache_path: Path, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(in_memory=False)
    store = open_test_store(cache_path, limits=limits)
    mark(store, None)
    get(store, 1).close()
    made = store.try_acquire(key_of(2), SIZE, fill_with(2), is_made=True)
    assert made is not None
    made.close()
    store.directory.leave()
    store = open_test_store(cache_path, limits=limits)  # the power did not go
    store.directory.leave()
    assert left_by_its_last_user(cache_path) == [key_of(1), key_of(2)]
    store = open_test_store(cache_path, limits=limits)
    partial = store.joining.join(key_of(3), [(0, SIZE)], Outcome())
    assert isinstance(partial, Partial)
    partial.close()
    store.directory.leave()
    assert {file.suffix for file in cache_path.glob(f"{key_of(3)}.*")} == {".part", ".have"}
    if note == "of another boot":
        monkeypatch.setattr(markers, "_boot_id", lambda: "another")
    elif note == "none":
        (cache_path / ".boot").unlink()
    else:
        (cache_path / ".boot").write_text("2f")
    store = open_test_store(cache_path, limits=limits)
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == SIZE
    assert not list(cache_path.glob(f"{key_of(3)}.*"))
    other = open_test_store(cache_path, limits=limits)  # who is not the first finds it done
    made = store.try_acquire(key_of(2), SIZE, fill_with(2), is_made=True)
    assert made is not None
    made.close()
    other.directory.leave()
    store.directory.leave()
    open_test_store(cache_path, limits=limits).directory.leave()
    assert left_by_its_last_user(cache_path) == [key_of(1), key_of(2)]
