"""Measures what a choice of configuration needs to know about a dataset and where it lies."""

import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from epistream.cache.node import NodeCache
from epistream.cache.options import CacheOptions
from epistream.cache.source.fetch import Fetcher
from epistream.cache.source.remote import Remote
from epistream.cache.store.places import file_system_type, is_network
from epistream.configs.config import Config
from epistream.errors import SourceError
from epistream.file_systems import local_path
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.loader import StreamingLoader
from epistream.loader.measuring.blocks import measuring_order, warm_up_batches
from epistream.loader.measuring.rates import WARM_UP, Kind, LoadRate, keep_decoded, measure_loading, unique_share
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.world import World
from epistream.loader.reading.job import ReadJob
from epistream.loader.shards.shard_entry import shard_entry
from epistream.loader.stream import EpisodeStream, Source
from epistream.loader.stream_iterator import StreamIterator
from epistream.loader.workers.cores import num_usable_cores
from epistream.plain_files import not_a_plain_file
from epistream.sharding.files.names import EPISODE_MARK, is_episode_url
from epistream.sharding.format.feature_sets import longest_group
from epistream.sharding.lerobot.dataset import episode_source
from epistream.sharding.manifest.opened_dataset import Dataset

# Measured on a part of the dataset: enough shards to be typical, not so many that a remote one costs minutes.
_SAMPLE_BYTES = 192 << 20
_SAMPLE_SHARDS = 16
_KEPT_BYTES = 512 << 20
_KEEP_S = 60.0
_ROUNDS = 2
# One rank alone, every window at least once, and every frame decoded: what is kept decoded is reckoned later.
PLAIN: dict[str, Any] = {"world": World(), "remainder": "pad", "decode": "per_read", "validation": False}
ALL_OF_IT: dict[str, Any] = {**PLAIN, "split": None, "val_fraction": None}
_PAGE_BYTES = 4 << 20


@dataclass(frozen=True)
class Place:
    """Where the shards lie. `shared_by_pages`: the page cache serves all ranks, so nothing is copied."""

    name: str
    shared_by_pages: bool


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        place: where the shards lie.
        dataset_bytes: of all shards that are read.
        num_windows: of an epoch.
        decoded_bytes: of all camera frames of the dataset, decoded, at the size that is streamed.
        batch_size: windows per batch and rank.
        batch_bytes: one batch in memory.
        num_cores: that the rates below were measured with.
        alone: rate of a loader with one worker, by kind.
        together: rate with as many workers as cores, by kind.
        more_frames: how many times more different frames a batch of the whole dataset has than one of the sample; 1
            where each is decoded once for all of them.
        finish_s: what the training process does for each batch, in seconds.
        fetch_bytes_per_s: one shard from where it lies, with nothing cached.
        main_bytes: memory of this process, which has what a training process has but for the model.
    """

    place: Place
    dataset_bytes: int
    num_windows: int
    decoded_bytes: int
    batch_size: int
    batch_bytes: int
    num_cores: int
    alone: dict[Kind, LoadRate]
    together: dict[Kind, LoadRate]
    more_frames: float
    finish_s: float
    fetch_bytes_per_s: float
    main_bytes: int

    @property
    def window_bytes(self) -> float:
        """Bytes of the shards that an epoch fetches for each window."""
        return self.dataset_bytes / self.num_windows


def survey(
    base: Config, source: Source | None, seconds: float, say: Callable[[str], None] = lambda text: None
) -> tuple[Survey, EpisodeStream, EpisodeStream]:
    """Measure; takes about five times `seconds`, and the fetch of a sample.

    Args:
        base: says what is streamed: batch size, window, features.
        source: the dataset, if `base` does not name it.
        seconds: for each measurement.
        say: told what is done next.

    Returns:
        What was found, the whole stream, and the stream of the sample, both for one rank.
    """
    say("opening the dataset")
    whole = EpisodeStream.from_config(base, source, **PLAIN)
    job = whole.job
    say("fetching a shard")
    fetch_rate, where = _measure_fetch(job), _place(job)
    plan = job.part.plan
    blocks = None if plan.blocks is None else plan.blocks.steps
    sample = _sample(base, source, whole, blocks)
    num_cores = num_usable_cores()
    alone, together = _rates(sample, num_cores, seconds, say)
    finish_s = _measure_finish(sample)
    rows = int(job.dataset.episode_length.sum())
    frames = [feature for feature in job.part.frames.all_shown(job.features).values() if feature.kind == "frames"]
    found = Survey(
        place=where,
        dataset_bytes=int(job.dataset.shard_bytes[plan.per_shard > 0].sum()),
        num_windows=whole.num_windows,
        decoded_bytes=rows * sum(feature.step_bytes for feature in frames),
        batch_size=job.batch_size,
        batch_bytes=job.layout.num_bytes,
        num_cores=num_cores,
        alone=alone,
        together=together,
        more_frames=unique_share(job) / unique_share(sample.job) if blocks is None else 1.0,
        finish_s=finish_s,
        fetch_bytes_per_s=fetch_rate,
        main_bytes=psutil.Process().memory_full_info().pss,
    )
    sample.job.cache.close()
    return found, whole, sample


def survey_kept(
    found: Survey, base: Config, sample: EpisodeStream, seconds: float, say: Callable[[str], None]
) -> Survey | None:
    """The survey as it is once all episodes have been decoded and are kept, measured on some episodes.

    None where nothing is decoded, or where a few episodes do not fit the memory.
    """
    job = sample.job
    shown = job.part.frames.all_shown(job.features)
    cameras = [feature for feature in job.features.values() if feature.kind == "frames"]
    costly = [f.name for f in cameras if not FrameDecoder(f, shown[f.name].shape).is_copy]
    if not costly:
        return None
    step_bytes = sum(shown[name].step_bytes for name in costly)
    sizes = np.cumsum(job.dataset.episode_length * step_bytes)
    number = max(1, int(np.searchsorted(sizes, _KEPT_BYTES)))
    times = [int(index < number) for index in range(job.dataset.num_episodes)]
    options = CacheOptions()
    few = EpisodeStream.from_config(
        base,
        sources_of(job.dataset),
        storage_options=job.dataset.storage_options,
        **{**ALL_OF_IT, "decode": "once", "repetitions": times, "cache": options, "order": by_windows(base)},
    )
    # Stays in the cache from the first measurement to the last, so that no episode is decoded twice.
    with NodeCache(options) as holder:
        budget = holder.budget()
        if budget is None or budget.bytes < 1.5 * sizes[number - 1]:
            return None
        say("keeping decoded frames")
        with StreamingLoader(few, num_workers=found.num_cores) as loader:
            keep_decoded(loader, _KEEP_S)
        alone, together = _rates(few, found.num_cores, seconds, say)
    # Mapped episodes would count as a worker's own memory; the cache's bytes have them.
    workers = found.together["processes"].worker_bytes
    return replace(
        found,
        alone={kind: replace(rate, worker_bytes=workers) for kind, rate in alone.items()},
        together={kind: replace(rate, worker_bytes=workers) for kind, rate in together.items()},
        more_frames=1.0,  # a frame is copied for each window that shows it, whether or not others do
    )


def by_windows(base: Config) -> OrderOptions:
    """The order of a configuration, by windows."""
    order: OrderOptions = base.stream_arguments()["order"]
    return replace(order, by="windows", block_steps=None, pool_blocks=None)


def scaled(found: Survey, gain: float, **changes: Any) -> Survey:
    """A survey with rates so many times as high, of the same windows read in another way."""
    alone, together = (
        {kind: replace(rate, windows_per_s=rate.windows_per_s * gain) for kind, rate in rates.items()}
        for rates in (found.alone, found.together)
    )
    return replace(found, alone=alone, together=together, **changes)


def measured_in(order: OrderOptions, base: Config, sample: EpisodeStream, number: int, seconds: float) -> float:
    """Windows/s of the sample in another order, with so many processes."""
    dataset = sample.job.dataset
    how: dict[str, Any] = {"decode": "auto" if order.by == "blocks" else "per_read", "order": order}
    if any(map(is_episode_url, dataset.index_url)):
        how["repetitions"] = _only(dataset, np.flatnonzero(sample.job.part.plan.per_shard > 0))
    stream = EpisodeStream.from_config(
        base, sources_of(dataset), storage_options=dataset.storage_options, **{**ALL_OF_IT, **how}
    )
    # Video by windows takes a second for a batch.
    slow = stream.job.part.plan.blocks is None and longest_group(stream.job.features.values()) is not None
    warm_up = warm_up_batches(stream.job, number, 1 if slow else WARM_UP)
    rate = measure_loading(stream, number, "processes", seconds, warm_up)
    stream.job.cache.close()
    return rate.windows_per_s


def _rates(
    stream: EpisodeStream, num_cores: int, seconds: float, say: Callable[[str], None]
) -> tuple[dict[Kind, LoadRate], dict[Kind, LoadRate]]:
    """Rates of one worker, and of as many as there are cores, by kind: the better of two interleaved rounds.

    The better one, because what disturbs a measurement only ever makes it slower.
    """
    best: dict[tuple[Kind, int], LoadRate] = {}
    kinds: tuple[Kind, ...] = ("processes", "threads")
    for _ in range(_ROUNDS):
        for kind, number in itertools.product(kinds, sorted({1, num_cores})):
            say(f"reading with {number} {kind}")
            warm_up = warm_up_batches(stream.job, number, WARM_UP)
            rate = measure_loading(stream, number, kind, seconds / _ROUNDS, warm_up)
            before = best.get((kind, number), rate)
            best[kind, number] = max(rate, before, key=lambda each: each.windows_per_s)
    return {kind: best[kind, 1] for kind in kinds}, {kind: best[kind, num_cores] for kind in kinds}


def _sample(base: Config, source: Source | None, whole: EpisodeStream, block_steps: int | None) -> EpisodeStream:
    """A stream of some shards from all over the dataset, in an order by blocks with a small pool if by blocks."""
    how: dict[str, Any] = {}
    if block_steps is not None:
        group_steps = longest_group(whole.job.features.values())
        order = measuring_order(whole.job.dataset.episode_length, block_steps, group_steps)
        how = {"order": order, "decode": "auto"}
    dataset, used = whole.job.dataset, np.flatnonzero(whole.job.part.plan.per_shard > 0)
    average = max(1, int(dataset.shard_bytes[used].mean()))
    number = max(1, min(_SAMPLE_SHARDS, _SAMPLE_BYTES // average))
    if number >= len(used):
        return EpisodeStream.from_config(base, source, **{**PLAIN, **how})
    chosen = used[np.linspace(0, len(used) - 1, number).round().astype(int)]
    if any(map(is_episode_url, dataset.index_url)):
        how["repetitions"] = _only(dataset, chosen)
        urls = sources_of(dataset)
    else:
        urls = list(dict.fromkeys(dataset.shard_url[int(shard)] for shard in chosen))
    return EpisodeStream.from_config(base, urls, storage_options=dataset.storage_options, **{**ALL_OF_IT, **how})


def sources_of(dataset: Dataset) -> list[str]:
    """What opens all of a dataset again: several shards may lie in one HDF5 file, or in one LeRobot data set."""
    pairs = zip(dataset.shard_url, dataset.index_url, strict=True)
    sets: dict[str, str] = {}
    urls = []
    for url, index in pairs:
        kept, mark, _ = index.rpartition(EPISODE_MARK)
        if mark and kept not in sets:
            sets[kept] = episode_source(index, dataset.storage_options)[0].root
        urls.append(sets[kept] if mark else url)
    return list(dict.fromkeys(urls))


def _only(dataset: Dataset, shards: NDArray[np.int64]) -> list[int]:
    """How often each episode of a dataset comes where only some shards do: a part of a LeRobot data set has no URL."""
    return list(map(int, np.isin(dataset.episode_shard, shards)))


def _place(job: ReadJob) -> Place:
    url = job.dataset.shard_url[0]
    path = local_path(url)
    if path is None:
        return Place(f"remote ({url.partition('://')[0]})", shared_by_pages=False)
    kind = file_system_type(path)
    if is_network(kind):
        return Place(f"a network file system ({kind})", shared_by_pages=False)
    return Place(f"a local file system ({kind})", shared_by_pages=job.cache.options.mode in ("auto", "off"))


def _measure_fetch(job: ReadJob) -> float:
    """Bytes per second of one shard, from the disk and not from the page cache where the kernel lets us ask."""
    used = np.flatnonzero(job.part.plan.per_shard > 0)
    shard = int(used[np.argsort(job.dataset.shard_bytes[used])[len(used) // 2]])
    entry = shard_entry(job.dataset, shard)
    path = local_path(entry.parts[0].url)
    supply = entry.parts[0].supply
    ranges = [] if supply is None else list(supply.local_ranges())
    if ranges:
        path = max(ranges, key=lambda one: one[2] - one[1])[0]
    if path is not None:
        return _measure_disk(path)
    options = job.cache.options
    remote = Remote(job.dataset.storage_options, options.retries)
    fd = os.memfd_create("epistream-tune")
    try:
        os.truncate(fd, entry.size)
        began = time.perf_counter()
        Fetcher(remote, options.parallel_requests, options.fetch_timeout_s).fetch(entry, fd)
        return entry.size / (time.perf_counter() - began)
    finally:
        os.close(fd)


def _measure_disk(path: Path) -> float:
    problem = not_a_plain_file(path)
    if problem:
        raise SourceError(f"{path}: {problem}, wanted a file to measure the disk by. Check the path.")
    page = bytearray(_PAGE_BYTES)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began, size = time.perf_counter(), 0
        while (count := file.readinto(page)) and size < _SAMPLE_BYTES:
            size += count
        return size / max(1e-9, time.perf_counter() - began)


def _measure_finish(sample: EpisodeStream) -> float:
    """Seconds in which the training process makes of a batch what the training loop gets."""
    views = next(StreamIterator(sample.job, lambda views: views, sample.next_place, 0, 1))
    sample.finish(views)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        sample.finish(views)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
