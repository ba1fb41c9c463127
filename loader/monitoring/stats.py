"""What a loader did: counts, and where the time went."""

import threading
import time
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from epistream.cache.stats import CacheStats
from epistream.loader.frames.keeping import DecodedStats
from epistream.loader.workers.thread_time import ThreadTime
from epistream.loader.workers.worker import Message


@dataclass
class LoaderStats:
    """Counters of one rank since its loader was made, its workers' cache included. Times are seconds.

    `data_wait_s` is the time that the training loop waited inside ``next()``, and `start_wait_s` the part of it
    before the first batch of workers that were just started. `worker_busy_s` (reading batches) and
    `worker_idle_s` (waiting for a free slot) are summed over workers; `effort` tells what the busy time was
    spent on, the rest of it being waits for bytes or locks. `elapsed_s` is the time inside ``for`` loops.
    `bad_shards` gives the reason by URL of shards that were skipped, and `num_replaced_windows` how many of their
    windows were replaced. `decoded` tells of the camera frames that are kept decoded.
    """

    num_batches: int = 0
    num_windows: int = 0
    num_copied_batches: int = 0
    elapsed_s: float = 0.0
    data_wait_s: float = 0.0
    start_wait_s: float = 0.0
    worker_busy_s: float = 0.0
    worker_idle_s: float = 0.0
    first_batch_s: float | None = None
    effort: ThreadTime = field(default_factory=ThreadTime)
    num_replaced_windows: int = 0
    bad_shards: dict[str, str] = field(default_factory=dict)
    cache: CacheStats = field(default_factory=CacheStats)
    decoded: DecodedStats = field(default_factory=DecodedStats)

    def __repr__(self) -> str:
        """The most telling; `to_json` has all."""
        return (
            f"{type(self).__name__}({self.num_windows:,} windows in {self.num_batches:,} batches, "
            f"{self.windows_per_s:,.0f} windows/s, data wait {self.data_wait_share * 100:.1f} %)"
        )

    @property
    def windows_per_s(self) -> float:
        """Windows handed out per second of this rank's own time, waits at the start included."""
        return self.num_windows / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def data_wait_share(self) -> float:
        """Share of the loop's time that it waited for data, 0 to 1, without the wait for the very first batch."""
        steady_s = self.elapsed_s - self.start_wait_s
        return max(0.0, self.data_wait_s - self.start_wait_s) / steady_s if steady_s > 0 else 0.0

    @property
    def worker_blocked_s(self) -> float:
        """Busy time in which workers neither ran nor wanted a core: waits for bytes, or for each other's locks."""
        return max(0.0, self.worker_busy_s - self.effort.cpu_s - self.effort.queue_s)

    @property
    def worker_s(self) -> float:
        """Time of all workers, busy or idle."""
        return self.worker_busy_s + self.worker_idle_s

    @property
    def worker_seconds(self) -> dict[str, float]:
        """What `worker_s` went to: ``cpu``, ``queue`` (for a core), ``blocked``, ``idle``."""
        return {
            "cpu": self.effort.cpu_s,
            "queue": self.effort.queue_s,
            "blocked": self.worker_blocked_s,
            "idle": self.worker_idle_s,
        }

    def since(self, earlier: "LoaderStats") -> "LoaderStats":
        """What was added after an earlier snapshot of the same loader."""
        cache = replace(self.cache, **_added(self.cache, earlier.cache, "tier", "reason", "disk"))
        sizes = ("room_bytes", "all_bytes", "pool_bytes", "why")
        decoded = replace(self.decoded, **_added(self.decoded, earlier.decoded, *sizes))
        counters = _added(self, earlier, "first_batch_s", "bad_shards", "cache", "decoded")
        return replace(self, **counters, cache=cache, decoded=decoded)

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            **asdict(self),
            "windows_per_s": self.windows_per_s,
            "data_wait_share": self.data_wait_share,
            "worker_blocked_s": self.worker_blocked_s,
        }


def _added(now: Any, before: Any, *but: str) -> dict[str, Any]:
    """By how much each counter has grown."""
    names = [item.name for item in fields(now) if item.name not in but]
    return {name: getattr(now, name) - getattr(before, name) for name in names}


class StatsRecorder:
    """Collects the figures of a loader; the loader tells it what happens. Snapshots may come from other threads."""

    def __init__(self) -> None:
        self._stats = LoaderStats()
        # What each worker's cache has counted, and what those of workers that are gone had counted.
        self._cache: dict[int, CacheStats] = {}
        self._past = CacheStats()
        self._decoded: dict[int, DecodedStats] = {}
        self._past_decoded = DecodedStats()
        self._began_s: float | None = None
        self._is_start = True
        self._mutex = threading.Lock()

    def begin(self) -> None:
        """An iteration begins."""
        self._began_s = time.perf_counter()

    def restart(self, shared_cache: bool) -> None:
        """The workers are gone: the caches of new ones count from 0, and their first batch takes longer."""
        with self._mutex:
            self._past, self._cache = self._past + self._sum(shared_cache), {}
            if not shared_cache:  # threads go on with the counts of their process
                self._past_decoded, self._decoded = self._sum_decoded(shared_cache), {}
            self._is_start = True

    def receive(self, worker_index: int, message: Message, waited_s: float) -> None:
        """A filled slot was waited for."""
        stats = self._stats
        with self._mutex:
            if self._is_start:
                stats.start_wait_s += waited_s
                self._is_start = False
            stats.data_wait_s += waited_s
            stats.worker_busy_s += message.busy_s
            stats.worker_idle_s += message.slot_wait_s
            stats.effort = stats.effort + message.effort
            for replaced in message.replaced:
                stats.num_replaced_windows += replaced.num_windows
                stats.bad_shards[replaced.shard_url] = replaced.reason
            if message.cache is not None:
                self._cache.pop(worker_index, None)  # so that the newest is the last
                self._cache[worker_index] = message.cache
            self._decoded.pop(worker_index, None)
            self._decoded[worker_index] = message.decoded

    def hand_out(self, num_windows: int, copied: bool) -> None:
        """A batch is handed out."""
        now = time.perf_counter()
        stats = self._stats
        with self._mutex:
            if self._began_s is not None:
                if stats.first_batch_s is None:
                    stats.first_batch_s = now - self._began_s
                stats.elapsed_s += now - self._began_s
                self._began_s = now
            stats.num_batches += 1
            stats.num_windows += num_windows
            stats.num_copied_batches += copied

    def snapshot(self, shared_cache: bool) -> LoaderStats:
        """The figures so far. Workers that are threads share one cache (`shared_cache`), processes have one each."""
        with self._mutex:
            return replace(
                self._stats,
                bad_shards=dict(self._stats.bad_shards),
                cache=self._past + self._sum(shared_cache),
                decoded=self._sum_decoded(shared_cache),
            )

    def _sum(self, shared_cache: bool) -> CacheStats:
        workers = list(self._cache.values())
        return sum(workers[-1:] if shared_cache else workers, CacheStats())

    def _sum_decoded(self, shared_cache: bool) -> DecodedStats:
        workers = list(self._decoded.values())
        # The newest first: why no more are kept now, not why they were not by workers that are gone.
        return sum(workers[:-2:-1] if shared_cache else workers[::-1], DecodedStats()) + self._past_decoded
