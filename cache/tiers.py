"""An entry from the first tier of its route that can serve it: leased, filled if need be, or a step further down."""

import logging
import time
from collections.abc import Callable
from contextlib import closing

from epistream.cache.direct import Direct
from epistream.cache.open_entry import OpenEntry
from epistream.cache.options import CacheOptions
from epistream.cache.routes import KEEPING_TIERS, Routes
from epistream.cache.source.entry import Entry
from epistream.cache.source.fetch import Fetcher, mismatch, write_all
from epistream.cache.source.local import MappedBlob
from epistream.cache.stats import Counters
from epistream.cache.store.fill import write_mapped
from epistream.cache.store.lease import Lease
from epistream.cache.store.markers import write_origin
from epistream.cache.store.partial import Partial, Places
from epistream.cache.store.pressure import Relief
from epistream.cache.store.store import Filler, NoRoomError, Outcome, ShardStore, TooLargeError
from epistream.cache.stores import Stores
from epistream.errors import DeadlineError, EpistreamError

logger = logging.getLogger(__name__)

# How often a process looks whether its directory is where it was: who works in one that was removed keeps to himself.
_LOOK_EVERY_S = 0.5


class Tiers:
    """Steps down from tier to tier, in one process: stores that keep what the fetcher brings, and the source itself."""

    def __init__(
        self, options: CacheOptions, stores: Stores, direct: Direct, fetcher: Fetcher, counters: Counters
    ) -> None:
        self._options = options
        self._stores = stores
        self._direct = direct
        self._fetcher = fetcher
        self._counters = counters
        self._routes = Routes(options.mode)
        self._relief = Relief()
        self._next_look: dict[str, float] = {}

    # --- entries -----------------------------------------------------------------------------------------

    def open(self, entry: Entry, before_wait: Callable[[], None] | None, *, wait: bool) -> OpenEntry:
        """See `NodeCache.open`: from the cache, else directly."""
        route = self._routes.of(entry)
        reason = route.reason
        if route.keeping_tier is not None:
            entry = self._direct.identified(entry)
            if not wait and not entry.is_costly:  # else the fill would read it again
                return self._open_now(route.keeping_tier, entry)
        before_wait = _once(before_wait)
        has_waited = False
        for tier in route.tiers:
            if tier == "direct":
                break
            try:
                lease = self._acquire(tier, entry, before_wait, may_wait=not has_waited)
            except TooLargeError as error:
                if self._options.mode == "shm":
                    raise
                reason = self._stores.step_down(tier, error)
                continue
            except (NoRoomError, DeadlineError) as error:
                reason = self._stores.step_down(tier, error)
                if tier == "shm" and self._disk_is_tier:
                    has_waited = isinstance(error, DeadlineError)  # most likely for the same process as on the disk
                    continue
                break
            except EpistreamError:
                raise
            except OSError as error:
                # Most likely somebody removed the directory: enter a new one next time.
                reason = self._stores.lost(tier, error)
                break
            if lease is not None:
                self._counters.tell_tier(tier, reason)
                return _mapped(entry, tier, lease)
            reason = self._stores.why_not(tier) or reason
        self._counters.add(**{"direct" if route.keeping_tier is None else "bypasses": 1})
        self._counters.tell_tier("direct", reason)
        return self._direct.open(entry)

    def _open_now(self, tier: str, entry: Entry) -> OpenEntry:
        """The entry from the cache if it is in it, else by ranges; somebody else fills it meanwhile."""
        store = self._store(tier)
        found = None
        if store is not None:
            self._relieve(store)
            try:
                found = store.lookup(entry.key, entry.size) or self._join(tier, store, entry)
            except EpistreamError:
                raise
            except OSError as error:
                self._stores.lost(tier, error)
        if isinstance(found, Lease):
            self._counters.add(hits=1)
            self._counters.tell_tier(tier, "there already")
            return _mapped(entry, tier, found)
        self._counters.add(cold=1)
        self._counters.tell_tier("direct", "not there yet")
        return self._direct.open(entry, found, may_copy=False)

    def _join(self, tier: str, store: ShardStore, entry: Entry) -> Lease | Partial | None:
        """An entry as others of the node bring it, begun here if need be; None if it cannot be shared, or now not."""
        if not self._may_share(tier, entry):
            return None
        outcome = Outcome()
        try:
            found = store.joining.join(entry.key, _places(entry), outcome)
            if isinstance(found, Partial):
                write_origin(store.directory.dir_fd, found.part_fd, entry.key, entry.parts[0].url)
            return found
        except OSError as error:
            logger.info("cold reads are not shared: %s", error)
            return None
        finally:
            self._counters.add(evictions=outcome.num_evicted)

    def _may_share(self, tier: str, entry: Entry) -> bool:
        """Whether cold readers and the filler of an entry bring it together: not where it has to pass the disk."""
        return entry.is_shareable and not (tier == "shm" and self._disk_is_tier)

    def open_made(
        self,
        entry: Entry,
        size: int,
        fill: Callable[[memoryview], None] | None,
        *,
        may_evict: bool,
        allocated: int | None = None,
        when_busy: Callable[[], None] | None = None,
    ) -> OpenEntry | None:
        """See `NodeCache.open_made`: only ever from the first tier of the mode, because nothing else keeps it."""
        tier, store = self._made_place()
        if store is None:
            return None
        entry = self._direct.identified(entry)
        self._relieve(store)
        is_paused = fill is not None and self._relief.is_short
        write = None if fill is None or is_paused else _maker(store, entry, size, fill)
        outcome = Outcome()
        lease = None
        try:
            lease = store.try_acquire(
                entry.key, size, write, outcome, may_evict=may_evict, is_made=True, allocated=allocated
            )
        except DeadlineError as error:  # somebody holds .lock and is stopped: nothing is kept meanwhile
            self._stores.step_down(tier, error)
        except EpistreamError:
            raise
        except OSError as error:
            self._stores.lost(tier, error)
            return None
        finally:
            self._counters.add(
                made_hits=int(outcome.hit),
                made_fills=int(outcome.filled),
                made_refused=int(outcome.refused),
                made_paused=int(is_paused and lease is None),
                evictions=outcome.num_evicted,
            )
        if lease is None:
            if outcome.busy and when_busy is not None:
                when_busy()
            return None
        return OpenEntry((MappedBlob(lease.view(0, size), entry.parts[0].url),), tier, lease)

    def claim(self, group: str, num_bytes: int) -> int:
        """See `NodeCache.claim`, for the digits that the keys of a group begin with: where `open_made` keeps things."""
        tier, store = self._made_place()
        if store is None:
            return 0
        try:
            return store.claims.claim(group, num_bytes)
        except EpistreamError:
            raise
        except OSError as error:
            self._stores.lost(tier, error)
            return 0

    def is_short(self) -> bool:
        """See `NodeCache.is_short`; only directories that were entered already are looked at."""
        for store in self._stores.entered():
            self._relieve(store)
        return self._relief.is_short or self._relief.has_given

    def _made_place(self) -> tuple[str, ShardStore | None]:
        """The tier that keeps what is made, and its store; None if nothing does."""
        tier = next(iter(KEEPING_TIERS[self._options.mode]), "direct")
        return tier, None if tier == "direct" else self._store(tier)

    def _store(self, tier: str) -> ShardStore | None:
        """A tier's store, in a directory that was made anew if it was removed; None if the tier cannot be used."""
        store, now = self._stores.get(tier), time.monotonic()
        if store is not None and now >= self._next_look.get(tier, 0.0):
            self._next_look[tier] = now + _LOOK_EVERY_S
            if not store.directory.is_current():
                self._stores.lost(tier)
                return self._stores.get(tier)
        return store

    def _relieve(self, store: ShardStore) -> None:
        """Give memory back where it is short; called often."""
        try:
            given = self._relief.look(store)
        except OSError as error:  # whoever opens something next meets it, and steps down
            logger.info("%s: memory not looked at: %s", store.directory.path, error)
            return
        if given:
            self._counters.add(bytes_given_back=given)

    # --- ahead -------------------------------------------------------------------------------------------

    def store_of(self, entry: Entry) -> ShardStore | None:
        """The store of the entry's first tier; None if it is read in place, or the tier cannot be used."""
        tier = self._routes.of(entry).keeping_tier
        return None if tier is None else self._store(tier)

    def try_lease(self, entry: Entry) -> Lease | None:
        """A lease of an identified entry in its first tier, filled if that needs no waiting for others; else None."""
        tier, store = self._routes.of(entry).tiers[0], self.store_of(entry)
        if store is None:
            return None
        outcome = Outcome()
        lease = store.try_acquire(entry.key, entry.size, self._filler(tier, store, entry), outcome)
        if outcome.filled:
            self._counters.add_outcome(outcome)
            self._counters.add(prefetches=1)
        return lease

    # --- filling -----------------------------------------------------------------------------------------

    def _acquire(
        self, tier: str, entry: Entry, before_wait: Callable[[], None] | None, *, may_wait: bool
    ) -> Lease | None:
        """A lease in a tier; None if its directory cannot be used, or if it takes others and `may_wait` is not set."""
        store = self._store(tier)
        if store is None:
            return None
        self._relieve(store)
        outcome = Outcome()
        try:
            fill = self._filler(tier, store, entry)
            if may_wait:
                lease: Lease | None = store.acquire(entry.key, entry.size, fill, before_wait, outcome)
            else:
                lease = store.try_acquire(entry.key, entry.size, fill, outcome)
        except BaseException:
            self._counters.add(evictions=outcome.num_evicted, wait_seconds=outcome.wait_s)
            raise
        if lease is not None:
            self._counters.add_outcome(outcome)
        return lease

    def _filler(self, tier: str, store: ShardStore, entry: Entry) -> Filler:
        def fill(fd: int) -> None:
            write_origin(store.directory.dir_fd, fd, entry.key, entry.parts[0].url)
            if self._may_share(tier, entry):
                with closing(store.joining.share(entry.key, _places(entry))) as partial:
                    self._fetch(entry, fd, partial)
            elif tier != "shm" or not self._disk_is_tier or not self._fill_from_disk(entry, fd):
                self._fetch(entry, fd)

        return fill

    def _fetch(self, entry: Entry, fd: int, partial: Partial | None = None) -> None:
        fetched = self._fetcher.fetch(entry, fd, None if partial is None else partial.parts)
        self._counters.add(bytes_fetched=fetched.num_bytes, refetches=len(fetched.twice))

    @property
    def _disk_is_tier(self) -> bool:
        """Whether everything passes through the disk, so that what leaves memory need not be fetched again."""
        return self._options.disk_directory is not None

    def _fill_from_disk(self, entry: Entry, fd: int) -> bool:
        """Copy an entry from the disk tier, which fetches it first if need be; False if the disk cannot help."""
        store = self._stores.get("disk")
        if store is None:
            return False
        outcome = Outcome()
        try:
            lease = store.acquire(entry.key, entry.size, lambda disk_fd: self._fetch(entry, disk_fd), None, outcome)
        except (NoRoomError, TooLargeError, DeadlineError) as error:
            self._stores.step_down("disk", error)
            return False
        try:
            write_all(fd, lease.view(0, entry.size), 0)
        finally:
            lease.close()
        for part, offset in zip(entry.parts, entry.offsets, strict=True):
            if mismatch(part, offset, fd):
                logger.warning("%s: damaged on disk in %s; fetched again.", part.url, store.directory.path)
                store.discard(entry.key)
                return False
        self._counters.add(disk_hits=int(outcome.hit))
        return True


def _places(entry: Entry) -> Places:
    return [(offset, part.size) for offset, part in zip(entry.offsets, entry.parts, strict=True)]


def _mapped(entry: Entry, tier: str, lease: Lease) -> OpenEntry:
    """An entry whose parts are views of a lease."""
    places = zip(entry.parts, entry.offsets, strict=True)
    blobs = tuple(MappedBlob(lease.view(offset, part.size), part.url) for part, offset in places)
    return OpenEntry(blobs, tier, lease)


def _once(action: Callable[[], None] | None) -> Callable[[], None] | None:
    """The action, for the first call only."""
    if action is None:
        return None
    left = [action]

    def call() -> None:
        while left:
            left.pop()()

    return call


def _maker(store: ShardStore, entry: Entry, size: int, fill: Callable[[memoryview], None]) -> Filler:
    """Writes what `fill` makes, and where it is from."""

    def write(fd: int) -> None:
        write_origin(store.directory.dir_fd, fd, entry.key, entry.parts[0].url)
        write_mapped(fd, size, fill)

    return write
