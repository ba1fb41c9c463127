"""A lease ends when it is closed or dropped, and its views with it."""

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
