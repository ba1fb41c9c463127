"""Memory pressure: bytes are given back, by one process at a time, and never leased ones."""

from pathlib import Path

import pytest
from cache_actors import SIZE, get, key_of, names, open_test_store

from epistream.cache.store.pressure import Relief
from epistream.cgroups import System


def system_at(path: Path, percent: float) -> System:
    (path / "pressure").mkdir(parents=True, exist_ok=True)
    (path / "pressure" / "memory").write_text(f"some avg10={percent:.2f} avg60=0.00 avg300=0.00 total=9\n")
    return System(path)


@pytest.mark.parametrize(("percent", "num_left"), [(0.0, 8), (9.99, 8), (10.0, 6), (90.0, 6)])
def test_pressure_above_the_limit_gives_back_a_quarter(
    cache_path: Path, tmp_path: Path, percent: float, num_left: int
) -> None:
    store = open_test_store(cache_path)
    for number in range(8):
        get(store, number).close()
    given = Relief(system_at(tmp_path, percent)).look(store)
    assert given == (8 - num_left) * SIZE
    assert names(cache_path) == {f"{number}.shard" for number in range(8 - num_left, 8)}, "the oldest go first"


def test_pressure_takes_nothing_that_is_leased(cache_path: Path, tmp_path: Path) -> None:
    store = open_test_store(cache_path)
    leases = [get(store, number) for number in range(4)]
    assert Relief(system_at(tmp_path, 50.0)).look(store) == 0
    assert len(names(cache_path)) == 4
    for lease in leases:
        lease.close()


def test_pressure_spares_what_its_process_is_about_to_use_while_others_suffice(
    cache_path: Path, tmp_path: Path
) -> None:
    store = open_test_store(cache_path, upcoming=lambda: {key_of(0), key_of(2)})
    leases = [get(store, number) for number in range(8)]
    for lease in leases[:6]:
        lease.close()
    assert Relief(system_at(tmp_path, 50.0)).look(store) == 2 * SIZE
    assert names(cache_path) == {f"{number}.shard" for number in (0, 2, 4, 5, 6, 7)}
    assert store.give_back(3 * SIZE) == 3 * SIZE, "they leave when nothing else is left"
    assert names(cache_path) == {f"{number}.shard" for number in (2, 6, 7)}, "the older one first"
    for lease in leases[6:]:
        lease.close()


def test_pressure_seen_by_two_processes_is_answered_once(cache_path: Path, tmp_path: Path) -> None:
    store, other = open_test_store(cache_path), open_test_store(cache_path)
    for number in range(8):
        get(store, number).close()
    system = system_at(tmp_path, 50.0)
    assert Relief(system).look(store) == 2 * SIZE
    assert Relief(system).look(other) == 0


def test_pressure_that_cannot_be_read_changes_nothing(cache_path: Path, tmp_path: Path) -> None:
    store = open_test_store(cache_path)
    get(store, 1).close()
    assert Relief(System(tmp_path)).look(store) == 0
