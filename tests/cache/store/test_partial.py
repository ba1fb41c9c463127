"""Partial entries: many bring one, nobody brings what is there, and what the dead brought is gone on with."""

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
from cache_actors import DEADLINE_S, KillAt, context, counted_bytes, key_of, names, noted_bytes, open_test_store
from partial_actors import (
    CHARGE,
    PLACES,
    SIZE,
    FreezeAt,
    bring,
    fill,
    have_of,
    join,
    parts_of,
    run_filler,
    run_reader,
    whole,
)

from epistream.cache.store.lease import Lease
from epistream.cache.store.partial import GRANULE_BYTES, Partial
from epistream.cache.store.survey import find_remains, survey

NOTHING_ABSENT = [[], []]
ALL_ABSENT = [[(0, PLACES[0][1])], [(0, PLACES[1][1])]]
BEGIN = ["begin.reserved", "share.begun", "begin.done"]
BRING = ["share.locked", "share.fetched", "share.written", "share.flagged"]
FILL = ["reserve.adopted", "fill.allocated", *BRING, "fill.verified", "fill.leased", "fill.renamed", "publish.unshared"]


def files(path: Path, number: int) -> set[str]:
    return {file.suffix for file in path.glob(f"{key_of(number)}.*")}


def begun(store, number: int) -> Partial:
    found = join(store, number)
    assert isinstance(found, Partial)
    return found


@pytest.fixture
def store(cache_path):
    opened = open_test_store(cache_path, 3 * CHARGE)
    yield opened
    opened.directory.leave()
    assert list(cache_path.parent.iterdir()) == []


def test_first_cold_reader_begins_and_others_join(store, cache_path):
    first = begun(store, 1)
    assert files(cache_path, 1) == {".part", ".have"}
    assert have_of(first) == ALL_ABSENT
    part, have = (cache_path / f"{key_of(1)}{kind}" for kind in (".part", ".have"))
    assert (part.stat().st_size, have.stat().st_size) == (SIZE, 5)
    assert part.stat().st_blocks == 0, "its pages come as they are written"
    assert bring(first, 1, only_part=1) == PLACES[1][1]
    assert have.read_bytes() == b"\0\0\0\0\1"
    second = begun(store, 1)
    assert have_of(second) == [ALL_ABSENT[0], []]
    assert second.parts[1].read(0, 5000) == whole(1)[1]
    assert bring(second, 1) == PLACES[0][1]
    assert have_of(first) == NOTHING_ABSENT
    assert first.parts[0].read(GRANULE_BYTES, PLACES[0][1]) == whole(1)[0][GRANULE_BYTES:]
    first.close()
    second.close()
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == CHARGE


def test_filler_goes_on_with_what_cold_readers_brought(store, cache_path):
    cold = begun(store, 1)
    bring(cold, 1, only_part=0)
    brought = []
    lease = fill(store, 1, brought)
    assert brought == [PLACES[1][1]]
    assert parts_of(lease) == whole(1)
    assert files(cache_path, 1) == {".shard"}
    # Who joined before finds everything, and may not begin again.
    assert have_of(cold) == NOTHING_ABSENT
    assert cold.parts[1].read(0, 5000) == whole(1)[1]
    again = join(store, 1)
    assert isinstance(again, Lease)
    again.close()
    cold.close()
    lease.close()
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == CHARGE


def test_fill_that_nobody_began_is_joined_while_it_runs(store):
    seen = []

    def fill_it(fd):
        partial = store.joining.share(key_of(1), PLACES)
        bring(partial, 1, only_part=0)
        joined = begun(store, 1)
        seen.append((have_of(joined), joined.parts[0].read(0, PLACES[0][1]) == whole(1)[0]))
        assert bring(joined, 1) == PLACES[1][1]
        joined.close()
        assert bring(partial, 1) == 0
        partial.close()

    lease = store.acquire(key_of(1), SIZE, fill_it)
    assert parts_of(lease) == whole(1)
    assert seen == [([[], ALL_ABSENT[1][0:1]], True)]
    lease.close()


def test_a_range_is_brought_by_one_while_another_takes_what_is_free(store):
    one, other = begun(store, 1), begun(store, 1)
    size = PLACES[0][1]
    with one.parts[0].turn(GRANULE_BYTES, 2 * GRANULE_BYTES, GRANULE_BYTES, 0.0) as ours:
        assert ours == [(GRANULE_BYTES, 2 * GRANULE_BYTES)]
        with other.parts[0].turn(0, size, GRANULE_BYTES, 0.0) as free:
            assert free == [(0, GRANULE_BYTES), (2 * GRANULE_BYTES, size)]
        # Units are taken whole or not at all; the same object excludes itself, as threads do each other.
        with one.parts[0].turn(0, size, 2 * GRANULE_BYTES, 0.0) as free:
            assert free == [(2 * GRANULE_BYTES, size)]
        with other.parts[0].turn(0, size, size, 0.0) as none:
            assert none is None
        with other.parts[1].turn(0, 5000, GRANULE_BYTES, 0.0) as index:
            assert index == [(0, 5000)]
    with other.parts[0].turn(0, size, size, 0.0) as free:
        assert free == [(0, size)]
    one.close()
    other.close()


def test_who_waits_ends_when_all_is_there(store):
    one, other = begun(store, 1), begun(store, 1)
    started, answers = threading.Event(), []
    store.directory.observe = lambda step: started.set() if step == "share.locked" else None

    def wait() -> None:
        with other.parts[1].turn(0, 5000, 5000, DEADLINE_S) as runs:
            answers.append(runs)

    with one.parts[1].turn(0, 5000, 5000, 0.0) as ours:
        started.clear()
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert started.wait(DEADLINE_S)
        assert ours == [(0, 5000)]
        one.parts[1].write(0, whole(1)[1])
    waiter.join(DEADLINE_S)
    assert answers == [[]]
    one.close()
    other.close()


def test_idle_partial_entries_leave_like_others_and_used_ones_do_not(store, cache_path):
    used, idle = begun(store, 1), begun(store, 2)
    bring(idle, 2)
    idle.close()
    fill(store, 3).close()
    assert names(cache_path) == {"1.part", "2.part", "3.shard"}
    fill(store, 4).close()
    assert names(cache_path) == {"1.part", "3.shard", "4.shard"}
    assert files(cache_path, 2) == set()
    fill(store, 5).close()
    fill(store, 6).close()
    assert names(cache_path) == {"1.part", "5.shard", "6.shard"}
    assert bring(used, 1) == sum(size for _, size in PLACES)
    used.close()
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == 3 * CHARGE
    assert store.give_back() == 3 * CHARGE
    assert names(cache_path) == set()
    assert not list(cache_path.glob("*.have"))


def test_partial_entry_whose_writer_died_does_not_look_like_the_newest(store, cache_path):
    begun(store, 1).close()
    part = cache_path / f"{key_of(1)}.part"
    part.write_bytes(part.read_bytes())  # its time is the wall clock's now
    fill(store, 2).close()
    fill(store, 3).close()
    fill(store, 4).close()
    assert names(cache_path) == {"2.shard", "3.shard", "4.shard"}


def test_cold_reader_without_room_reads_alone(store, cache_path):
    leases = [fill(store, number) for number in (1, 2, 3)]
    assert join(store, 4) is None
    assert names(cache_path) == {"1.shard", "2.shard", "3.shard"}
    assert files(cache_path, 4) == set()
    for lease in leases:
        lease.close()


@pytest.mark.parametrize("size", [0, 3, 6, 100_000])
def test_have_of_another_size_is_not_believed_and_begun_anew(store, cache_path, size):
    cold = begun(store, 1)
    cold.close()
    have = cache_path / f"{key_of(1)}.have"
    have.write_bytes(b"\1" * size)
    found = begun(store, 1)
    assert have_of(found) == ALL_ABSENT
    found.close()
    have.write_bytes(b"\1" * size)
    brought = []
    lease = fill(store, 1, brought)
    assert brought == [sum(size for _, size in PLACES)]
    assert parts_of(lease) == whole(1)
    lease.close()
    assert files(cache_path, 1) == {".shard"}


def test_have_without_its_part_tells_nothing_and_is_removed(store, cache_path):
    for number in (1, 2):
        (cache_path / f"{key_of(number)}.have").write_bytes(b"\1" * 5)
    cold = begun(store, 1)
    assert have_of(cold) == ALL_ABSENT
    cold.close()
    store.give_back()
    assert not list(cache_path.glob("*.have"))


def test_part_of_another_size_is_replaced(store, cache_path):
    begun(store, 1).close()
    (cache_path / f"{key_of(1)}.part").write_bytes(b"short")
    cold = begun(store, 1)
    assert have_of(cold) == ALL_ABSENT
    assert (cache_path / f"{key_of(1)}.part").stat().st_size == SIZE
    cold.close()


def test_fill_that_fails_takes_the_partial_entry_with_it(store, cache_path):
    cold = begun(store, 1)
    bring(cold, 1)

    def fail(fd):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        store.acquire(key_of(1), SIZE, fail)
    assert files(cache_path, 1) == set()
    assert noted_bytes(cache_path) == 0
    # Who still has it reads and writes what nobody else sees.
    assert cold.parts[1].read(0, 5000) == whole(1)[1]
    cold.parts[1].clear()
    with cold.parts[1].turn(0, 5000, 5000, DEADLINE_S) as runs:
        assert runs is None
    cold.close()
    lease = fill(store, 1)
    assert parts_of(lease) == whole(1)
    lease.close()


def test_full_disk_tells_nobody_of_bytes_that_were_not_written(store, monkeypatch):
    cold = begun(store, 1)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            cold.parts[1].write(0, whole(1)[1])
    assert have_of(cold) == ALL_ABSENT
    cold.close()


def test_file_system_without_such_locks_shares_nothing(store, monkeypatch):
    cold = begun(store, 1)

    real = fcntl.fcntl

    def refuse(fd, command, *arguments):
        if command == fcntl.F_OFD_SETLK:  # to unlock, too
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, command, *arguments)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with cold.parts[0].turn(0, GRANULE_BYTES, GRANULE_BYTES, DEADLINE_S) as runs:
        assert runs is None
    cold.close()


def test_entry_that_is_shared_while_the_files_are_listed_is_no_remain(store, cache_path, monkeypatch):
    real, shared = os.listdir, []

    def listdir(path):
        listed = real(path)
        if isinstance(path, int) and shared == []:  # half way: its .part is there, and the .have is not
            begun_meanwhile = begun(other, 1)
            bring(begun_meanwhile, 1)
            shared.append(begun_meanwhile)
            listed.append(f"{key_of(1)}.part")
        return listed

    other = open_test_store(cache_path)
    monkeypatch.setattr(os, "listdir", listdir)
    items = survey(store.directory)
    assert [item.kind for item in items] == [".part"]
    assert find_remains(store.directory, items, "") == []
    assert find_remains(store.directory, items, key_of(1)) == []
    shared[0].close()
    (cache_path / f"{key_of(1)}.have").unlink()
    assert find_remains(store.directory, items, "") == items
    other.leave()


# --- processes -------------------------------------------------------------------------------------------------


def start(target, path: Path, number: int, observe, cap: int = 3 * CHARGE):
    process = context().Process(target=target, args=(str(path), cap, number, observe), daemon=True)
    process.start()
    return process


def kill(target, path: Path, number: int, step: str, count: int = 1) -> None:
    process = start(target, path, number, KillAt(step, count))
    process.join(DEADLINE_S)
    assert process.exitcode == -9, f"the step {step} was not reached"


def assert_goes_on(store, path: Path, number: int) -> None:
    """Others finish with right bytes, and nothing is left over."""
    found = join(store, number)
    if isinstance(found, Partial):
        bring(found, number)
        assert found.parts[0].read(0, PLACES[0][1]) == whole(number)[0]
    if found is not None:
        found.close()
    lease = fill(store, number)
    assert parts_of(lease) == whole(number)
    assert files(path, number) <= {".shard", ".have", ".fill"}, "the last two until the files are counted"
    assert counted_bytes(path) == CHARGE * len(names(path))
    lease.close()
    store.give_back()
    assert not [file.name for file in path.iterdir() if file.suffix in (".shard", ".part", ".have", ".fill")]


@pytest.mark.parametrize("step", ["join.locked", *BEGIN, *BRING])
@pytest.mark.parametrize("is_begun", [False, True])
def test_cold_reader_killed_others_go_on(store, cache_path, step, is_begun):
    if is_begun:
        begun(store, 1).close()
    if step in (BEGIN if is_begun else ["join.locked"]):
        pytest.skip("not passed")
    kill(run_reader, cache_path, 1, step)
    assert_goes_on(store, cache_path, 1)


@pytest.mark.parametrize("step", FILL)
def test_filler_of_what_others_began_killed_others_go_on(store, cache_path, step):
    cold = begun(store, 1)
    bring(cold, 1, only_part=1)
    cold.close()
    kill(run_filler, cache_path, 1, step)
    assert_goes_on(store, cache_path, 1)


@pytest.mark.parametrize("step", ["share.begun", *BRING, "fill.renamed", "publish.unshared"])
def test_filler_killed_alone_the_next_start_goes_on_and_cleans(cache_path, step):
    kill(run_filler, cache_path, 1, step)
    store = open_test_store(cache_path, 3 * CHARGE)
    assert_goes_on(store, cache_path, 1)
    store.directory.leave()
    assert list(cache_path.parent.iterdir()) == []


@pytest.mark.parametrize("step", [*BEGIN, *BRING])
def test_partial_entry_of_the_dead_does_not_eat_the_budget(store, cache_path, step):
    kill(run_reader, cache_path, 1, step)
    leases = [fill(store, number) for number in (2, 3, 4)]
    assert names(cache_path) == {"2.shard", "3.shard", "4.shard"}
    assert files(cache_path, 1) <= {".have"}
    for lease in leases:
        lease.close()


@pytest.mark.parametrize("step", ["evict.locked", "evict.unlinked"])
def test_evictor_of_a_partial_entry_killed_others_go_on(store, cache_path, step):
    for number in (1, 2, 3):
        begun(store, number).close()
    kill(run_filler, cache_path, 4, step)
    for number in (1, 4, 2):
        assert_goes_on(store, cache_path, number)


def test_next_filler_goes_on_where_one_was_killed(store, cache_path):
    kill(run_filler, cache_path, 1, "share.flagged")
    brought = []
    fill(store, 1, brought).close()
    assert brought == [PLACES[1][1]]


@pytest.mark.parametrize("step", ["share.locked", "share.fetched", "share.written"])
def test_stopped_cold_reader_is_waited_for_within_bounds_and_its_late_bytes_change_nothing(store, cache_path, step):
    ours, theirs = multiprocessing.Pipe()
    reader = start(run_reader, cache_path, 1, FreezeAt(step, theirs))
    assert ours.poll(DEADLINE_S)
    pid = ours.recv()
    cold = begun(store, 1)
    with cold.parts[0].turn(0, PLACES[0][1], PLACES[0][1], 0.02) as runs:
        assert runs is None, "he has it"
    lease = fill(store, 1, patience_s=0.02)
    assert parts_of(lease) == whole(1)
    os.kill(pid, signal.SIGCONT)
    reader.join(DEADLINE_S)
    assert reader.exitcode == 0
    assert parts_of(lease) == whole(1)
    assert files(cache_path, 1) == {".shard"}
    cold.close()
    lease.close()


def test_stopped_filler_hinders_no_cold_reader(store, cache_path):
    ours, theirs = multiprocessing.Pipe()
    filler = start(run_filler, cache_path, 1, FreezeAt("share.fetched", theirs))
    assert ours.poll(DEADLINE_S)
    pid = ours.recv()
    cold = begun(store, 1)
    assert bring(cold, 1, 0.02, only_part=1) == PLACES[1][1], "what he has not begun"
    with cold.parts[0].turn(0, GRANULE_BYTES, GRANULE_BYTES, 0.02) as runs:
        assert runs is None
    os.kill(pid, signal.SIGCONT)
    filler.join(DEADLINE_S)
    assert filler.exitcode == 0
    assert have_of(cold) == NOTHING_ABSENT
    cold.close()
    lease = fill(store, 1)
    assert parts_of(lease) == whole(1)
    lease.close()


def test_forked_child_keeps_no_turn_and_no_entry_alive(store, cache_path):
    cold = begun(store, 1)
    with cold.parts[0].turn(0, GRANULE_BYTES, GRANULE_BYTES, 0.0) as runs:
        assert runs
        ours, theirs = multiprocessing.Pipe()
        pid = os.fork()
        if pid == 0:
            cold.close()  # the parent's
            theirs.recv()
            os._exit(0)
    with cold.parts[0].turn(0, GRANULE_BYTES, GRANULE_BYTES, 0.0) as runs:
        assert runs == [(0, GRANULE_BYTES)], "given back, although the child lives"
        other = begun(store, 1)
        with other.parts[0].turn(0, GRANULE_BYTES, GRANULE_BYTES, 0.0) as none:
            assert none is None, "the child took nothing from the parent"
        other.close()
    cold.close()
    assert store.give_back() == CHARGE, "no lock of the child's stands in the way"
    ours.send("end")
    os.waitpid(pid, 0)


@pytest.mark.parametrize("kinds", [(".have",), (".fill",), (".have", ".fill")])
def test_evictor_leaves_what_is_in_use_and_hinders_no_filler(store, cache_path, kinds):
    """Somebody looks for victims at the very time when one of them is filled: it keeps every lock that it needs."""
    tried = []

    def fill_it(fd):
        for _ in range(3):
            assert store.give_back() == 0
            tried.append(files(cache_path, 1))
        partial = store.joining.share(key_of(1), PLACES)
        assert store.give_back() == 0
        bring(partial, 1)
        partial.close()
        assert store.give_back() == 0

    held = begun(store, 1)
    if ".have" not in kinds:
        held.close()
    if ".fill" in kinds:
        store.acquire(key_of(1), SIZE, fill_it).close()
        assert tried == [{".part", ".have", ".fill"}] * 3
    else:
        assert store.give_back() == 0
    held.close()
    assert store.give_back() == CHARGE
