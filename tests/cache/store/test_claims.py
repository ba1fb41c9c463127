"""Claims: what live processes use of a group is known to others, until they say otherwise or end, in whatever way."""

import errno
import os
import signal
from pathlib import Path

import pytest
from cache_actors import DEADLINE_S, context, get, open_test_store, run_claimer

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.store.store import ShardStore

A, B, C = "0000000a", "0000000b", "0000000c"
GIB = 1 << 30


def claim_files(path: Path) -> dict[str, str]:
    return {file.name: file.read_text().strip() for file in path.glob("claim-*")}


def pair(path: Path) -> tuple[ShardStore, ShardStore]:
    """Two users of a directory: locks know no difference between two of a process and two of two processes."""
    return open_test_store(path), open_test_store(path)


def test_claim_is_told_to_others_and_not_to_its_own_group(cache_path: Path) -> None:
    first, second = pair(cache_path)
    assert first.claims.claim(A, 3 * GIB) == 0
    assert second.claims.claim(B, GIB) == 3 * GIB
    assert first.claims.claim(A, 3 * GIB) == GIB
    assert second.claims.claim(A, 3 * GIB) == GIB, "its own other group counts, because both want room"
    assert claim_files(cache_path) == {f"claim-{A}": str(3 * GIB), f"claim-{B}": str(GIB)}
    first.leave()
    second.leave()
    assert not cache_path.exists()


def test_claim_that_is_told_again_is_updated_and_0_gives_it_up(cache_path: Path) -> None:
    first, second = pair(cache_path)
    for num_bytes in (5, 12345678901234, 7):
        first.claims.claim(A, num_bytes)
        assert second.claims.claim(B, 1) == num_bytes
    first.claims.claim(A, 0)
    assert claim_files(cache_path) == {f"claim-{B}": "1"}
    assert second.claims.claim(B, 1) == 0
    assert first.claims.claim(A, 0) == 1, "who claims nothing may ask all the same"
    first.claims.claim(A, 4)
    assert second.claims.claim(B, 1) == 4


def test_claim_that_did_not_change_takes_no_lock_while_nobody_else_claims(
    cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_test_store(cache_path)
    for number in range(3):
        get(store, number).close()
    store.claims.claim(A, 5)
    with store.directory.locked(1.0):  # its deadline would pass
        monkeypatch.setattr(store.directory, "locked", None)
        assert [store.claims.claim(A, 5) for _ in range(100)] == [0] * 100


def test_claim_lasts_as_long_as_any_of_its_claimants(cache_path: Path) -> None:
    first, second = pair(cache_path)
    watcher = open_test_store(cache_path)
    for store in (first, second):
        store.claims.claim(A, 5)
    first.leave()
    assert watcher.claims.claim(B, 1) == 5
    second.claims.close()
    assert watcher.claims.claim(B, 1) == 0
    assert claim_files(cache_path) == {f"claim-{B}": "1"}, "the file of the dead went"


def test_claim_of_a_killed_process_ends_with_it(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    ours, theirs = context().Pipe()
    claimer = context().Process(target=run_claimer, args=(str(cache_path), A, 5, theirs), daemon=True)
    claimer.start()
    assert ours.poll(DEADLINE_S)
    assert ours.recv() == 0
    assert store.claims.claim(B, 1) == 5
    with store.directory.locked(1.0):
        assert store.claims.are_others(A + "0" * 24)
    os.kill(claimer.pid, signal.SIGKILL)
    claimer.join(DEADLINE_S)
    with store.directory.locked(1.0):
        assert not store.claims.are_others(A + "0" * 24)
    assert claim_files(cache_path) == {f"claim-{B}": "1"}
    assert store.claims.claim(B, 1) == 0


def test_claim_that_a_forked_child_inherits_ends_with_its_parents(cache_path: Path) -> None:
    first, second = pair(cache_path)
    first.claims.claim(A, 5)
    ready, ready_there = os.pipe()
    end_there, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready_there, b"x")
        os.read(end_there, 1)
        os._exit(0)
    os.read(ready, 1)
    first.claims.close()
    assert second.claims.claim(B, 1) == 0, "the child does not keep it"
    os.write(end, b"x")
    os.waitpid(child, 0)
    for fd in (ready, ready_there, end, end_there):
        os.close(fd)


def test_entries_of_a_group_are_others_only_while_others_alone_claim_it(cache_path: Path) -> None:
    first, second = pair(cache_path)
    watcher = open_test_store(cache_path)

    def says(store: ShardStore, group: str) -> bool:
        with store.directory.locked(1.0):
            return store.claims.are_others(group + "7" * 24)

    first.claims.claim(A, 5)
    assert [says(store, A) for store in (first, second, watcher)] == [False, True, True]
    assert [says(store, B) for store in (first, second, watcher)] == [False, False, False]
    second.claims.claim(A, 5)
    assert [says(store, A) for store in (first, second, watcher)] == [False, False, True]


@pytest.mark.parametrize("text", ["", "12\x00", "many", "-4"])
def test_claim_file_with_torn_text_counts_for_nothing_and_spares_all_the_same(cache_path: Path, text: str) -> None:
    first, second = pair(cache_path)
    first.claims.claim(A, 5)
    (cache_path / f"claim-{A}").write_text(text)
    assert second.claims.claim(B, 1) == 0
    with second.directory.locked(1.0):
        assert second.claims.are_others(A + "7" * 24)
    first.claims.claim(A, 6)
    assert second.claims.claim(B, 1) == 6


def test_claim_on_a_full_file_system_spares_entries_and_is_told_later(
    cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair(cache_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    second.claims.claim(B, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert first.claims.claim(A, 5) == 1
    with second.directory.locked(1.0):
        assert second.claims.are_others(A + "7" * 24)
    assert second.claims.claim(B, 1) == 0
    first.claims.claim(A, 5)
    assert second.claims.claim(B, 1) == 5


def test_claim_whose_file_somebody_removed_is_made_again(cache_path: Path) -> None:
    first, second = pair(cache_path)
    first.claims.claim(A, 5)
    (cache_path / f"claim-{A}").unlink()
    assert second.claims.claim(B, 1) == 0
    assert first.claims.claim(A, 5) == 1
    assert second.claims.claim(B, 1) == 5


def test_claims_do_not_outlive_the_users_of_a_directory_that_does(cache_path: Path) -> None:
    for keys in (None, [f"{1:032x}"]):
        store = open_test_store(cache_path)
        get(store, 1).close()
        if keys:
            store.keep(keys)
        else:
            (cache_path / ".keep").touch()
        store.claims.claim(A, 5)
        store.leave()
        assert (cache_path / f"{1:032x}.shard").exists()
        store = open_test_store(cache_path)
        assert claim_files(cache_path) == {}
        (cache_path / ".keep").unlink()
        store.leave()
        assert not cache_path.exists()


def test_node_cache_claims_in_the_tier_that_keeps_what_is_made(cache_path: Path) -> None:
    options = CacheOptions(mode="shm", directory=str(cache_path))
    with NodeCache(options) as first, NodeCache(options) as second:
        assert first.claim("decoded a", 5) == 0
        assert second.claim("decoded b", 6) == 5
        assert first.claim("decoded a", 5) == 6
    assert not cache_path.exists()
    with NodeCache(CacheOptions(mode="off")) as cache:
        assert cache.claim("decoded a", 5) == 0


def test_node_cache_whose_directory_was_removed_claims_in_the_next_one(cache_path: Path) -> None:
    with NodeCache(CacheOptions(mode="shm", directory=str(cache_path))) as cache:
        cache.claim("decoded a", 5)
        for file in cache_path.iterdir():
            file.unlink()
        cache_path.rmdir()
        assert cache.claim("decoded a", 5) == 0
        cache.claim("decoded a", 5)
        assert list(claim_files(cache_path).values()) == ["5"]


def test_node_cache_that_is_copied_into_a_child_claims_anew(cache_path: Path) -> None:
    with NodeCache(CacheOptions(mode="shm", directory=str(cache_path))) as cache:
        cache.claim("decoded a", 5)
        child = os.fork()
        if child == 0:
            right = cache.claim("decoded b", 6) == 5
            os.kill(os.getpid(), signal.SIGKILL if right else signal.SIGTERM)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert cache.claim("decoded a", 5) == 0
