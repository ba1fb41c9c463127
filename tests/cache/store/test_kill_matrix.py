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
    counted_bytes,
    fill_with,
    get,
    key_of,
    names,
    noted_bytes,
    open_test_store,
    read_all,
    run_claimer,
    run_failing_victim,
    run_victim,
)

# Every step that a process of each kind passes, in order.
ENTER = ["enter.opened", "enter.locked", "open.locked", "total.counted", "open.shared"]
FILL = [
    "turn.poll",
    "turn.locked",
    "reserve.locked",
    "reserve.evicted",
    "total.opened",
    "reserve.created",
    "reserve.sized",
    "total.closed",
    "fill.reserved",
    "fill.freed",
    "fill.allocated",
    "fill.verified",
    "fill.leased",
    "publish.locked",
    "fill.renamed",
    "fill.dropped",
    "fill.done",
]
EVICT = ["total.counted", "total.opened", "total.closed", "evict.locked", "evict.unlinked", "fill.freed"]
LEAVE = ["leave.begin", "leave.exclusive", "leave.renamed", "leave.unlocked", "remove.one", "leave.removed"]
HIT = ["hit.opened", "hit.locked"]
CLAIM = ["claim.locked", "claim.created", "claim.held", "claim.told", "claim.removed"]


def kill(path: Path, keys: list[int], step: str, *, leave: bool = False, release: bool = True, count: int = 1) -> None:
    """Run a process that dies by SIGKILL at a step, and see that it did."""
    victim = context().Process(
        target=run_victim, args=(str(path), 2 * SIZE, keys, KillAt(step, count), leave, release), daemon=True
    )
    victim.start()
    victim.join(DEADLINE_S)
    assert victim.exitcode == -9, f"the step {step} was not reached"


def kill_claimer(path: Path, step: str) -> None:
    """Run a process that finds a dead claim, and dies at a step of its own."""
    (path / "claim-00000009").write_text("9")
    victim = context().Process(
        target=run_claimer, args=(str(path), "0000000a", 5, context().Pipe()[1], KillAt(step)), daemon=True
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
        assert counted_bytes(path) <= 2 * SIZE
    assert not any(name.endswith(".part") for name in names(path))
    assert noted_bytes(path) == counted_bytes(path)
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
    if step not in ("fill.dropped", "fill.done", "fill.renamed"):  # a hit counts nothing
        assert noted_bytes(cache_path) == SIZE
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
    assert noted_bytes(cache_path) == 2 * SIZE
    for lease in leases:
        lease.close()
    store.directory.leave()
    assert_works(cache_path)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("step", ["total.opened", "total.closed"])
def test_filler_killed_at_any_of_its_totals_others_count_again(cache_path: Path, step: str, count: int) -> None:
    # The first is that of entering alone.
    kill(cache_path, [1], step, count=count)
    assert (noted_bytes(cache_path) is None) == (step == "total.opened")
    assert_works(cache_path)


@pytest.mark.parametrize("step", ["fill.allocated", "total.opened", "total.closed"])
def test_failing_filler_killed_while_it_tidies_others_go_on(cache_path: Path, step: str) -> None:
    store = open_test_store(cache_path, 2 * SIZE)
    get(store, 1).close()
    victim = context().Process(
        target=run_failing_victim,
        args=(str(cache_path), 2 * SIZE, 2, KillAt(step, 2 if step.startswith("total") else 1)),
        daemon=True,
    )
    victim.start()
    victim.join(DEADLINE_S)
    assert victim.exitcode == -9, f"the step {step} was not reached"
    for number in (1, 3, 2):
        lease = get(store, number)
        assert read_all(lease) == content(number)
        lease.close()
        assert counted_bytes(cache_path) <= 2 * SIZE
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == 2 * SIZE
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
        assert counted_bytes(cache_path) <= 2 * SIZE
    assert len(names(cache_path)) == 2
    assert noted_bytes(cache_path) == 2 * SIZE
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


@pytest.mark.parametrize("step", CLAIM)
def test_claimer_killed_its_claim_ends_and_others_claim_and_evict(cache_path: Path, step: str) -> None:
    store = open_test_store(cache_path, 2 * SIZE)
    get(store, 0xA << 96).close()
    kill_claimer(cache_path, step)
    assert store.claims.claim("0000000b", 1) == 0
    assert [file.name for file in cache_path.glob("claim-*")] == ["claim-0000000b"]
    assert store.try_acquire(key_of(1), 2 * SIZE, fill_with(1, 2 * SIZE), is_made=True) is not None
    assert names(cache_path) == {"1.shard"}
    store.leave()
    assert_works(cache_path)


@pytest.mark.parametrize("step", CLAIM)
def test_claimer_killed_alone_the_next_start_works_and_cleans(cache_path: Path, step: str) -> None:
    cache_path.mkdir(mode=0o700)
    kill_claimer(cache_path, step)
    assert_works(cache_path)


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
    assert names(cache_path) == {"1.part", "2.shard"}
    assert noted_bytes(cache_path) == 2 * SIZE
    get(store, 3).close()
    assert names(cache_path) == {"2.shard", "3.shard"}, "what is dead goes before anybody is evicted"
    store.directory.leave()
