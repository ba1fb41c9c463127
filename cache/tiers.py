"""Which tier serves an entry: shared memory, a disk directory, or the source itself; and stepping down."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from epistream.cache.open_entry import OpenEntry
from epistream.cache.options import CacheOptions
from epistream.cache.prefetch import Prefetcher
from epistream.cache.source.blob import Blob
from epistream.cache.source.entry import Entry
from epistream.cache.source.fetch import Fetcher, checksum_of, write_all
from epistream.cache.source.local import FileBlob, MappedBlob
from epistream.cache.source.ranged import RangeBlob
from epistream.cache.source.remote import Remote, RetryOptions
from epistream.cache.stats import CacheStats, Counters
from epistream.cache.store import places
from epistream.cache.store.budget import Budget
from epistream.cache.store.directory import Observer
from epistream.cache.store.fill import write_mapped
from epistream.cache.store.lease import Lease
from epistream.cache.store.markers import mark_kept, write_origin
from epistream.cache.store.places import file_system_type, is_memory, is_network
from epistream.cache.store.pressure import Relief
from epistream.cache.store.store import Filler, NoRoomError, Outcome, ShardStore, TooLargeError
from epistream.cache.stores import Stores
from epistream.cgroups import System
from epistream.errors import CacheError, DeadlineError, EpistreamError
from epistream.file_systems import local_path

logger = logging.getLogger(__name__)

_COPY_BYTES = 4 << 20
# Where entries are kept that are made from others; reading a file in place is no way to keep those.
_MADE_TIERS = {"auto": "shm", "shm": "shm", "disk": "disk", "off": ""}


class Tiers:
    """The stores of one process, opened as they are needed."""

    def __init__(
        self, options: CacheOptions, storage_options: Mapping[str, Any], reserved_bytes: int, observe: Observer
    ) -> None:
        self.options = options
        self._remote = Remote(
            storage_options,
            RetryOptions(options.attempts, options.request_timeout_s, options.fetch_timeout_s),
        )
        self._fetcher = Fetcher(self._remote, options.parallel_requests, options.fetch_timeout_s)
        self._counters = Counters()
        self._mutex = threading.Lock()
        self._stores = Stores(options, reserved_bytes, observe, self._path, self._soon)
        self._prefetchers: list[Prefetcher] = []
        self._relief = Relief(System())
        self._routes: dict[str, tuple[tuple[str, ...], str]] = {}
        self._versions: dict[str, str] = {}

    # --- opening -----------------------------------------------------------------------------------------

    def open(self, entry: Entry, before_wait: Callable[[], None] | None, *, wait: bool = True) -> OpenEntry:
        """As `NodeCache.open`."""
        tiers, reason = self._route(entry)
        if tiers[0] != "direct":
            entry = self.identified(entry)
            if not wait:
                return self._open_now(tiers[0], entry)
        before_wait = _once(before_wait)
        for tier in tiers:
            if tier == "direct":
                break
            try:
                lease = self._acquire(tier, entry, before_wait)
            except TooLargeError as error:
                if self.options.mode == "shm":
                    raise
                reason = self._stores.step_down(tier, error)
                continue
            except (NoRoomError, DeadlineError) as error:
                reason = self._stores.step_down(tier, error)
                if tier == "shm" and self._disk_is_tier:
                    continue
                break
            except EpistreamError:
                raise
            except OSError as error:
                # Most likely somebody removed the directory: enter a new one next time.
                self._stores.forget(tier)
                reason = self._stores.step_down(tier, error)
                break
            if lease is not None:
                self._counters.tell_tier(tier, reason)
                return _mapped(entry, tier, lease)
            reason = self._stores.why_not(tier)
        self._counters.add(**{"direct" if tiers[0] == "direct" else "bypasses": 1})
        self._counters.tell_tier("direct", reason)
        return OpenEntry(self._direct(entry), "direct", None)

    def _open_now(self, tier: str, entry: Entry) -> OpenEntry:
        """The entry from the cache if it is there, else by ranges; somebody else fills it meanwhile."""
        store = self._stores.get(tier)
        lease = store.lookup(entry.key, entry.size) if store is not None else None
        if lease is not None:
            self._counters.add(hits=1)
            self._counters.tell_tier(tier, "there already")
            return _mapped(entry, tier, lease)
        self._counters.add(cold=1)
        self._counters.tell_tier("direct", "not there yet")
        return OpenEntry(self._direct(entry), "direct", None)

    def open_made(
        self, entry: Entry, size: int, fill: Callable[[memoryview], None] | None, *, may_evict: bool
    ) -> OpenEntry | None:
        """As `NodeCache.open_made`."""
        tier = _MADE_TIERS[self.options.mode]
        store = self._stores.get(tier) if tier else None
        if store is None:
            return None
        entry = self.identified(entry)
        outcome = Outcome()
        write = None if fill is None else partial(write_mapped, size=size, fill=fill)
        try:
            lease = store.try_acquire(entry.key, size, write, outcome, may_evict=may_evict)
        except EpistreamError:
            raise
        except OSError as error:
            self._stores.forget(tier)
            self._stores.step_down(tier, error)
            return None
        finally:
            self._counters.add(
                made_hits=int(outcome.hit), made_fills=int(outcome.filled), evictions=outcome.num_evicted
            )
        if lease is None:
            return None
        return OpenEntry((MappedBlob(lease.view(0, size), entry.parts[0].url),), tier, lease)

    def _route(self, entry: Entry) -> tuple[tuple[str, ...], str]:
        """The tiers to try in order, the source itself last, and why."""
        folder = entry.parts[0].url.rpartition("/")[0]
        if folder not in self._routes:
            self._routes[folder] = self._choose(entry.parts[0].url)
            logger.info("%s: cache tiers %s: %s", folder, " -> ".join(self._routes[folder][0]), self._routes[folder][1])
        return self._routes[folder]

    def _choose(self, url: str) -> tuple[tuple[str, ...], str]:
        mode = self.options.mode
        if mode == "off":
            return ("direct",), "the cache is off"
        if mode == "disk":
            return ("disk", "direct"), "asked for"
        if mode == "shm":
            return ("shm", "direct"), "asked for"
        path = local_path(url)
        if path is None:
            return ("shm", "disk", "direct"), "a remote source"
        kind = file_system_type(path)
        if is_network(kind):
            return ("shm", "disk", "direct"), f"on a network file system ({kind})"
        return ("direct",), f"on a local file system ({kind}), which the page cache shares"

    def _acquire(self, tier: str, entry: Entry, before_wait: Callable[[], None] | None) -> Lease | None:
        """A lease in a tier; None if its directory cannot be used."""
        store = self._stores.get(tier)
        if store is None:
            return None
        if tier == "shm":
            self._relief.look(store)
        outcome = Outcome()
        try:
            lease = store.acquire(entry.key, entry.size, self._filler(tier, entry), before_wait, outcome)
        except BaseException:
            self._counters.add(evictions=outcome.num_evicted, wait_seconds=outcome.wait_s)
            raise
        self._counters.add_outcome(outcome)
        return lease

    def _filler(self, tier: str, entry: Entry) -> Filler:
        def fill(fd: int) -> None:
            write_origin(fd, entry.parts[0].url)
            if tier != "shm" or not self._disk_is_tier or not self._fill_from_disk(entry, fd):
                self._fetch(entry, fd)

        return fill

    # --- ahead -------------------------------------------------------------------------------------------

    def prefetcher(self, plan: str, entries: Iterable[Entry], ahead: int) -> Prefetcher:
        """A prefetcher that is not started yet; it ends with `close`."""
        made = Prefetcher(self, plan, entries, ahead)
        with self._mutex:
            self._prefetchers = [*(one for one in self._prefetchers if not one.is_closed), made]
        return made

    def _soon(self) -> frozenset[str]:
        return frozenset[str]().union(*(prefetcher.soon for prefetcher in self._prefetchers))

    def store_of(self, entry: Entry) -> ShardStore | None:
        """The store of the entry's first tier; None if it is read in place, or the tier cannot be used."""
        tier = self._route(entry)[0][0]
        return None if tier == "direct" else self._stores.get(tier)

    def try_lease(self, entry: Entry) -> Lease | None:
        """A lease in the entry's first tier, filled if that needs no waiting for others; else None."""
        tier, store = self._route(entry)[0][0], self.store_of(entry)
        if store is None:
            return None
        entry = self.identified(entry)
        outcome = Outcome()
        lease = store.try_acquire(entry.key, entry.size, self._filler(tier, entry), outcome)
        if outcome.filled:
            self._counters.add_outcome(outcome)
            self._counters.add(prefetches=1)
        return lease

    def keep(self, entries: Iterable[Entry]) -> None:
        """As `NodeCache.keep`."""
        keys: dict[ShardStore, list[str]] = {}
        for entry in entries:
            store = self.store_of(entry)
            if store is not None:
                keys.setdefault(store, []).append(self.identified(entry).key)
        for store, chosen in keys.items():
            with store.directory.locked(store.options.lock_timeout_s):
                mark_kept(store.directory.dir_fd, chosen)

    def _fetch(self, entry: Entry, fd: int) -> None:
        fetched = self._fetcher.fetch(entry, fd)
        self._counters.add(bytes_fetched=fetched.num_bytes, refetches=fetched.num_refetches)

    def _direct(self, entry: Entry) -> tuple[Blob, ...]:
        blobs: list[Blob] = []
        with contextlib.ExitStack() as undo:  # the first parts are closed if a later one cannot be opened
            for part in entry.parts:
                path = local_path(part.url)
                if part.supply is not None:
                    supplied = part.supply.open()
                    undo.callback(supplied.close)
                    blobs.append(supplied)
                elif path is not None:
                    file = FileBlob(path, part.size)
                    undo.callback(file.close)
                    blobs.append(file)
                else:
                    blobs.append(RangeBlob(part, self._remote, lambda size: self._counters.add(bytes_ranged=size)))
            undo.pop_all()
        return tuple(blobs)

    def identified(self, entry: Entry) -> Entry:
        """The entry with something in its key that tells its content, where the manifest tells no checksum."""
        if entry.is_identified:
            return entry
        for part in entry.parts:
            if part.url not in self._versions:
                self._versions[part.url] = self._remote.version(part.url)
        return entry.with_versions([self._versions[part.url] for part in entry.parts])

    # --- the disk tier -----------------------------------------------------------------------------------

    @property
    def _disk_is_tier(self) -> bool:
        """Whether everything passes through the disk, so that what leaves memory need not be fetched again."""
        return self.options.disk_directory is not None

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
            for start in range(0, entry.size, _COPY_BYTES):
                write_all(fd, lease.view(start, min(_COPY_BYTES, entry.size - start)), start)
        finally:
            lease.close()
        for part, offset in zip(entry.parts, entry.offsets, strict=True):
            if part.checksum is not None and checksum_of(fd, offset, part.size) != part.checksum:
                logger.warning("%s: damaged on disk in %s; fetched again.", part.url, store.directory.path)
                store.discard(entry.key)
                return False
        self._counters.add(disk_hits=int(outcome.hit))
        return True

    # --- stores ------------------------------------------------------------------------------------------

    def _path(self, tier: str) -> Path:
        if tier == "disk":
            given = self.options.disk_directory
            return Path(given).absolute() if given else places.default_directory("disk")
        if self.options.directory:
            return Path(self.options.directory).absolute()
        parent = places.SHM_PARENT
        if not is_memory(file_system_type(parent)):
            raise CacheError(f"{parent}: not in memory, wanted a tmpfs. Mount one, or name another with directory.")
        return places.default_directory("shm")

    # --- the whole ---------------------------------------------------------------------------------------

    def budget(self) -> Budget | None:
        """The budget of the first tier that can be used."""
        order = {"off": (), "disk": ("disk",), "shm": ("shm",), "auto": ("shm", "disk")}
        for tier in order[self.options.mode]:
            store = self._stores.get(tier)
            if store is not None:
                return store.budget()
        return None

    def budget_ahead(self, entry: Entry) -> Budget | None:
        """As `NodeCache.budget_ahead`."""
        tier = self._route(entry)[0][0]
        return None if tier == "direct" else self._stores.budget_ahead(tier)

    def stats(self) -> CacheStats:
        """Counters of this process."""
        return self._counters.snapshot().with_retries(self._remote.num_retries)

    def close(self) -> None:
        """Leave every directory."""
        with self._mutex:
            prefetchers, self._prefetchers = self._prefetchers, []
        for prefetcher in prefetchers:
            prefetcher.close()
        self._stores.close()


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
