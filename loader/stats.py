"""What a loader did: counts, where the time went, and what limits the run."""

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from epistream.cache.stats import CacheStats
from epistream.loader.worker import Message


@dataclass
class LoaderStats:
    """Counters of one rank since its loader was made, its workers' cache included. Times are seconds.

    `data_wait_s` is the time that the training loop waited inside ``next()``; `worker_busy_s` and
    `worker_idle_s` are summed over workers: reading batches, and waiting for a free slot.
    """

    num_batches: int = 0
    num_windows: int = 0
    num_copied_batches: int = 0
    elapsed_s: float = 0.0
    data_wait_s: float = 0.0
    worker_busy_s: float = 0.0
    worker_idle_s: float = 0.0
    first_batch_s: float | None = None
    cache: CacheStats = field(default_factory=CacheStats)

    @property
    def windows_per_s(self) -> float:
        """Windows handed out per second of this rank's own time."""
        return self.num_windows / self.elapsed_s if self.elapsed_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {**asdict(self), "windows_per_s": self.windows_per_s}


class StatsRecorder:
    """Collects the figures of a loader; the loader tells it what happens."""

    def __init__(self) -> None:
        self._stats = LoaderStats()
        self._cache: dict[int, CacheStats] = {}
        self._began_s: float | None = None

    def begin(self) -> None:
        """An iteration begins."""
        self._began_s = time.perf_counter()

    def receive(self, worker_index: int, message: Message, waited_s: float, copied: bool) -> None:
        """A batch was handed out."""
        now = time.perf_counter()
        stats = self._stats
        if self._began_s is not None:
            if stats.first_batch_s is None:
                stats.first_batch_s = now - self._began_s
            stats.elapsed_s += now - self._began_s
            self._began_s = now
        stats.num_batches += 1
        stats.num_windows += message.num_windows
        stats.num_copied_batches += copied
        stats.data_wait_s += waited_s
        stats.worker_busy_s += message.busy_s
        stats.worker_idle_s += message.slot_wait_s
        if message.cache is not None:
            self._cache[worker_index] = message.cache

    def snapshot(self, shared_cache: bool) -> LoaderStats:
        """The figures so far. Workers that are threads share one cache (`shared_cache`), processes have one each."""
        workers = list(self._cache.values())
        summed = sum(workers[-1:] if shared_cache else workers, CacheStats())
        return replace(self._stats, cache=summed)
