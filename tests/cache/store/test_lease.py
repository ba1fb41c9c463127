"""A lease ends when it is closed or dropped, and its views with it."""

import os
from pathlib import Path

import pytest
from cache_actors import SIZE, content, get, names, open_test_store


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


def test_lease_that_rests_lets_the_entry_go_and_knows_it(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=SIZE)
    lease = get(store, 1)
    view = lease.view(0, SIZE)
    assert lease.renew(used=True)
    lease.rest()
    assert lease.renew(used=True)
    get(store, 2).close()  # evicts 1
    assert names(cache_path) == {"2.shard"}
    assert not lease.renew(used=True)
    assert not lease.renew(used=False)
    assert bytes(view) == content(1)
    lease.close()
    assert not lease.renew(used=False)


def test_lease_that_rests_leaves_before_those_used_after_it_unless_it_was_used_again(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=2 * SIZE)
    first, second = get(store, 1), get(store, 2)
    for lease in (first, second):
        lease.rest()
    assert second.renew(used=False)
    assert first.renew(used=True)
    get(store, 3).close()
    assert names(cache_path) == {"1.shard", "3.shard"}
    assert not second.renew(used=False)


def test_lease_writes_in_place_what_others_then_see(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    get(store, 1).close()
    writer, reader = get(store, 1), get(store, 1)
    view = reader.view(0, SIZE)
    assert writer.write(3, b"abc")
    assert writer.write(SIZE - 1, memoryview(b"z"))
    assert bytes(view) == content(1)[:3] + b"abc" + content(1)[6 : SIZE - 1] + b"z"


@pytest.mark.parametrize("end", ["closed", "asked for"])
def test_entry_that_was_written_in_place_is_as_recent_as_that_and_no_more(cache_path: Path, end: str) -> None:
    store = open_test_store(cache_path, cap=3 * SIZE)
    writer = get(store, 1)
    writer.write(0, b"abc")  # its stamp is the time of day now, which is after all times since boot
    if end == "closed":
        writer.close()
    else:
        writer.rest()
        assert writer.renew(used=False)
    for number in (2, 3, 4):
        get(store, number).close()
    assert names(cache_path) == {"2.shard", "3.shard", "4.shard"}
    writer.close()


def test_lease_in_a_forked_child_neither_unlocks_nor_writes(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=SIZE)
    lease = get(store, 1)
    pid = os.fork()
    if pid == 0:
        lease.rest()
        os._exit(int(lease.renew(used=True)))
    assert os.waitpid(pid, 0)[1] == 0
    assert store.give_back() == 0  # still leased here
    lease.close()
