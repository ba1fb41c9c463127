"""A loader's report: how fast it runs, what limits it, what to change, and what memory it takes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from epistream.cache.stats import CacheStats
from epistream.loader.frames.keeping import DecodedStats
from epistream.loader.monitoring.diagnosis import Finding
from epistream.loader.monitoring.memory_use import MemoryUse
from epistream.loader.monitoring.stats import LoaderStats
from epistream.units import distinct_sizes, size_text


@dataclass(frozen=True)
class PerformanceReport:
    """Text by ``str(report)``, plain values by `to_json`.

    Attributes:
        title: which stream, and how it runs.
        stats: counters of this rank.
        limit: what limits the run, with the reason and the cure.
        also: other things worth knowing.
        memory: of this rank's processes, and of the node's cache.
        left_out: why files were left out when the dataset was opened, by path.
    """

    title: str
    stats: LoaderStats
    limit: Finding
    also: tuple[Finding, ...]
    memory: MemoryUse
    left_out: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """All figures as values that ``json.dumps`` takes."""
        memory = {**asdict(self.memory), "pss_bytes": self.memory.pss_bytes}
        return {**asdict(self), "stats": self.stats.to_json(), "memory": memory}

    def __repr__(self) -> str:
        """What limits the run; `str` and ``print_performance_report()`` have the rest."""
        return f"{self.title}\n  limit    {self.limit.limit}: {self.limit.why}\n  do       {self.limit.cure}"

    def __str__(self) -> str:
        rows = [
            ("limit", f"{self.limit.limit}: {self.limit.why}"),
            ("do", self.limit.cure),
            *(("also", f"{finding.why}. Do: {finding.cure}") for finding in self.also),
            ("speed", _speed(self.stats)),
            ("loop", _loop(self.stats)),
            ("workers", worker_shares(self.stats)),
            ("cache", _cache(self.stats)),
            *(("decoded", text) for text in [_decoded(self.stats)] if text),
            *(("disk", text) for text in _disk(self.stats.cache)),
            ("memory", _memory(self.memory)),
            *(("skipped", f"{url}: {reason}") for url, reason in self.stats.bad_shards.items()),
            *(("left out", f"{path}: {reason}") for path, reason in self.left_out.items()),
        ]
        return "\n".join([self.title, *(f"  {name:<8} {text}" for name, text in rows)])


def worker_shares(stats: LoaderStats) -> str:
    """Where the workers' time went, as text."""
    if not stats.worker_s:
        return "no batch yet"
    names = ("decode and copy", "wait for a core", "wait for bytes or locks", "wait for a free batch")
    shares = zip(names, stats.worker_seconds.values(), strict=True)
    return ", ".join(f"{name} {seconds / stats.worker_s * 100:.0f} %" for name, seconds in shares)


def _speed(stats: LoaderStats) -> str:
    first = "" if stats.first_batch_s is None else f", first batch after {stats.first_batch_s:.2f} s"
    return (
        f"{stats.windows_per_s:,.0f} windows/s ({stats.num_windows:,} windows in {stats.num_batches:,} batches, "
        f"{stats.elapsed_s:.1f} s{first})"
    )


def _loop(stats: LoaderStats) -> str:
    share = stats.data_wait_share * 100
    return (
        f"waits for data {share:.1f} %, works {100 - share:.1f} % (the start, {stats.start_wait_s:.2f} s, not counted)"
    )


def _cache(stats: LoaderStats) -> str:
    cache = stats.cache
    if not cache.tier:
        return "not used yet"
    names = ("hits", "fills", "waits", "evictions", "bypasses", "direct", "disk_hits")
    counts = ", ".join(f"{name.replace('_', ' ')} {getattr(cache, name):,}" for name in names if getattr(cache, name))
    fetched = ""
    if cache.bytes_fetched:
        rate = cache.bytes_fetched / cache.fill_seconds if cache.fill_seconds else 0.0
        fetched = f"; fetched {size_text(cache.bytes_fetched)}, {size_text(rate)}/s a fill"
    return f"{cache.tier} ({cache.reason.rstrip('.')}): {counts}{fetched}"


def _decoded(stats: LoaderStats) -> str:
    """What became of camera frames, and why no more of them are kept; "" where none are."""
    decoded = stats.decoded
    num_frames = decoded.num_taken + decoded.num_decoded
    if decoded.pool_bytes or decoded.num_unpooled:
        return _pooled(decoded)
    if not num_frames:
        return f"no frames are kept: {decoded.why}" if decoded.why else ""
    share = decoded.num_taken / num_frames * 100
    room = f"room for {' of '.join(distinct_sizes(decoded.room_bytes, decoded.all_bytes))}"
    why = f"; not all: {decoded.why}" if decoded.why else ""
    return (
        f"{decoded.num_taken:,} frames copied ({share:.0f} %), {decoded.num_decoded:,} decoded and "
        f"{decoded.num_kept:,} of these kept, {room}{why}"
    )


def _pooled(decoded: DecodedStats) -> str:
    """What became of camera frames where blocks of them are decoded once."""
    again = f", {decoded.num_again:,} of them again" if decoded.num_again else ""
    why = f": {decoded.why}" if decoded.why else ""
    unpooled = f"; {decoded.num_unpooled:,} decoded for one window alone{why}" if decoded.num_unpooled else ""
    return (
        f"{decoded.num_taken:,} frames copied from a pool of {size_text(decoded.pool_bytes)}, {decoded.num_decoded:,} "
        f"decoded{again}{unpooled}"
    )


def _disk(cache: CacheStats) -> list[str]:
    """How local files are read, where anybody looked."""
    ahead = f" ({size_text(cache.bytes_ahead)} ahead)" if cache.bytes_ahead else ""
    return [f"{cache.disk}{ahead}"] if cache.disk else []


def _memory(memory: MemoryUse) -> str:
    processes = ", ".join(f"{process.name} {size_text(process.pss_bytes)}" for process in memory.processes)
    return (
        f"{size_text(memory.pss_bytes)} in processes (PSS: {processes}), "
        f"of this at most {size_text(memory.ring_bytes)} batches; "
        f"node's cache {size_text(memory.cache_bytes)} in {memory.cache_path}"
    )
