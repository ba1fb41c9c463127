"""Filling ahead: one process per node and plan brings the next entries before anybody needs them.

Correctness never depends on it: without it, or when it is late, readers fill for themselves.
"""

import contextlib
import logging
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from epistream.cache.ahead_thread import AheadThread
from epistream.cache.source.entry import Entry
from epistream.cache.store.directory import USERS
from epistream.cache.store.lease import Lease
from epistream.cache.store.locks import LockFile, lock_holders
from epistream.cache.store.store import ShardStore
from epistream.cache.store.survey import charge
from epistream.cache.tiers import Tiers
from epistream.errors import EpistreamError

logger = logging.getLogger(__name__)

# How often one that may not fill looks whether it may now: the filler may have died, or a lease ended.
_PAUSE_S = 0.25
# Share of the time of one processor in which it may look who else is there.
_SHARE = 0.01
_PREFIX = "prefetch-"
_SUFFIX = ".lock"


@dataclass
class _Ahead:
    """An entry that lies ahead: its lease if it is there, and whether it cannot be brought."""

    position: int
    entry: Entry
    lease: Lease | None = None
    has_failed: bool = False

    def drop(self) -> None:
        if self.lease is not None:
            self.lease.close()
            self.lease = None


class Prefetcher(AheadThread):
    """A thread that keeps the next entries of a plan in the cache.

    Of all processes of the node with the same plan, the holder of ``prefetch-<plan>.lock`` works; when it ends,
    in whatever way, another goes on from its own position. It leases what is ahead until its rank has passed
    it, and all prefetchers of a directory together leave room for one entry per process, and one more.

    Args:
        tiers: Where entries are brought to.
        identify: Gives an entry the key that it is kept by, which may take a request to its source.
        plan: Names the order, the same on all ranks: letters, digits, "-" and "_".
        entries: In the order of use; read lazily, only in this object's thread.
        ahead: Entries to keep ready beyond the one in use.
    """

    def __init__(
        self, tiers: Tiers, identify: Callable[[Entry], Entry], plan: str, entries: Iterable[Entry], ahead: int
    ) -> None:
        super().__init__("epistream-prefetch")
        self._tiers = tiers
        self._identify = identify
        self._name = f"{_PREFIX}{plan}{_SUFFIX}"
        self._entries: Iterator[Entry] = iter(entries)
        self._ahead = ahead
        # Keys of what is in use or nearly so, also where another process fills: not to be evicted by this one.
        self.upcoming: frozenset[str] = frozenset()
        self._next_position = 0
        self._window: deque[_Ahead] = deque()
        self._lock: LockFile | None = None
        self._store: ShardStore | None = None
        self._neighbours = _Neighbours(self._name)

    def advance(self, num_passed: int) -> None:
        """Tell that this rank needs the first `num_passed` entries no more; cheap, and never waits for a fill."""
        with self._changed:
            self._passed = max(self._passed, num_passed)
            self._changed.notify()

    def _forget(self) -> None:
        self.upcoming = frozenset()

    # --- in the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (passed := self._progress()) is not None:
                try:
                    worked = self._step(passed)
                except (EpistreamError, OSError) as error:
                    logger.info("prefetch: %s", error)
                    worked = False
                except Exception:
                    logger.exception("prefetch: ended; readers fill for themselves.")
                    return
                if not worked:
                    self._wait(passed, _PAUSE_S * random.uniform(0.5, 1.5))
        finally:
            self._drop_all()

    def _step(self, passed: int) -> bool:
        """Bring one entry, or learn its key; False if there is nothing to do now."""
        self._look_ahead(passed)
        return self._bring_one(passed) or self._identify_one(passed)

    def _look_ahead(self, passed: int) -> None:
        while self._window and self._window[0].position < passed:
            self._window.popleft().drop()
        while self._next_position < passed + self._ahead:
            entry = next(self._entries, None)
            if entry is None:
                break
            if self._next_position >= passed:
                self._window.append(_Ahead(self._next_position, entry))
            self._next_position += 1
        self._tell_upcoming(passed)

    def _tell_upcoming(self, passed: int) -> None:
        self.upcoming = frozenset(
            ahead.entry.key
            for ahead in self._window
            if ahead.position < self._near(passed) and ahead.entry.is_identified
        )

    def _near(self, passed: int) -> int:
        """The position up to which entries are in use or nearly so."""
        return passed + self._ahead // 2

    def _bring_one(self, passed: int) -> bool:
        for ahead in self._window:
            if ahead.lease is not None or ahead.has_failed:
                continue
            store = self._tiers.store_of(ahead.entry)
            if store is None or not self._may_fill(store) or not self._may_hold(store, ahead.entry):
                return False
            # Before the fill, which may take long: nobody else in this process is to evict it meanwhile.
            if not self._learn_key(ahead, passed):
                return True
            try:
                ahead.lease = self._tiers.try_lease(ahead.entry)
            except EpistreamError as error:
                # The reader that needs the entry meets the error itself, and reports it.
                logger.info("prefetch: %s", error)
                ahead.has_failed = True
                return True
            if ahead.lease is not None:
                return True
            # A reader is filling it, or found no room: the ones after it may do.
        return False

    def _identify_one(self, passed: int) -> bool:
        """Learn the key of an upcoming entry; when there is nothing to bring, because it may take a request each."""
        for ahead in self._window:
            if ahead.position >= self._near(passed) or self._tiers.store_of(ahead.entry) is None:
                return False
            if not ahead.entry.is_identified and not ahead.has_failed:
                self._learn_key(ahead, passed)
                return True
        return False

    def _learn_key(self, ahead: _Ahead, passed: int) -> bool:
        """Give the entry the key that it is kept by; False if its source does not tell."""
        if not ahead.entry.is_identified:
            try:
                ahead.entry = self._identify(ahead.entry)
            except (EpistreamError, OSError) as error:
                logger.info("prefetch: %s", error)
                ahead.has_failed = True
                return False
            self._tell_upcoming(passed)
        return True

    def _may_fill(self, store: ShardStore) -> bool:
        """Whether this is the node's filler for the plan."""
        if self._store is not store:
            self._drop_all()
            self._store = store
        if self._lock is None:
            lock = LockFile(self._name, store.directory.dir_fd)
            if not lock.try_exclusive():
                lock.close()
                return False
            self._lock = lock
            # Another may have come meanwhile; from now on it sees this one.
            self._neighbours = _Neighbours(self._name)
        return True

    def _may_hold(self, store: ShardStore, entry: Entry) -> bool:
        """Whether one more lease leaves the readers their share; what is held is written down for the others."""
        size = charge(entry.size)
        mine = sum(charge(ahead.lease.size) for ahead in self._window if ahead.lease is not None) + size
        self._neighbours.look(store)
        with store.directory.locked(store.options.lock_timeout_s):
            allowed = store.budget().bytes - (self._neighbours.num_readers + 1) * size
            if mine + self._neighbours.held_bytes(store) > allowed:
                return False
            if self._lock is not None:
                self._lock.write_text(str(mine))
        return True

    def _drop_all(self) -> None:
        for ahead in self._window:
            ahead.drop()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock.write_text("0")
            self._lock.close()
            self._lock = None


class _Neighbours:
    """Who else uses a directory: looked up so seldom that listing it takes little of the time."""

    def __init__(self, own_name: str) -> None:
        self._own_name = own_name
        self._next_look = -math.inf
        self._names: list[str] = []
        self.num_readers = 1

    def look(self, store: ShardStore) -> None:
        """Look again, if it does not take too much: almost always while the directory is small."""
        started = time.monotonic()
        if started < self._next_look:
            return
        dir_fd = store.directory.dir_fd
        listed = os.listdir(dir_fd)  # noqa: PTH208, an open directory
        self._names = [
            name for name in listed if name.startswith(_PREFIX) and name.endswith(_SUFFIX) and name != self._own_name
        ]
        # Where /proc/locks cannot be read, there may be as many as processors.
        self.num_readers = len(lock_holders(USERS, dir_fd)) or os.cpu_count() or 1
        ended = time.monotonic()
        self._next_look = ended + (ended - started) / _SHARE

    def held_bytes(self, store: ShardStore) -> int:
        """Bytes that living prefetchers of other plans have written down."""
        total = 0
        for name in self._names:
            with (
                contextlib.suppress(FileNotFoundError),
                contextlib.closing(LockFile(name, store.directory.dir_fd, create=False)) as other,
            ):
                text = other.read_text().strip()
                if not other.try_exclusive():
                    total += int(text) if text.isdecimal() else 0
        return total
