"""Which slot of an arena holds what: things made once for all processes of a node, and forgotten when done with.

A thing has a key. Who makes it holds the key's lock; who copies from it holds its slot shared; only who holds a slot
alone gives it to another key. Of each slot the table says

    ready     1 once everything in it is written, 0 before another key gets it
    key       + 1; 0 for none
    freed     the count when its user said that it was the last; 0 for no
    used      the count when somebody used it last
    has       1 once it has memory

in this order of writing. Who is killed at any line leaves a slot that is not ready, and no lock: whoever wants its key
makes it again in the same slot, and else it ages. Words of eight bytes are written whole.
"""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.arena import COUNTING, Arena, in_pages

_COLUMNS = 5
# Keys whose end is waited for are remembered by their remainder, so many to a slot.
_REMEMBERED = 8
# What was not used while so many things per slot were counted is done with, whatever was said of it.
_AGES_AFTER = 4


def table_bytes(num_slots: int) -> int:
    """Bytes of the table of an arena, in whole pages."""
    return in_pages(8 * (1 + num_slots * (_COLUMNS + _REMEMBERED)))


class ArenaSlots:
    """The slots of an arena as one user sees and shares them. Not shared between threads.

    Args:
        arena: theirs, with a table of `table_bytes`.
        num_slots: slots.

    Attributes:
        is_full: whether memory for a slot was missing; only those that have some are used from then on.
    """

    def __init__(self, arena: Arena, num_slots: int) -> None:
        self._arena = arena
        words: NDArray[Any] = arena.bytes[: 8 * (1 + num_slots * (_COLUMNS + _REMEMBERED))].view(np.int64)
        self._ready, self._key, self._freed, self._used, self._has = (
            words[1 + num_slots * column : 1 + num_slots * (column + 1)] for column in range(_COLUMNS)
        )
        self._open_keys = words[1 + num_slots * _COLUMNS :]
        self._count = words[:1]
        self._age = _AGES_AFTER * num_slots
        self._uncounted = 0
        self._fence = threading.Lock()
        self.is_full = False
        self.count(1)  # what was used last until now is from before
        self._opened_at = int(self._count[0])

    def count(self, num_windows: int) -> None:
        """Say that so many were wanted since the last call, by which all users together measure how old things are."""
        self._uncounted += num_windows
        # Under a lock: who is stopped between reading and writing would set it back for all.
        if self._arena.try_lock(COUNTING):
            self._count[0] += self._uncounted
            self._uncounted = 0
            self._arena.unlock(COUNTING)

    def find(self, keys: NDArray[np.int64]) -> list[int]:
        """The slot that holds each of the keys (n,), as it was a moment ago; -1 for none."""
        held = self._key.copy()
        order = np.argsort(held, kind="stable")
        at = np.searchsorted(held[order], keys + 1)
        slots = order[np.minimum(at, len(order) - 1)]
        found: list[int] = np.where(held[slots] == keys + 1, slots, -1).tolist()
        return found

    def take(self, slot: int, key: int) -> bool:
        """Hold a slot to copy from it; False if it does not hold the key any more, or is not ready yet."""
        if not self._arena.try_lock(slot, shared=True):
            return False
        if self._key[slot] != key + 1 or not self._ready[slot]:
            self._arena.unlock(slot)
            return False
        self._arena.map(slot)
        self._touch(slot)
        # A processor that orders memory weakly must not have read what is in it before what says that it is there.
        with self._fence:
            pass
        return True

    def give_back(self, slot: int, *, is_done: bool = False) -> None:
        """End `take` or `place`; with `is_done`, nobody will want its key for long, and others may have the slot."""
        if is_done:
            key = int(self._key[slot]) - 1
            self._freed[slot] = max(1, int(self._count[0]))
            at = key % len(self._open_keys)
            if self._open_keys[at] == key + 1:
                self._open_keys[at] = 0
        self._arena.unlock(slot)

    def claim(self, key: int, deadline: float = 0.0) -> bool:
        """Whether this user alone may make a thing: at once, or until a deadline on ``time.monotonic()``."""
        return self._arena.try_lock_key(key, deadline)

    def unclaim(self, key: int) -> None:
        """End `claim`."""
        self._arena.unlock_key(key)

    def place(self, key: int) -> int:
        """A slot for a key that is claimed, held until `give_back`; -1 if there is none.

        It is ready if somebody made the thing meanwhile; else the caller writes it, and says `finish`.
        """
        for slot in np.flatnonzero(self._key == key + 1).tolist():
            if self._arena.try_lock(slot, shared=True):
                if self._key[slot] == key + 1 and self._has_memory(slot):
                    self._touch(slot)
                    return int(slot)
                self._arena.unlock(slot)
        for slot, was in self._candidates():
            if not self._arena.try_lock(slot):
                continue
            if was != (self._key[slot], self._freed[slot], self._used[slot]):
                self._arena.unlock(slot)
                continue
            self._ready[slot] = 0
            self._key[slot] = self._freed[slot] = 0
            self._used[slot] = self._count[0]
            self._key[slot] = key + 1
            self._arena.try_lock(slot, shared=True)  # from alone to shared, with nobody in between
            if self._has_memory(slot):
                return slot
            if self._arena.try_lock(slot):
                self._key[slot] = 0
            self._arena.unlock(slot)
        return -1

    def is_ready(self, slot: int) -> bool:
        """Whether all of a slot is written."""
        return bool(self._ready[slot])

    def finish(self, slot: int) -> bool:
        """Say that all of a slot is written; whether the same was made before, and was not done with then."""
        with self._fence:
            pass
        self._ready[slot] = 1
        key = int(self._key[slot])
        at = (key - 1) % len(self._open_keys)
        was_made = bool(self._open_keys[at] == key)
        self._open_keys[at] = key
        return was_made

    def _touch(self, slot: int) -> None:
        now, freed = int(self._count[0]), int(self._freed[slot])
        self._used[slot] = now
        if freed and now - freed > self._age:
            self._freed[slot] = 0  # of another epoch

    def _has_memory(self, slot: int) -> bool:
        """Whether a slot can be touched now."""
        if not self._has[slot]:
            if self.is_full or not self._arena.allocate(slot):
                self.is_full = True
                return False
            self._has[slot] = 1
        self._arena.map(slot)
        return True

    def _candidates(self) -> Iterator[tuple[int, tuple[int, int, int]]]:
        """Slots that may be given to another key, the best first, with key, freed and used as they were.

        Those that are empty; then those that are freed, the oldest first; then those that were not used for long, or
        not since this user came.
        """
        key, freed, used = self._key.copy(), self._freed.copy(), self._used.copy()
        old = max(self._opened_at, int(self._count[0]) - self._age)
        usable = self._has != 0 if self.is_full else np.ones(len(key), np.bool_)
        is_empty, is_freed = key == 0, freed != 0
        is_old = ~is_empty & ~is_freed & (used < old)
        rank = np.where(is_empty, 0, np.where(is_freed, 1, 2))
        stamp = np.where(is_empty, 0, np.where(is_freed, freed, used))
        for slot in np.lexsort((stamp, rank)).tolist():
            if usable[slot] and (is_empty[slot] or is_freed[slot] or is_old[slot]):
                yield slot, (int(key[slot]), int(freed[slot]), int(used[slot]))
