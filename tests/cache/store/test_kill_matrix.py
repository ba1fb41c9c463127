"""SIGKILL at every step of the protocol: others go on, no lock stays, and what is left behind is cleaned."""

from pathlib import Path

import pytest
from cache_actors import (
    DEADLINE_S,
    PAGE,
    SIZE,
    KillAt,
    content,
    context,
    get,
    key_of,
    names,
    open_test_store,
    read_all,
    run_victim,
)

# Every step that a process of each kind passes, in order.
ENTER = ["enter.opened", "enter.locked", "open.locked", "open.shared"]
FILL = [
    "turn.poll",
    "turn.locked",
    "reserve.locked",
    "reserve.evicted",
    "reserve.created",
    "reserve.sized",
    "fill.reserved",
    "fill.freed",
    "fill.allocated",
    "fill.verified",
    "fill.leased",
    "publish.locked",
    "fill.renamed",
    "fill.done",
]
EVICT = ["evict.locked", "evict.unlinked", "fill.freed"]
LEAVE = ["leave.begin", "leave.exclusive", "leave.renamed", "leave.unlocked", "remove.one", "leave.removed"]
HIT = ["hit.opened", "hit.locked"]


def kill(path: Path, keys: list[int], step: str, *, leave: bool = False, release: bool = True, count: int = 1) -> None:
    """Run a process that dies by SIGKILL at a step, and see that it did."""
    victim = context().Process(
        target=run_victim, args=(str(path), 2 * SIZE, keys, KillAt(step, count), leave, release), daemon=True
    )
    victim.start()
    victim.join(DEADLINE_S)
    assert victim.exitcode == -9, f"the step {step} was not reached"


def assert_works(path: Path) -> None:
    """A new process can use the directory, and leaves nothing when it is the last."""
    store = open_test_store(path, 2 * SIZE)
    for number in (1, 2, 3, 1):
        with_lease = get(store, number)
        assert read_all(with_lease) == content(number)
        with_lease.close()
    assert not any(name.endswith(".part") for name in names(path))
    store.directory.leave()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("step", ENTER + FILL)
def test_filler_killed_alone_the_next_start_works_and_cleans(cache_path: Path, step: str) -> None:
    kill(cache_path, [1], step)
    assert_works(cache_path)


@pytest.mark.parametrize("step", FILL)
def test_filler_killed_others_go_on_with_the_same_shard(cache_path: Path, step: str) -> None:
    store = open_test_store(cache_path, 2 * SIZE)
    kill(cache_path, [1], step)
    lease = get(store, 1)
    assert read_all(lease) == content(1)
    assert names(cache_path) == {"1.shard"}
    lease.close()
    store.directory.leave()
    assert_works(cache_path)


@pytest.mark.parametrize("step", FILL)
def test_filler_killed_its_part_does_not_eat_the_budget(cache_path: Path, step: str) -> None:
    store = open_test_store(cache_path, 2 * SIZE)
    kill(cache_path, [1], step)
    # Other keys, that need the whole budget.
    leases = [get(store, 2), get(store, 3)]
    assert [read_all(lease) for lease in leases] == [content(2), content(3)]
    assert names(cache_path) == {"2.shard", "3.shard"}
    for lease in leases:
        lease.close()
    store.directory.leave()
    assert_works(cache_path)


@pytest.mark.parametrize("step", EVICT)
def test_evictor_killed_others_go_on(cache_path: Path, step: str) -> None:
    store = open_test_store(cache_path, 2 * SIZE)
    for number in (1, 2):
        get(store, number).close()
    kill(cache_path, [3], step)
    for number in (3, 1, 2):
        lease = get(store, number)
        assert read_all(lease) == content(number)
        lease.close()
    assert len(names(cache_path)) == 2
    store.directory.leave()
    assert_works(cache_path)


@pytest.mark.parametrize("step", HIT)
def test_reader_killed_its_lease_ends(cache_path: Path, step: str) -> None:
    store = open_test_store(cache_path, SIZE)
    get(store, 1).close()
    kill(cache_path, [1], step)
    # Room for one only: the dead reader's lease must not stand in the way.
    assert read_all(get(store, 2)) == content(2)
    store.directory.leave()


def test_holder_killed_its_leases_end(cache_path: Path) -> None:
    store = open_test_store(cache_path, 2 * SIZE)
    kill(cache_path, [1, 2], "leave.begin", leave=True, release=False)
    leases = [get(store, 3), get(store, 4)]
    assert names(cache_path) == {"3.shard", "4.shard"}
    for lease in leases:
        lease.close()
    store.directory.leave()
    assert_works(cache_path)


@pytest.mark.parametrize("step", LEAVE)
@pytest.mark.parametrize("count", [1, 2])
def test_leaver_killed_the_next_start_cleans(cache_path: Path, step: str, count: int) -> None:
    if count == 2 and step != "remove.one":
        pytest.skip("passed once only")
    kill(cache_path, [1, 2], step, leave=True, count=count)
    assert_works(cache_path)


@pytest.mark.parametrize("step", ["turn.poll", "room.wait"])
def test_waiter_killed_others_go_on(cache_path: Path, step: str) -> None:
    store = open_test_store(cache_path, 2 * SIZE)
    leases = [get(store, 1), get(store, 2)]
    kill(cache_path, [3], step)  # it waits for room, with no lock
    for lease in leases:
        lease.close()
    assert read_all(get(store, 3)) == content(3)
    store.directory.leave()


def test_everybody_killed_the_next_start_sweeps_what_lies_beside(cache_path: Path) -> None:
    kill(cache_path, [1, 2], "leave.renamed", leave=True)
    kill(cache_path, [1, 2], "leave.unlocked", leave=True)
    kill(cache_path, [1], "fill.verified")
    assert len(list(cache_path.parent.iterdir())) == 1, "the third start buried the dead of the first two"
    assert_works(cache_path)


def test_killed_filler_leaves_a_part_that_is_counted_until_it_is_removed(cache_path: Path) -> None:
    store = open_test_store(cache_path, 2 * SIZE)
    kill(cache_path, [1], "fill.allocated")
    assert names(cache_path) == {"1.part"}
    part = cache_path / f"{key_of(1)}.part"
    assert part.stat().st_size == SIZE
    assert part.stat().st_blocks * 512 == 4 * PAGE
    get(store, 2).close()
    assert names(cache_path) == {"2.shard"}
    store.directory.leave()
