"""Who leaves first: the only place that orders by recency. Under ``.lock`` but for hits."""

import contextlib
import fcntl
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from enum import IntEnum
from typing import NamedTuple

from epistream.cache.store.claims import Claims, group_of
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import CacheDirectory
from epistream.cache.store.locks import LockFile, try_flock
from epistream.cache.store.survey import FILL, HAVE, PART, SHARD, Item, charge, unlink
from epistream.cache.store.total import Total

# Leased entries that are older than those that left are tried again at each eviction, so many of them; the others
# after the next survey.
_LEASED_AGAIN = 16
# Descriptors that are held at a time, up to three a victim: a process may have 1,024, and needs others.
_MOST_OPEN = 256


class Reach(IntEnum):
    """Who may have to leave for an entry, of those that nobody leases."""

    NOBODY = 0
    UNCLAIMED = 1  # nobody whom another live process claims: what is made does not drive out what others made
    ALL = 2  # those whom others claim after all others: a job without its shards does not go on


class Stamps:
    """Recency: times on the boot clock, because the wall clock can be set back; never twice the same."""

    def __init__(self) -> None:
        self._last_ns = 0

    def touch(self, fd: int) -> None:
        """Make a file the most recently used."""
        self._last_ns = max(time.clock_gettime_ns(time.CLOCK_BOOTTIME), self._last_ns + 1)
        os.utime(fd, ns=(self._last_ns, self._last_ns))


def rank(key: str, upcoming: Collection[str], claimed: Collection[str] = ()) -> int:
    """Which entries leave last, whatever their recency: all of a lower rank leave before those of a higher one.

    2 for keys of the groups `claimed`, by others; 1 for keys in `upcoming`, which their process is about to use; 0 for
    all others.
    """
    return 2 if group_of(key) in claimed else int(key in upcoming)


def in_leaving_order(
    items: Iterable[Item], upcoming: Collection[str] = (), claimed: Collection[str] = (), *, made_first: bool = False
) -> list[Item]:
    """The lowest rank first, and of one rank the least recently used; with `made_first`, all that was made before."""
    return sorted(
        items,
        key=lambda item: (made_first and not item.is_made, rank(item.key, upcoming, claimed), _recency(item)),
    )


def rebase_stamps(directory: CacheDirectory, items: Iterable[Item]) -> None:
    """Bring stamps from before a reboot, which lie in the future of this boot's clock, before all others."""
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    shards = in_leaving_order(item for item in items if item.kind == SHARD)
    if any(item.stamp_ns > now_ns for item in shards):
        for number, item in enumerate(shards):
            os.utime(item.name, ns=(number, number), dir_fd=directory.dir_fd, follow_symlinks=False)


def _recency(item: Item) -> int:
    """The stamp; of a partial entry whose last writer died before he could set it, as if it were never used."""
    return 0 if item.kind == PART and item.stamp_ns > time.clock_gettime_ns(time.CLOCK_BOOTTIME) else item.stamp_ns


class _Victim(NamedTuple):
    """An entry that nobody uses: it, its descriptor, and the locks that keep others from it until it is unlinked."""

    item: Item
    fd: int
    guards: tuple[LockFile, ...]

    def unguard(self) -> None:
        """Give the locks of its guards back."""
        for guard in self.guards:
            guard.close()

    def spare(self) -> None:
        """Give everything back."""
        self.unguard()
        DESCRIPTORS.close(self.fd)


class Leaving:
    """The leaving order of a directory as this process last surveyed it, used up from its front.

    It stays right without another survey: what was used or came since has a later stamp than all that is in it, and
    the stamp of each entry is looked at again before it leaves.

    Args:
        directory: Whose.
        upcoming: Tells the keys that this process is about to use.
        claims: Tell what others claim.
    """

    def __init__(self, directory: CacheDirectory, upcoming: Callable[[], Collection[str]], claims: Claims) -> None:
        self._directory = directory
        self._upcoming = upcoming
        self._claims = claims
        self._order: deque[Item] = deque()  # the least recently used first, whatever their rank
        # Those whom others claim lie apart: there may be many, which nothing that is made looks at again.
        self._claimed: list[Item] = []
        self._claimed_groups: frozenset[str] = frozenset()

    def renew(self, items: Iterable[Item]) -> None:
        """Take over what a survey found, just now."""
        entries = list(items)
        groups = {group_of(item.key) for item in entries if item.is_made}
        self._claimed_groups = frozenset(group for group in groups if self._claims.are_others(group))
        self._claimed = []
        self._set_order(entries)

    def _set_order(self, items: Iterable[Item]) -> None:
        order: list[Item] = []
        for item in items:
            (self._claimed if group_of(item.key) in self._claimed_groups else order).append(item)
        self._order = deque(sorted(order, key=_recency))

    def evict(
        self,
        total: Total,
        wanted_bytes: float,
        *,
        least_bytes: int = 0,
        is_fresh: bool = False,
        reach: Reach = Reach.ALL,
        made_first: bool = False,
    ) -> tuple[list[int], int]:
        """Unlink shards that nobody leases and partial entries that nobody uses, in leaving order.

        It ends when `wanted_bytes` are freed.

        None are unlinked if leases, or the end of the order, stand in the way of `least_bytes`. It stops at some
        hundred shards, because all of them are open until it returns: the caller goes on.

        Args:
            total: Of the directory, to be corrected.
            wanted_bytes: What is to be freed.
            least_bytes: What is of any use.
            is_fresh: Whether the order is of this moment. If not, only entries of rank 0 leave: there may be others
                of that rank by now.
            reach: Who may leave.
            made_first: Whether all that was made leaves before all that was not; for a fresh order.

        Returns:
            Descriptors of the unlinked files, exclusively locked: closing them frees their pages, which takes
            long and is done by the caller outside ``.lock``. And the bytes that they free.
        """
        victims: list[_Victim] = []
        kept: list[Item] = []
        num_leased = num_open = freed = 0
        upcoming = self._upcoming()
        order = self._order
        if is_fresh:
            claimed = self._claimed if reach == Reach.ALL else []
            order = deque(in_leaving_order([*order, *claimed], upcoming, self._claimed_groups, made_first=made_first))
        with contextlib.ExitStack() as undo:  # else their locks would keep everybody out while this process lives
            while order and freed < wanted_bytes and num_open < _MOST_OPEN:
                item = order.popleft()
                if not is_fresh and self._claims.are_others(item.key):  # since the survey
                    self._claimed.append(item)
                    continue
                if not is_fresh and rank(item.key, upcoming):
                    kept.append(item)
                    continue
                taken = self._try_take(item)
                if isinstance(taken, _Victim):
                    victims.append(taken)
                    undo.callback(taken.spare)
                    num_open += 1 + len(taken.guards)
                    freed += charge(item.size)
                elif taken:
                    num_leased += 1
                    if num_leased <= _LEASED_AGAIN:
                        kept.append(item)
            if freed < least_bytes and num_open < _MOST_OPEN:
                undo.close()
                kept += [victim.item for victim in victims]
                victims, freed = [], 0
            self._unlink(total, victims)
            undo.pop_all()
        if is_fresh:
            self._claimed = self._claimed if reach != Reach.ALL else []
            self._set_order([*kept, *order])
        else:
            order.extendleft(sorted(kept, key=_recency, reverse=True))
        return [victim.fd for victim in victims], freed

    def _unlink(self, total: Total, victims: Iterable[_Victim]) -> None:
        for victim in victims:
            total.open()
            self._directory.observe("evict.locked")
            # The guards first: without them a .part is what the dead left, and a .have is never beside another .part.
            for guard in reversed(victim.guards):
                unlink(self._directory, guard.name)
            total.remove(victim.item.name)
            self._directory.observe("evict.unlinked")
            victim.unguard()

    def _try_take(self, item: Item) -> _Victim | bool:
        """An entry with the locks that its eviction needs; True if somebody uses it now, False if its turn is not now.

        It was used since the order was made then, or it is gone.
        """
        is_partial = item.kind == PART
        with contextlib.ExitStack() as undo:
            try:
                guards = tuple(self._guards(item.key, undo)) if is_partial else ()
                fd = DESCRIPTORS.open(item.name, os.O_RDONLY, dir_fd=self._directory.dir_fd)
            except FileNotFoundError:
                return False
            undo.callback(DESCRIPTORS.close, fd)
            taken = all(guard.try_exclusive() for guard in guards) and (is_partial or try_flock(fd, fcntl.LOCK_EX))
            status = os.fstat(fd)
            is_same = status.st_mtime_ns == item.stamp_ns
            if not taken or not is_same or status.st_size != item.size:
                return is_same and not taken
            undo.pop_all()
            return _Victim(item, fd, guards)

    def _guards(self, key: str, undo: contextlib.ExitStack) -> Iterable[LockFile]:
        """The files on which those who use a partial entry have locks.

        That of its filler comes first: who has it finds the other one free.
        """
        for name in (key + FILL, key + HAVE):
            try:
                guard = LockFile(name, self._directory.dir_fd, create=False)
            except FileNotFoundError:
                if name == key + HAVE:
                    raise
                continue  # who makes it waits for .lock before he does anything
            undo.callback(guard.close)
            yield guard


def free(fds: list[int]) -> None:
    """Close what `Leaving.evict` returned, which frees the pages. Not under ``.lock``."""
    for fd in fds:
        DESCRIPTORS.close_slowly(fd)
