"""Memory that is short: bytes are given back, by one process at a time, and never leased ones."""

from pathlib import Path

import pytest
from cache_actors import SIZE, context, fill_with, get, key_of, names, open_test_store, run_relief
from machines import GIB, Machine

from epistream.cache import stores
from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.cache.store import pressure
from epistream.cache.store.budget import Limits
from epistream.cache.store.pressure import Relief
from epistream.cache.store.store import ShardStore
from epistream.cgroups import System


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def store_on(machine: Machine, path: Path, **changes) -> ShardStore:
    return open_test_store(path, limits=Limits(system=machine.system), **changes)


def fill(store: ShardStore, count: int = 8) -> None:
    for number in range(count):
        get(store, number).close()


@pytest.mark.parametrize(("percent", "num_left"), [(0.0, 8), (9.99, 8), (10.0, 6), (90.0, 6)])
def test_pressure_above_the_limit_gives_back_a_quarter(
    cache_path: Path, machine: Machine, percent: float, num_left: int
) -> None:
    store, relief = store_on(machine, cache_path), Relief()
    fill(store)
    machine.wait_for_memory(percent)
    assert relief.look(store) == (8 - num_left) * SIZE
    assert names(cache_path) == {f"{number}.shard" for number in range(8 - num_left, 8)}, "the oldest go first"
    assert relief.is_short == (num_left < 8)


@pytest.mark.parametrize(("available", "num_left"), [(3.3 * GIB, 8), (3.1 * GIB, 6), (0, 0)])
def test_too_little_free_memory_gives_back_where_the_kernel_tells_of_no_waiting(
    cache_path: Path, machine: Machine, available: float, num_left: int
) -> None:
    machine.have(int(4 * GIB))
    store, relief = store_on(machine, cache_path), Relief()
    fill(store)
    machine.have(int(available))  # of 64 GiB a twentieth is 3.2
    if num_left == 0:  # half of what is held and free is the budget as well, and is the more
        num_left = 4
    assert relief.look(store) == (8 - num_left) * SIZE
    assert relief.is_short == (num_left < 8)


def test_free_memory_that_lacks_little_is_told_from_what_is_wanted(
    cache_path: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.have(int(4 * GIB))
    store, relief = store_on(machine, cache_path), Relief()
    fill(store)
    machine.have(int(3.199 * GIB))  # of 64 GiB a twentieth is 3.2
    assert relief.look(store) == 2 * SIZE
    assert "4.9984% of the memory free, wanted 5.0000% or more" in caplog.text


@pytest.mark.parametrize(("available", "num_left"), [(8.0, 8), (7.3, 8), (6.0, 7), (2.0, 5), (0.0, 4)])
def test_held_bytes_above_a_budget_that_others_made_smaller_are_given_back(
    cache_path: Path, machine: Machine, available: float, num_left: int
) -> None:
    machine.have(GIB, total=GIB)
    store, relief = store_on(machine, cache_path), Relief()
    fill(store)
    # The budget is half of what is free and held: 8 of 16 at first.
    machine.have(int(available * SIZE), total=4 * SIZE)
    given = relief.look(store)
    assert given == (8 - num_left) * SIZE
    machine.have(int(available * SIZE) + given, total=4 * SIZE)
    assert store.held_bytes() <= store.budget(afresh=True).bytes * 1.05


def test_pressure_takes_nothing_that_is_leased_and_asks_holders_to_give_up(cache_path: Path, machine: Machine) -> None:
    machine.have(GIB, total=GIB)
    store, relief = store_on(machine, cache_path), Relief()
    leases = [get(store, number) for number in range(4)]
    machine.have(0, total=1)
    assert relief.look(store) == 0
    assert len(names(cache_path)) == 4
    assert relief.is_short
    for lease in leases:
        lease.close()


def test_pressure_spares_what_its_process_is_about_to_use_while_others_suffice(
    cache_path: Path, machine: Machine
) -> None:
    store = store_on(machine, cache_path, upcoming=lambda: {key_of(0), key_of(2)})
    leases = [get(store, number) for number in range(8)]
    for lease in leases[:6]:
        lease.close()
    machine.wait_for_memory(50.0)
    assert Relief().look(store) == 2 * SIZE
    assert names(cache_path) == {f"{number}.shard" for number in (0, 2, 4, 5, 6, 7)}
    assert store.give_back(3 * SIZE) == 3 * SIZE, "they leave when nothing else is left"
    assert names(cache_path) == {f"{number}.shard" for number in (2, 6, 7)}, "the older one first"
    for lease in leases[6:]:
        lease.close()


def test_pressure_takes_what_was_made_first_and_of_that_what_nobody_else_claims(
    cache_path: Path, machine: Machine
) -> None:
    store, other = store_on(machine, cache_path), store_on(machine, cache_path)
    theirs = 0xA << 96
    other.claims.claim("0000000a", 2 * SIZE)
    for number, is_made in ((0, False), (theirs, True), (theirs + 1, True), (1, False), (2, True), (3, True)):
        store.try_acquire(key_of(number), SIZE, fill_with(number), is_made=is_made).close()
    left = [f"{number}.shard" for number in (2, 3, theirs, theirs + 1, 0, 1)]
    for given in range(1, 7):
        assert store.give_back(SIZE, made_first=True) == SIZE
        assert names(cache_path) == set(left[given:])
    for each in (store, other):
        each.leave()


def test_pressure_seen_by_two_processes_is_answered_once(cache_path: Path, machine: Machine) -> None:
    store, other = store_on(machine, cache_path), store_on(machine, cache_path)
    fill(store)
    machine.wait_for_memory(50.0)
    assert Relief().look(store) == 2 * SIZE
    relief = Relief()
    assert relief.look(other) == 0
    assert relief.is_short, "it makes nothing new either"


def test_pressure_that_cannot_be_read_changes_nothing(cache_path: Path, tmp_path: Path) -> None:
    store = open_test_store(cache_path, limits=Limits(system=System(tmp_path)))
    get(store, 1).close()
    assert Relief().look(store) == 0


def test_pressure_is_of_no_interest_to_a_directory_on_a_disk(cache_path: Path, machine: Machine) -> None:
    machine.wait_for_memory(90.0)
    machine.have(0)
    store = open_test_store(cache_path, limits=Limits(system=machine.system, in_memory=False))
    get(store, 1).close()
    relief = Relief()
    assert relief.look(store) == 0
    assert not relief.is_short


@pytest.mark.parametrize("step", ["evict.locked", "evict.unlinked", "relief.given"])
def test_giver_killed_others_give_back_and_fill(cache_path: Path, machine: Machine, step: str) -> None:
    store = store_on(machine, cache_path)
    fill(store)
    machine.wait_for_memory(50.0)
    victim = context().Process(target=run_relief, args=(str(cache_path), str(machine.system.proc), step), daemon=True)
    victim.start()
    victim.join(30.0)
    assert victim.exitcode == -9
    left = len(names(cache_path))
    assert Relief().look(store) == 2 * SIZE, "a quarter of 8, 7 or 6"
    assert store.held_bytes() == (left - 2) * SIZE
    assert get(store, 9).size == SIZE
    store.leave()


# --- as a job sees it --------------------------------------------------------------------------------------


def entry_of(number: int) -> Entry:
    return Entry((Part("/nowhere/0.tar", 10, "0" * 32),), f"made {number}", "g")


def test_nothing_is_made_while_memory_is_short_and_the_rest_is_served(
    cache_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "Limits", lambda **terms: Limits(**terms, system=machine.system))
    monkeypatch.setattr(pressure, "_LOOK_EVERY_S", (0.0, 0.0))
    made: list[int] = []

    def is_there(cache: NodeCache, number: int) -> bool:
        opened = cache.open_made(entry_of(number), SIZE, lambda view: made.append(number))
        if opened is not None:
            opened.close()
        return opened is not None

    with NodeCache(CacheOptions(mode="shm", directory=str(cache_path))) as cache:
        assert [is_there(cache, number) for number in range(8)] == [True] * 8
        assert not cache.is_short()
        machine.wait_for_memory(20.0)
        assert cache.is_short()
        assert [is_there(cache, number) for number in range(10)] == [False, False, *[True] * 6, False, False]
        assert made == list(range(8))
        stats = cache.stats()
        assert (stats.made_fills, stats.made_hits, stats.made_paused, stats.made_refused) == (8, 6, 4, 0)
        assert stats.bytes_given_back == 2 * SIZE
        machine.wait_for_memory(0.0)
        assert not is_there(cache, 0), "for some seconds"
        monkeypatch.setattr(pressure.time, "monotonic", lambda now=pressure.time.monotonic: now() + 60)
        assert is_there(cache, 0)


def test_room_that_is_not_there_is_counted_apart(cache_path: Path) -> None:
    with NodeCache(CacheOptions(mode="shm", directory=str(cache_path), budget_bytes=SIZE)) as cache:
        held = cache.open_made(entry_of(1), SIZE, lambda view: None)
        assert held is not None
        for _ in range(2):
            assert cache.open_made(entry_of(2), SIZE, lambda view: None) is None
        assert cache.open_made(entry_of(2), SIZE, None) is None, "who only looks is refused nothing"
        assert (cache.stats().made_refused, cache.stats().made_paused) == (2, 0)
        held.close()
