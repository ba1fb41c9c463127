"""What a directory keeps when its last user has left."""

import errno
import os
from pathlib import Path

import pytest
from cache_actors import get, key_of, open_test_store

from epistream.cache.store.markers import mark_kept
from epistream.cache.store.store import ShardStore


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
