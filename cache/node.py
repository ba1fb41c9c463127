"""The node's cache as readers see it: `NodeCache.open` gives the bytes of an entry, from wherever is best."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from multiprocessing import util
from pathlib import Path
from typing import Any

from epistream.access import Access
from epistream.cache.ahead_board import number_of
from epistream.cache.direct import Direct
from epistream.cache.open_entry import OpenEntry
from epistream.cache.options import CacheOptions
from epistream.cache.prefetch import Prefetcher
from epistream.cache.read_ahead import Places, ReadAhead, local_ranges
from epistream.cache.routes import is_on_disk, route_of
from epistream.cache.source.entry import Entry, group_digits
from epistream.cache.source.fetch import Fetcher
from epistream.cache.source.remote import Remote
from epistream.cache.stats import CacheStats, Counters
from epistream.cache.store.budget import Budget
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import Observer, ignore
from epistream.cache.store.store import ShardStore
from epistream.cache.stores import Stores
from epistream.cache.tiers import Tiers

__all__ = ["CacheOptions", "CacheStats", "NodeCache", "OpenEntry"]


class NodeCache:
    """One copy of every entry per node.

    It does nothing until it is used, and then enters the cache's directories in the process that uses it: a
    copy that crossed a process border, by fork or by pickling, starts afresh there. Threads may share it.

    Args:
        options: Where and how much.
        storage_options: For fsspec, as its users know them; or one mapping per protocol.
        reserved_bytes: Memory that the budget leaves for others: the batch rings of all ranks of this node.
        observe: For tests: told each step of the protocol.

    Attributes:
        is_quiet: Whether another worker of the same loader warns of what this one would say as well; set before use.
    """

    def __init__(
        self,
        options: CacheOptions,
        storage_options: Mapping[str, Any] | None = None,
        reserved_bytes: int = 0,
        observe: Observer = ignore,
    ) -> None:
        self.options = options.settled()
        self._storage_options = Access.of(storage_options)
        self._reserved_bytes = reserved_bytes
        self._observe = observe
        self.is_quiet = False
        self._reset()

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        self._used: _Used | None = None
        self._exit: util.Finalize | None = None

    def reserve(self, num_bytes: int) -> None:
        """Leave so much memory to others; only for a cache that this process has not used yet."""
        self._reserved_bytes = num_bytes

    def open(self, entry: Entry, before_wait: Callable[[], None] | None = None, *, wait: bool = True) -> OpenEntry:
        """The bytes of an entry: leased from the cache, filled into it first if need be, or read directly.

        No lock is held while it waits for another process's fill or for room. The caller must hold no other
        lease then either: it gives them up in `before_wait`.

        Args:
            entry: What to open.
            before_wait: Called once, before anything that may take long; never on a hit.
            wait: False to have the bytes now: an entry that is not in the cache is read by ranges of its source. What
                they bring stays for the entry's filler, and for others who read so. For the first batches after a cold
                start, while a prefetcher fills; open it anew for each batch, so that the cache serves it as soon as it
                can.

        Returns:
            An entry that the caller closes, in the same process.

        Raises:
            SourceError, FetchError, ChecksumError: The source cannot be read, here or in the process that tried.
            SourceChangedError: A local source has not the size that was promised.
            CacheError: Mode "shm" was asked for, and shared memory cannot hold the entry at all.
        """
        return self._use().tiers.open(entry, before_wait, wait=wait)

    def open_made(
        self,
        entry: Entry,
        size: int,
        fill: Callable[[memoryview], None] | None,
        *,
        may_evict: bool = True,
        allocated: int | None = None,
        when_busy: Callable[[], None] | None = None,
    ) -> OpenEntry | None:
        """Something made from an entry's bytes, made once per node and kept beside the shards. Never waits.

        Args:
            entry: What it is made of; its `content` says what is made, with every option that shapes it.
            size: Bytes of it, at least 1.
            fill: Writes all of them, in at most one process of the node at a time. What it raises is raised here, and
                nothing is kept then. None only looks whether somebody made it.
            may_evict: Whether entries that nobody uses or claims may have to leave for it; else it only takes what is
                free.
            allocated: Bytes from the beginning that `fill` may write, where the others are written later, by
                `OpenEntry.write`, and get memory then; all unless given. Nobody looks at those before.
            when_busy: Called if it is None because another process makes it at this moment, or is stopped doing so.

        Returns:
            The bytes as a single blob, which the caller closes; None if there is no room now that is not claimed by
            others, if memory is short, if another process makes it at this moment or is stopped in the middle of its
            accounting, or if the cache is off.
        """
        return self._use().tiers.open_made(
            entry, size, fill, may_evict=may_evict, allocated=allocated, when_busy=when_busy
        )

    def claim(self, group: str, num_bytes: int) -> int:
        """Tell the other processes of the node that this one uses so many bytes of the entries made in a group.

        No other process evicts them then for something that it makes, and for a whole shard only when nothing else is
        left; those who claim the same group evict by recency, as ever. It lasts until the cache is closed or the
        process dies. Cheap enough for every few seconds; the last call of a group's processes tells its bytes.

        Args:
            group: As in `Entry`.
            num_bytes: Of all entries of the group that are used, whoever made them; 0 gives the claim up.

        Returns:
            Bytes that live processes of the node claim in other groups, this one's own other groups included. 0 if
            nothing is kept.

        Raises:
            DeadlineError: The directory's ``.lock`` could not be had.
        """
        return self._use().tiers.claim(group_digits(group), num_bytes)

    def is_short(self) -> bool:
        """Whether memory is or was short seconds ago, or was given back just now: who holds entries open gives them up.

        It looks twice a second, however often it is called, and gives back what nobody leases. Nothing is made while
        memory is short: `open_made` only finds what is there.
        """
        return self._use().tiers.is_short()

    def keep(self, entries: Iterable[Entry]) -> None:
        """Let these entries outlive the last user of their cache; others go with it, unless options say to keep."""
        used = self._use()
        keys: dict[ShardStore, list[str]] = {}
        for entry in entries:
            store = used.tiers.store_of(entry)
            if store is not None:
                keys.setdefault(store, []).append(used.direct.identified(entry).key)
        for store, chosen in keys.items():
            store.keep(chosen)

    def keeps(self, entry: Entry) -> bool:
        """Whether an entry goes through shared memory or the disk tier, rather than being read in place."""
        return self._use().tiers.store_of(entry) is not None

    def prefetcher(self, plan: str, entries: Iterable[Entry], ahead: int) -> Prefetcher:
        """Keep the next entries of a plan ready: one process per node and plan does it, for all.

        Args:
            plan: Names the order, the same for all ranks of the node (a fingerprint).
            entries: In the order of use, each where it is first needed; read lazily, in the prefetcher's thread.
            ahead: Entries to keep ready beyond those that were passed.

        Returns:
            A prefetcher that is not started: ``start()`` it after any fork, tell it ``advance(num_passed)``.
        """
        return self._use().prefetcher(plan, entries, ahead)

    def is_on_disk(self, entry: Entry) -> bool:
        """Whether an entry is read in place from a disk of this machine."""
        return self._use().is_on_disk(entry) and not self.keeps(entry)

    def read_ahead(self, board: Path, entries: Iterable[Entry], ahead: int) -> ReadAhead:
        """Have the next entries of a plan that are on a disk in the page cache, where that is worth it.

        Args:
            board: A local file that all ranks of the node with the same plan have.
            entries: In the order of use; read lazily, in a thread of this process. Those elsewhere are passed over.
            ahead: Entries to keep ready beyond those that were passed.

        Returns:
            What does it, not started: ``start()`` it after any fork, tell it ``advance(num_passed)``.
        """
        places = ((number_of(entry), self._places(entry)) for entry in entries)
        return self._use().read_ahead(board, places, ahead)

    def _places(self, entry: Entry) -> Places:
        return local_ranges(entry) if self.is_on_disk(entry) else ()

    def budget(self) -> Budget | None:
        """The byte budget of the first tier as it is now; None if nothing is cached (mode "off", or no directory)."""
        return self._use().stores.budget()

    def budget_ahead(self, entry: Entry, reserved_bytes: int) -> Budget | None:
        """The budget where an entry is kept first, made yet or not; makes and enters nothing.

        Args:
            entry: What would be kept.
            reserved_bytes: Memory that the budget would leave for others.

        Returns:
            None if the entry is read in place, or the directory cannot be looked at.
        """
        tier = route_of(entry, self.options.mode).keeping_tier
        return None if tier is None else Stores(self.options, reserved_bytes).budget_ahead(tier)

    def stats(self) -> CacheStats:
        """Counters of this process."""
        used = self._used
        return CacheStats() if used is None else replace(used.counters.snapshot(), retries=used.remote.num_retries)

    def close(self) -> None:
        """Leave the directories; the last process out removes them. Done at exit too. Open entries stay open."""
        with self._mutex:
            used, self._used = self._used, None
            leave, self._exit = self._exit, None
        if leave is not None:
            leave.cancel()
        if used is not None:
            used.close()

    def end_deserted(self) -> None:
        """Remove what processes of this node that were killed have left in the cache's directories; enters none."""
        if self._used is None:
            Stores(self.options, 0).end_deserted()

    def _use(self) -> "_Used":
        with self._mutex:
            if self._used is None:
                self._used = _Used(
                    self.options, self._storage_options, self._reserved_bytes, self._observe, is_quiet=self.is_quiet
                )
                DESCRIPTORS.watch(self)
                # multiprocessing's own hook, because its children end without running atexit's.
                self._exit = util.Finalize(self, _Used.close, args=(self._used,), exitpriority=10)
            return self._used

    def after_fork_in_child(self) -> None:
        """Start afresh in a forked child; what the parent holds stays the parent's."""
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "options": self.options,
            "_storage_options": self._storage_options,
            "_reserved_bytes": self._reserved_bytes,
            "_observe": self._observe,
            "is_quiet": self.is_quiet,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __enter__(self) -> "NodeCache":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Used:
    """What one process has of a cache that it uses; its parts know each other, and nothing of the cache."""

    def __init__(
        self,
        options: CacheOptions,
        storage_options: Mapping[str, Any],
        reserved_bytes: int,
        observe: Observer,
        *,
        is_quiet: bool,
    ) -> None:
        self.counters = Counters()
        self.remote = Remote(storage_options, options.retries)
        self.direct = Direct(self.remote, self.counters)
        self.stores = Stores(options, reserved_bytes, observe, self._upcoming, is_quiet=is_quiet)
        fetcher = Fetcher(self.remote, options.parallel_requests, options.fetch_timeout_s)
        self.tiers = Tiers(options, self.stores, self.direct, fetcher, self.counters)
        self._mutex = threading.Lock()
        self._prefetchers: list[Prefetcher] = []
        self._readers_ahead: list[ReadAhead] = []
        self._on_disk: dict[str, bool] = {}

    def prefetcher(self, plan: str, entries: Iterable[Entry], ahead: int) -> Prefetcher:
        made = Prefetcher(self.tiers, self.direct.identified, plan, entries, ahead)
        with self._mutex:
            self._prefetchers = [*(one for one in self._prefetchers if not one.is_closed), made]
        return made

    def is_on_disk(self, entry: Entry) -> bool:
        url = entry.parts[0].url
        folder = url.rpartition("/")[0]
        if folder not in self._on_disk:
            self._on_disk[folder] = is_on_disk(url)
        return self._on_disk[folder]

    def read_ahead(self, board: Path, places: Iterator[tuple[int, Places]], ahead: int) -> ReadAhead:
        self.direct.advises = False  # that is done better from now on
        made = ReadAhead(board, places, ahead, self.counters)
        with self._mutex:
            self._readers_ahead = [*(one for one in self._readers_ahead if not one.is_closed), made]
        return made

    def _upcoming(self) -> frozenset[str]:
        return frozenset[str]().union(*(prefetcher.upcoming for prefetcher in self._prefetchers))

    def close(self) -> None:
        with self._mutex:
            prefetchers, self._prefetchers = self._prefetchers, []
            readers_ahead, self._readers_ahead = self._readers_ahead, []
        for prefetcher in prefetchers:
            prefetcher.close()
        for reader in readers_ahead:
            reader.close()
        self.stores.close()
