"""What a process's cache did, counted."""

import threading
from dataclasses import asdict, dataclass, fields

from epistream.cache.store.store import Outcome


@dataclass(frozen=True)
class CacheStats:
    """Counters of one process, since it first used the cache; add them up over a node's processes.

    Args:
        hits: Entries that were there.
        fills: Entries that this process fetched into the cache; over a node, each shard once while it stays.
        prefetches: Those of the fills that were made ahead, by the prefetcher.
        waits: Entries that another process was filling, or that had to wait for room.
        evictions: Entries that this process evicted.
        bypasses: Entries read without the cache although it was wanted: no room, too large, too slow.
        cold: Entries read by ranges because they were not there yet, while they come in.
        direct: Entries read in place because that is best (local disks), or because mode is "off".
        disk_hits: Fills of memory that found the entry on the disk tier.
        bytes_fetched: Bytes that fills brought from the source, without those that cold readers had brought by then.
        bytes_ranged: Bytes that ranged reads brought. Added to `bytes_fetched` over a node, they are what crossed the
            network: each byte once while it stays.
        bytes_ahead: Bytes of local files that were read ahead, into the page cache.
        retries: Requests that were tried again.
        refetches: Parts that were fetched again because of a wrong checksum.
        made_hits: Entries made of others (decoded frames) that were there.
        made_fills: Such entries that this process made.
        made_refused: Such entries that it would have made, had there been room.
        made_paused: Such entries that it would have made, had memory not been short.
        bytes_given_back: Bytes that it evicted because memory was short, or because others took what the budget
            counted on.
        fill_seconds: Time in fills.
        wait_seconds: Time waiting for fills of others and for room.
        tier: Where the last entry came from: "shm", "disk" or "direct"; "" before the first.
        reason: Why that tier, in words.
        disk: How local files are read, and why; "" where nobody looked.
    """

    hits: int = 0
    fills: int = 0
    prefetches: int = 0
    waits: int = 0
    evictions: int = 0
    bypasses: int = 0
    cold: int = 0
    direct: int = 0
    disk_hits: int = 0
    bytes_fetched: int = 0
    bytes_ranged: int = 0
    bytes_ahead: int = 0
    retries: int = 0
    refetches: int = 0
    made_hits: int = 0
    made_fills: int = 0
    made_refused: int = 0
    made_paused: int = 0
    bytes_given_back: int = 0
    fill_seconds: float = 0.0
    wait_seconds: float = 0.0
    tier: str = ""
    reason: str = ""
    disk: str = ""

    def __add__(self, other: "CacheStats") -> "CacheStats":
        """Sums of the counters; the words of the first that has any."""
        summed = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name not in ("tier", "reason", "disk")
        }
        known = self if self.tier else other
        return CacheStats(**summed, tier=known.tier, reason=known.reason, disk=self.disk or other.disk)


class Counters:
    """Counts, from several threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._amounts = asdict(CacheStats())

    def add(self, **amounts: float) -> None:
        """Add to counters by name."""
        with self._mutex:
            for name, amount in amounts.items():
                self._amounts[name] += amount

    def add_outcome(self, outcome: Outcome) -> None:
        """Count what one `acquire` did."""
        if outcome.hit:  # a hundred times as often as anything else
            self.add(hits=1)
            return
        self.add(
            fills=outcome.filled,
            waits=not outcome.filled,
            evictions=outcome.num_evicted,
            fill_seconds=outcome.fill_s,
            wait_seconds=outcome.wait_s,
        )

    def tell_tier(self, tier: str, reason: str) -> None:
        """Note where the last entry came from."""
        with self._mutex:
            self._amounts.update(tier=tier, reason=reason)

    def tell_disk(self, disk: str) -> None:
        """Note how local files are read."""
        with self._mutex:
            self._amounts.update(disk=disk)

    def snapshot(self) -> CacheStats:
        """The counters now."""
        with self._mutex:
            return CacheStats(**self._amounts)
