"""What limits a run, and what to change: a reading of a loader's counters, as a pure function."""

from dataclasses import dataclass
from typing import Literal

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
Remark = Literal["crowded", "copies", "bad shards", "retries", "checksums", "bypasses"]

# A loop that waits less than this for data is limited by something else.
WAIT_SHARE = 0.03
# Workers that wait more than this for a core are too many, or not alone.
_CROWDED = 0.2
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
    """

    num_workers: int = 1
    are_threads: bool = False
    prefetch: int = 2
    num_cores: int = 1
    local_ranks: int = 1
    num_shards: int = 1
    budget_advice: str | None = None

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
    wait = stats.data_wait_share
    if stats.num_batches < _MIN_BATCHES:
        return Finding("too early", wait, f"only {stats.num_batches} batches so far", "ask again later")
    if wait <= WAIT_SHARE:
        return Finding(
            "training", wait, f"the loop waits for data {_percent(wait)} of its time", "nothing to do about the loader"
        )
    why = f"the loop waits for data {_percent(wait)} of its time"
    if situation.num_workers == 0:
        return Finding("no workers", wait, f"{why}: nothing reads ahead", f"num_workers={situation.cores_per_rank}")
    return _limit_of_workers(stats, situation, wait, why)


def _limit_of_workers(stats: LoaderStats, situation: Situation, wait: float, why: str) -> Finding:
    total_s = stats.worker_busy_s + stats.worker_idle_s or 1.0
    shares = {
        "cpu": stats.effort.cpu_s / total_s,
        "queue": stats.effort.queue_s / total_s,
        "blocked": stats.worker_blocked_s / total_s,
        "idle": stats.worker_idle_s / total_s,
    }
    most = max(shares, key=lambda name: shares[name])
    workers = f"{why}, while its workers"
    if most == "idle":
        return Finding(
            "hand-over",
            wait,
            f"{workers} wait for a free batch {_percent(shares[most])} of theirs: batches come unevenly",
            f"prefetch={2 * situation.prefetch}, and do not hold on to batches",
        )
    if most == "cpu":
        return Finding(
            "decoding", wait, f"{workers} decode and copy {_percent(shares[most])} of theirs", _more_workers(situation)
        )
    if most == "queue":
        return Finding(
            "cores",
            wait,
            f"{workers} wait for a core {_percent(shares[most])} of theirs ({situation.num_cores} cores, "
            f"{situation.num_workers} workers on each of {situation.local_ranks} ranks)",
            _fewer_workers(situation),
        )
    return _limit_of_bytes(stats, situation, wait, f"{workers} wait for bytes {_percent(shares[most])} of theirs")


def _limit_of_bytes(stats: LoaderStats, situation: Situation, wait: float, why: str) -> Finding:
    """Workers stand still: which bytes, or which lock, do they wait for?"""
    cache = stats.cache
    if cache.evictions and cache.fills > situation.num_shards:
        advice = situation.budget_advice or "Give the cache a larger budget (budget_bytes, /dev/shm), or pack smaller."
        again = f"{why}: {cache.fills:,} fills of {situation.num_shards:,} shards, {cache.evictions:,} evicted"
        return Finding("cache budget", wait, again, advice)
    if cache.bypasses:
        return Finding(
            "room in the cache",
            wait,
            f"{why}: {cache.bypasses:,} reads found no room in the cache",
            situation.budget_advice or "a larger budget (budget_bytes, /dev/shm), or a disk_directory",
        )
    if cache.fills or cache.waits:
        rate = cache.bytes_fetched / cache.fill_seconds if cache.fill_seconds else 0.0
        return Finding(
            "fetching",
            wait,
            f"{why}: fills brought {size_text(cache.bytes_fetched)} at {size_text(rate)}/s each",
            "more workers or prefetch, a larger parallel_requests, a disk_directory that keeps shards between jobs, "
            "or smaller frames ('epistream pack --image-size')",
        )
    if stats.effort.storage_bytes:
        return Finding(
            "local storage",
            wait,
            f"{why}: {size_text(stats.effort.storage_bytes)} came from the disk",
            "more memory for the page cache, a faster disk, or smaller frames ('epistream pack --image-size')",
        )
    if situation.are_threads:
        return Finding(
            "interpreter lock",
            wait,
            f"{why}, but nothing was fetched: threads wait for each other",
            f"worker processes: num_workers={situation.cores_per_rank}",
        )
    return Finding(
        "waiting", wait, f"{why}, but nothing was fetched", "look at the machine: swapping, page faults, a slow mount"
    )


def find_remarks(stats: LoaderStats) -> list[Finding]:
    """What else is worth knowing, whatever limits the run."""
    cache, found = stats.cache, []
    total_s = stats.worker_busy_s + stats.worker_idle_s
    if total_s and stats.effort.queue_s > _CROWDED * total_s:
        share = stats.effort.queue_s / total_s
        found.append(
            Finding(
                "crowded",
                share,
                f"workers wait for a core {_percent(share)} of their time: more runs on this machine than it has cores",
                "fewer workers, or more cores for the job",
            )
        )
    if stats.num_copied_batches:
        share = stats.num_copied_batches / max(1, stats.num_batches)
        found.append(
            Finding(
                "copies",
                share,
                f"{stats.num_copied_batches:,} of {stats.num_batches:,} batches were copied, since the loop held the "
                "others",
                "drop references to batches (del batch), or a larger prefetch",
            )
        )
    if stats.bad_shards:
        url, reason = next(iter(stats.bad_shards.items()))
        found.append(
            Finding(
                "bad shards",
                stats.num_replaced_windows / max(1, stats.num_windows),
                f"{len(stats.bad_shards):,} shards were skipped and {stats.num_replaced_windows:,} windows replaced, "
                f"for example {url}: {reason}",
                "'epistream verify', then fetch or pack these shards again",
            )
        )
    if cache.retries:
        found.append(Finding("retries", 0.0, f"{cache.retries:,} requests were tried again", "look at the network"))
    if cache.refetches:
        found.append(
            Finding(
                "checksums",
                0.0,
                f"{cache.refetches:,} shards came with a wrong checksum and were fetched again",
                "look at the storage or a proxy in between",
            )
        )
    if cache.bypasses:
        found.append(
            Finding(
                "bypasses",
                0.0,
                f"{cache.bypasses:,} shards were read without the cache: {cache.reason}",
                "a larger cache budget",
            )
        )
    return found


def _more_workers(situation: Situation) -> str:
    smaller = (
        "smaller frames: 'epistream pack --image-size', or '--codec raw' where memory allows; see 'epistream tune'"
    )
    if situation.num_workers >= situation.cores_per_rank:
        return f"all {situation.num_cores} cores are used: more cores, or {smaller}"
    wish = f"num_threads={situation.cores_per_rank}" if situation.are_threads else ""
    return f"{wish or f'num_workers={situation.cores_per_rank}'}, or {smaller}"


def _fewer_workers(situation: Situation) -> str:
    if situation.num_workers > situation.cores_per_rank:
        return f"num_workers={situation.cores_per_rank}, or more cores for the job (Slurm: --cpus-per-task)"
    return "more cores for the job (Slurm: --cpus-per-task); something else on this machine is using them"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
