"""Who leaves first: the only place that orders by recency. Under ``.lock`` but for hits."""

import fcntl
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from enum import IntEnum

from epistream.cache.store.claims import Claims, group_of
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import CacheDirectory
from epistream.cache.store.locks import try_flock
from epistream.cache.store.survey import SHARD, Item, charge
from epistream.cache.store.total import Total

# Leased entries that are older than those that left are tried again at each eviction, so many of them; the others
# after the next survey.
_LEASED_AGAIN = 16
# Descriptors that are held at a time: a process may have 1,024, and needs others.
_MOST_VICTIMS = 256


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
        key=lambda item: (made_first and not item.is_made, rank(item.key, upcoming, claimed), item.stamp_ns),
    )


def rebase_stamps(directory: CacheDirectory, items: Iterable[Item]) -> None:
    """Bring stamps from before a reboot, which lie in the future of this boot's clock, before all others."""
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    shards = in_leaving_order(item for item in items if item.kind == SHARD)
    if any(item.stamp_ns > now_ns for item in shards):
        for number, item in enumerate(shards):
            os.utime(item.name, ns=(number, number), dir_fd=directory.dir_fd, follow_symlinks=False)


def _stamp_of(item: Item) -> int:
    return item.stamp_ns


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
        shards = [item for item in items if item.kind == SHARD]
        groups = {group_of(item.key) for item in shards if item.is_made}
        self._claimed_groups = frozenset(group for group in groups if self._claims.are_others(group))
        self._claimed = []
        self._set_order(shards)

    def _set_order(self, items: Iterable[Item]) -> None:
        order: list[Item] = []
        for item in items:
            (self._claimed if group_of(item.key) in self._claimed_groups else order).append(item)
        self._order = deque(sorted(order, key=_stamp_of))

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
        """Unlink shards that nobody leases, in leaving order, until `wanted_bytes` are freed.

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
        victims: list[tuple[Item, int]] = []
        kept: list[Item] = []
        num_leased = freed = 0
        upcoming = self._upcoming()
        order = self._order
        if is_fresh:
            claimed = self._claimed if reach == Reach.ALL else []
            order = deque(in_leaving_order([*order, *claimed], upcoming, self._claimed_groups, made_first=made_first))
        while order and freed < wanted_bytes and len(victims) < _MOST_VICTIMS:
            item = order.popleft()
            if not is_fresh and self._claims.are_others(item.key):  # since the survey
                self._claimed.append(item)
                continue
            if not is_fresh and rank(item.key, upcoming):
                kept.append(item)
                continue
            fd = self._try_take(item)
            if fd is None:
                num_leased += 1
                if num_leased <= _LEASED_AGAIN:
                    kept.append(item)
            elif fd >= 0:
                victims.append((item, fd))
                freed += charge(item.size)
        if freed < least_bytes and len(victims) < _MOST_VICTIMS:
            for _, fd in victims:
                DESCRIPTORS.close(fd)
            kept += [item for item, _ in victims]
            victims, freed = [], 0
        for item, _ in victims:
            total.open()
            self._directory.observe("evict.locked")
            total.remove(item.name)
            self._directory.observe("evict.unlinked")
        if is_fresh:
            self._claimed = self._claimed if reach != Reach.ALL else []
            self._set_order([*kept, *order])
        else:
            order.extendleft(sorted(kept, key=_stamp_of, reverse=True))
        return [fd for _, fd in victims], freed

    def _try_take(self, item: Item) -> int | None:
        """A descriptor with its exclusive lock; None if somebody leases it, -1 if it was used since, or has gone."""
        try:
            fd = DESCRIPTORS.open(item.name, os.O_RDONLY, dir_fd=self._directory.dir_fd)
        except FileNotFoundError:
            return -1
        taken = try_flock(fd, fcntl.LOCK_EX)
        status = os.fstat(fd)
        if taken and (status.st_mtime_ns, status.st_size) == (item.stamp_ns, item.size):
            return fd
        DESCRIPTORS.close(fd)
        return -1 if taken or status.st_mtime_ns != item.stamp_ns else None


def free(fds: list[int]) -> None:
    """Close what `Leaving.evict` returned, which frees the pages. Not under ``.lock``."""
    for fd in fds:
        DESCRIPTORS.close_slowly(fd)
