"""An arena's slots: never a torn or a foreign thing to a reader, whoever is killed or stopped; used again in order."""

import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from functools import partial

import numpy as np
import pytest
from machine.killing import killed_at

from epistream.cache.arena import Arena
from epistream.cache.arena_slots import ArenaSlots, table_bytes
from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part

SLOT = 2 * 4096
DEADLINE_S = 30.0


def make(directory, num_slots=6, **options):
    """A user of the arena of a directory: its cache, arena and slots."""
    cache = NodeCache(CacheOptions(mode="shm", directory=str(directory), budget_bytes=1 << 20, **options))
    size = table_bytes(num_slots) + num_slots * SLOT
    entry = Entry((Part("memory://none", 0, "0"),), "arena")
    opened = cache.open_made(entry, size, lambda buffer: None, allocated=table_bytes(num_slots))
    assert opened is not None
    arena = Arena(opened, table_bytes(num_slots), SLOT, num_slots)
    return cache, arena, ArenaSlots(arena, num_slots)


def content_of(arena, slot, num_slots=6):
    start = table_bytes(num_slots) + slot * SLOT
    return arena.bytes[start : start + SLOT].view(np.int64)


@pytest.fixture
def users(cache_path):
    """Makes users of one arena, all in this process, which hold their locks as those of several do."""
    made = []

    def user(**options):
        made.append(make(cache_path, **options))
        return made[-1][1:]

    yield user
    for cache, arena, _ in made:
        arena.close()
        cache.close()
    assert not cache_path.exists()


def put(slots, key) -> int:
    """Make a thing; its slot, which stays held."""
    assert slots.claim(key)
    slot = slots.place(key)
    if slot >= 0 and not slots.is_ready(slot):
        slots.finish(slot)
    slots.unclaim(key)
    return slot


def put_all(slots, keys) -> list[int]:
    placed = [put(slots, key) for key in keys]
    for slot in placed:
        slots.give_back(slot)
    return placed


def test_arena_thing_is_found_once_it_is_ready_by_all_users(users):
    (_, one), (_, two) = users(), users()
    assert one.find(np.array([7])) == [-1]
    assert one.claim(7)
    slot = one.place(7)
    assert two.find(np.array([3, 7, 9])) == [-1, slot, -1]
    assert not two.take(slot, 7), "not ready"
    assert not one.finish(slot)
    one.give_back(slot)
    one.unclaim(7)
    assert two.take(slot, 7)
    assert not two.take(slot, 8)
    assert one.take(slot, 7), "shared"


def test_arena_slots_are_used_again_empty_then_freed_then_old_ones(users):
    _, slots = users()
    assert put_all(slots, range(6)) == [0, 1, 2, 3, 4, 5]
    assert put(slots, 6) == -1, "all were used just now"
    for slot in (4, 2):
        slots.count(1)
        assert slots.take(slot, slot)
        slots.give_back(slot, is_done=True)
    assert put_all(slots, [6, 7]) == [4, 2]
    assert put(slots, 8) == -1
    slots.count(4 * 6 - 3)
    assert slots.take(3, 3)
    slots.give_back(3)
    slots.count(2)
    assert put_all(slots, [8, 9, 10]) == [0, 1, 5], "not 3, and 2 and 4 are younger"
    assert put(slots, 11) == -1


def test_arena_what_was_left_before_a_user_came_is_old_for_him(users):
    _, slots = users()
    put_all(slots, range(6))
    slots.count(1)
    _, newcomer = users()
    assert put(slots, 6) == -1
    assert put(newcomer, 6) == 0


def test_arena_slot_that_somebody_holds_is_not_given_away(users):
    (_, one), (_, two) = users(), users()
    put_all(one, range(6))
    assert one.take(2, 2)
    for slot in (2, 3):
        assert two.take(slot, slot)
        two.give_back(slot, is_done=True)
    assert put_all(two, [6]) == [3]
    assert put(two, 7) == -1
    one.give_back(2)
    assert put_all(two, [7]) == [2]
    assert not one.take(2, 2)


def test_arena_mark_of_an_earlier_epoch_goes_when_the_thing_is_used_again(users):
    _, slots = users()
    put_all(slots, range(6))
    assert slots.take(0, 0)
    slots.give_back(0, is_done=True)
    assert slots.take(0, 0)
    slots.give_back(0)  # a straggler: still the first to go
    slots.count(4 * 6 + 2)
    for slot in range(6):
        assert slots.take(slot, slot)
        slots.give_back(slot)
    assert put(slots, 6) == -1


def test_arena_tells_what_is_made_again_before_it_was_done_with(users):
    _, slots = users()

    def made_again(key):
        assert slots.claim(key)
        slot = slots.place(key)
        again = slots.finish(slot)
        slots.give_back(slot)
        slots.unclaim(key)
        return again

    assert not any(made_again(key) for key in range(6))
    slots.count(25)
    assert not made_again(6)
    assert made_again(0)
    slot = slots.find(np.array([0]))[0]
    assert slots.take(slot, 0)
    slots.give_back(slot, is_done=True)
    put_all(slots, range(20, 26))
    slots.count(50)
    assert not made_again(0)


def test_arena_key_is_claimed_by_one_and_waited_for_until_a_deadline(users):
    (_, one), (_, two) = users(), users()
    assert one.claim(5)
    assert not two.claim(5)
    assert two.claim(6)
    assert not two.claim(5, time.monotonic() + 0.01)
    giving = threading.Timer(0.02, one.unclaim, [5])
    giving.start()
    assert two.claim(5, time.monotonic() + DEADLINE_S)
    giving.join()


def test_arena_keys_and_slots_far_apart_do_not_meet(users):
    (_, one), (_, two) = users(), users()
    for key in (0, 1, 1 << 40, (1 << 60) - 1):
        assert one.claim(key)
        assert not two.claim(key)
    put_all(two, range(2, 8))


def test_arena_that_was_removed_is_not_current(users, cache_path):
    arena, slots = users()
    assert arena.is_current()
    for file in cache_path.glob("*.shard"):
        file.unlink()
    assert not arena.is_current()
    put_all(slots, range(3))  # what is mapped stays


def test_arena_in_a_forked_child_leaves_the_parents_locks_alone(users):
    (arena, one), (_, two) = users(), users()
    slot = put(one, 1)
    assert one.claim(9)
    child = os.fork()
    if child == 0:
        arena.close()
        os._exit(0 if not arena.is_open and not arena.is_current() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not two.claim(9)
    assert arena.is_open
    one.give_back(slot)


def test_arena_closed_gives_back_what_it_held(users):
    (arena, one), (_, two) = users(), users()
    one.claim(3)
    slot = put(one, 1)
    arena.close()
    arena.close()
    assert not arena.is_open
    assert two.claim(3)
    assert two.take(slot, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small tmpfs")
def test_arena_on_a_full_file_system_uses_the_slots_that_have_memory(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=67m", "none", str(small)], check=False).returncode:
        pytest.skip("mount is not permitted here")
    try:
        cache, arena, slots = make(small / "cache")
        put_all(slots, range(2))
        subprocess.run(["dd", "if=/dev/zero", f"of={small / 'other'}"], check=False, stderr=subprocess.DEVNULL)
        assert put(slots, 2) == -1
        assert slots.is_full
        assert slots.find(np.array([2])) == [-1]
        assert slots.take(0, 0)
        slots.give_back(0, is_done=True)
        assert put_all(slots, [3]) == [0]
        arena.close()
        cache.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


NUM_KEYS = 40


def use(slots, arena, key) -> bool:
    """Make or find a thing and compare all of it; whether there was a slot."""
    [slot] = slots.find(np.array([key]))
    if slot < 0 or not slots.take(slot, key):
        if not slots.claim(key):
            return False
        slot = slots.place(key)
        if slot >= 0 and not slots.is_ready(slot):
            where = content_of(arena, slot)
            for part in np.array_split(np.arange(len(where)), 8):
                where[part] = key * 1_000_003 + part
            slots.finish(slot)
        slots.unclaim(key)
    if slot < 0:
        return False
    found = content_of(arena, slot).copy()
    slots.give_back(slot, is_done=random.random() < 0.3)
    np.testing.assert_array_equal(found, key * 1_000_003 + np.arange(SLOT // 8))
    return True


def hammer(directory, seed, is_over, counted):
    cache, arena, slots = make(directory)
    random.seed(seed)
    while not is_over.value:
        slots.count(1)
        counted[seed % len(counted)] += use(slots, arena, int(random.expovariate(0.1)) % NUM_KEYS)
    arena.close()
    cache.close()


def test_arena_hammered_by_processes_that_are_killed_gives_no_torn_thing(cache_path):
    context = multiprocessing.get_context("fork")
    counted, is_over = context.Array("q", 4, lock=False), context.Value("b", 0, lock=False)
    cache, arena, slots = make(cache_path)

    def start(seed):
        process = context.Process(target=hammer, args=(cache_path, seed, is_over, counted), daemon=True)
        process.start()
        return process

    def wait_for_more(number):
        before, deadline = counted[number], time.monotonic() + DEADLINE_S
        while counted[number] < before + 10:
            assert processes[number].is_alive()
            assert time.monotonic() < deadline
            time.sleep(random.uniform(0, 0.004))

    rng = random.Random(1)
    processes = [start(seed) for seed in range(4)]
    for number in range(24):
        victim = rng.randrange(4)
        wait_for_more(victim)
        processes[victim].kill()
        processes[victim].join(DEADLINE_S)
        assert processes[victim].exitcode == -signal.SIGKILL
        processes[victim] = start(victim + 4 * number)
    for number in range(4):
        wait_for_more(number)
    is_over.value = 1
    for process in processes:
        process.join(DEADLINE_S)
        assert process.exitcode == 0
    # Nobody is left, and no lock: everything can be had.
    for key in range(NUM_KEYS):
        slots.count(25)
        assert use(slots, arena, key)
    arena.close()
    cache.close()
    assert not cache_path.exists()


def use_three(arena, slots):
    """Go through the protocol; what is made last replaces a thing by another."""
    slots.count(1)
    use(slots, arena, 1)
    use(slots, arena, 77)
    use(slots, arena, 77)


def test_arena_user_killed_at_any_line_leaves_no_lock_and_nothing_torn(users, cache_path):
    arena, slots = users()
    ends = 0
    for line in range(400):
        child = os.fork()
        if child == 0:
            try:
                random.seed(4)
                _, its_arena, its_slots = make(cache_path)
                killed_at(line, ("arena_slots.py", "arena.py"), partial(use_three, its_arena, its_slots))
                os._exit(0)
            finally:
                os._exit(4)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        for key in (1, 77, *range(6)):
            slots.count(30)
            assert use(slots, arena, key), (line, key)
        if not os.WIFSIGNALED(status):
            ends = line
            break
    assert ends > 60
