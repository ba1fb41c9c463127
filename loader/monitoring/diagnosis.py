"""What limits a run, and what to change: a reading of a loader's counters, as a pure function."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from epistream.loader.frames.decode_advice import DecodedAgain
from epistream.loader.monitoring.stats import LoaderStats
from epistream.units import size_text

Limit = Literal[
    "too early",
    "training",
    "no workers",
    "hand-over",
    "decoding",
    "cores",
    "cache budget",
    "room in the cache",
    "fetching",
    "local storage",
    "interpreter lock",
    "waiting",
]
# What may be worth knowing beside the limit.
Remark = Literal["crowded", "pool", "copies", "bad shards", "retries", "checksums", "bypasses"]

# A loop that waits less than this for data is limited by something else.
_WAIT_SHARE = 0.03
# Workers that wait more than this for a core are too many, or not alone.
_CROWDED = 0.2
# Frames that are decoded without the pool of blocks, for one window each: fewer cost little.
_UNPOOLED = 0.05
# Where most frames are copied from those that are kept, decoding fewer saves nothing.
_KEPT = 0.5
# Before that many batches, starting up is most of what there is to see.
_MIN_BATCHES = 4


@dataclass(frozen=True)
class Situation:
    """What a loader knows about itself besides its counters.

    Attributes:
        num_workers: worker processes or threads.
        are_threads: whether they are threads.
        prefetch: batches that each prepares ahead.
        num_cores: cores that this process may use.
        local_ranks: ranks on this node, which share the cores.
        num_shards: shards of the dataset that this run reads.
        budget_advice: which order would fit the cache's budget, if the present one does not.
        decoded_again: what is decoded more often than once, and what to set; None if nothing is.
    """

    num_workers: int = 1
    are_threads: bool = False
    prefetch: int = 2
    num_cores: int = 1
    local_ranks: int = 1
    num_shards: int = 1
    budget_advice: str | None = None
    decoded_again: DecodedAgain | None = None

    @property
    def cores_per_rank(self) -> int:
        """Cores that each rank may use for itself, at least 1."""
        return max(1, self.num_cores // self.local_ranks)


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and what to do about it. `share` is of the loop's or the workers' time, 0 to 1."""

    limit: Limit | Remark
    share: float
    why: str
    cure: str


def find_limit(stats: LoaderStats, situation: Situation) -> Finding:
    """What limits the run."""
    limit, why, cure = _limit_of_loop(stats, situation)
    return Finding(limit, stats.data_wait_share, why, cure)


def _limit_of_loop(stats: LoaderStats, situation: Situation) -> tuple[Limit, str, str]:
    wait = stats.data_wait_share
    if stats.num_batches < _MIN_BATCHES:
        return "too early", f"only {stats.num_batches} batches so far", "ask again later"
    why = f"the loop waits for data {_percent(wait)} of its time"
    if wait <= _WAIT_SHARE:
        return "training", why, "nothing to do about the loader"
    if situation.num_workers == 0:
        return "no workers", f"{why}: nothing reads ahead", f"num_workers={situation.cores_per_rank}"
    return _limit_of_workers(stats, situation, f"{why}, while its workers")


def _limit_of_workers(stats: LoaderStats, situation: Situation, workers: str) -> tuple[Limit, str, str]:
    seconds = stats.worker_seconds
    most = max(seconds, key=lambda name: seconds[name])
    share = f"{_percent(seconds[most] / (stats.worker_s or 1.0))} of theirs"
    if most == "idle":
        return (
            "hand-over",
            f"{workers} wait for a free batch {share}: batches come unevenly",
            f"prefetch={2 * situation.prefetch}, and do not hold on to batches",
        )
    if most == "cpu":
        return _limit_of_decoding(stats, situation, f"{workers} decode and copy {share}")
    if most == "queue":
        return (
            "cores",
            f"{workers} wait for a core {share} (cores: {situation.num_cores}, ranks on this node: "
            f"{situation.local_ranks}, workers of each: {situation.num_workers})",
            _fewer_workers(situation),
        )
    return _limit_of_bytes(stats, situation, f"{workers} wait for bytes {share}")


def _limit_of_decoding(stats: LoaderStats, situation: Situation, why: str) -> tuple[Limit, str, str]:
    """Fewer frames to decode come before more cores to decode them."""
    decoded, again = stats.decoded, situation.decoded_again
    more = _more_workers(situation)
    pool = _lack_of_pool(stats)
    if pool is not None:
        return "decoding", f"{why}: {pool.why}", f"{pool.cure}; or {more}"
    num_frames = decoded.num_taken + decoded.num_decoded
    are_being_kept = decoded.num_kept > 0 and not decoded.why
    if again is None or are_being_kept or decoded.num_taken > _KEPT * num_frames > 0:
        return "decoding", why, more
    return "decoding", f"{why}: {again.why}", f"{again.cure}, which decodes it once; or {more}"


def _lack_of_pool(stats: LoaderStats) -> Finding | None:
    """Windows by blocks whose frames did not come from the pool, though they should have."""
    decoded = stats.decoded
    num_frames = decoded.num_taken + decoded.num_unpooled
    if not decoded.why or decoded.num_unpooled <= _UNPOOLED * num_frames:
        return None
    found, _, step = decoded.why.rstrip(".").partition(". ")
    why = f"{decoded.num_unpooled:,} frames were decoded for one window alone, not once for their block: {found}"
    few = "a smaller prefetch or fewer workers, so that fewer batches are in flight at a time"
    none = "a cache that is on, with room for the pool (budget_bytes, /dev/shm)"
    cure = step or (few if decoded.pool_bytes else none)
    return Finding("pool", decoded.num_unpooled / num_frames, why, cure)


def _limit_of_bytes(stats: LoaderStats, situation: Situation, why: str) -> tuple[Limit, str, str]:
    """Workers stand still: which bytes, or which lock, do they wait for?"""
    cache = stats.cache
    if cache.evictions and cache.fills > situation.num_shards:
        return (
            "cache budget",
            f"{why}: {cache.fills:,} fills of {situation.num_shards:,} shards, {cache.evictions:,} evicted",
            situation.budget_advice or "Give the cache a larger budget (budget_bytes, /dev/shm), or pack smaller.",
        )
    if cache.bypasses:
        return (
            "room in the cache",
            f"{why}: {cache.bypasses:,} reads found no room in the cache",
            situation.budget_advice or "a larger budget (budget_bytes, /dev/shm), or a disk_directory",
        )
    if cache.fills or cache.waits:
        rate = cache.bytes_fetched / cache.fill_seconds if cache.fill_seconds else 0.0
        return (
            "fetching",
            f"{why}: fills brought {size_text(cache.bytes_fetched)} at {size_text(rate)}/s each",
            "more workers or prefetch, a larger parallel_requests, a disk_directory that keeps shards between jobs, "
            "or smaller frames ('epistream pack --image-size')",
        )
    if stats.effort.storage_bytes:
        return (
            "local storage",
            f"{why}: {size_text(stats.effort.storage_bytes)} came from the disk",
            "more memory for the page cache, a faster disk, or smaller frames ('epistream pack --image-size')",
        )
    why = f"{why}, but nothing was fetched"
    if situation.are_threads:
        cure = f"worker processes: num_workers={situation.cores_per_rank}"
        return "interpreter lock", f"{why}: threads wait for each other", cure
    return "waiting", why, "look at the machine: swapping, page faults, a slow mount"


def find_remarks(stats: LoaderStats, limit: Limit | Remark) -> list[Finding]:
    """What else is worth knowing, beside what limits the run."""
    said = {("crowded", "cores"), ("pool", "decoding")}
    return [found for found in _remarks(stats) if (found.limit, limit) not in said]


def _remarks(stats: LoaderStats) -> Iterator[Finding]:
    cache = stats.cache
    crowded = stats.effort.queue_s / (stats.worker_s or 1.0)
    if crowded > _CROWDED:
        yield Finding(
            "crowded",
            crowded,
            f"workers wait for a core {_percent(crowded)} of their time: more runs on this machine than it has cores",
            "fewer workers, or more cores for the job",
        )
    pool = _lack_of_pool(stats)
    if pool is not None:
        yield pool
    if stats.num_copied_batches:
        yield Finding(
            "copies",
            stats.num_copied_batches / max(1, stats.num_batches),
            f"{stats.num_copied_batches:,} of {stats.num_batches:,} batches were copied, since the loop held the "
            "others",
            "drop references to batches (del batch), or a larger prefetch",
        )
    if stats.bad_shards:
        url, reason = next(iter(stats.bad_shards.items()))
        yield Finding(
            "bad shards",
            stats.num_replaced_windows / max(1, stats.num_windows),
            f"{len(stats.bad_shards):,} shards were skipped and {stats.num_replaced_windows:,} windows replaced, "
            f"for example {url}: {reason}",
            "'epistream verify', then fetch or pack these again",
        )
    if cache.retries:
        yield Finding("retries", 0.0, f"{cache.retries:,} requests were tried again", "look at the network")
    if cache.refetches:
        why = f"{cache.refetches:,} shards came with a wrong checksum and were fetched again"
        yield Finding("checksums", 0.0, why, "look at the storage or a proxy in between")
    if cache.bypasses:
        why = f"{cache.bypasses:,} shards were read without the cache: {cache.reason}"
        yield Finding("bypasses", 0.0, why, "a larger cache budget")


def _more_workers(situation: Situation) -> str:
    smaller = (
        "smaller frames: 'epistream pack --image-size', or '--codec raw' where memory allows; see 'epistream tune'"
    )
    if situation.num_workers >= situation.cores_per_rank:
        return f"all {situation.num_cores} cores are used: more cores, or {smaller}"
    option = "num_threads" if situation.are_threads else "num_workers"
    return f"{option}={situation.cores_per_rank}, or {smaller}"


def _fewer_workers(situation: Situation) -> str:
    if situation.num_workers > situation.cores_per_rank:
        return f"num_workers={situation.cores_per_rank}, or more cores for the job (Slurm: --cpus-per-task)"
    return "more cores for the job (Slurm: --cpus-per-task); something else on this machine is using them"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
