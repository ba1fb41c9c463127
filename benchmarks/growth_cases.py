"""One measurement of `growth.py`, with the epistream that is imported first: prints its figures as a line of JSON.

    PYTHONPATH=SITE python benchmarks/growth_cases.py CASE ARGUMENTS_AS_JSON

CPU seconds are those of this process and of the children that ended, unless a case says otherwise. Names that are not
public are those that both sides have.
"""

import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import epistream as es

Figures = dict[str, float]

CAMERA = "observation.images.top"
FEATURES = [CAMERA, "action"]
_FILLS = 200
_PATIENCE_S = 300


def cpu_s() -> float:
    """CPU time of this process and its dead children, in seconds."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


@contextmanager
def cache_folder() -> Iterator[Path]:
    """An empty folder in shared memory."""
    with TemporaryDirectory(dir="/dev/shm", prefix="epistream-growth-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "cache"


# --- the node's cache ------------------------------------------------------------------------------------------------


def fills(entries: int) -> Figures:
    """CPU of one fill of a small entry, in ms, where the cache holds so many already."""
    from epistream.cache.node import NodeCache
    from epistream.cache.source.entry import Entry, Part

    with cache_folder() as folder:
        folder.mkdir(mode=0o700)
        for number in range(entries):  # as others would have left them: found on entering
            (folder / f"{number:032x}.shard").write_bytes(bytes(4096))
        with NodeCache(es.CacheOptions(mode="shm", directory=folder, keep=True)) as cache:
            cache.budget()
            part = Part("/recordings/shard-000000.tar", 1, "0" * 32)
            began = time.process_time()
            for number in range(_FILLS):
                made = cache.open_made(Entry((part,), f"made {number}"), 4096, lambda view: None)
                assert made is not None
                made.close()
            return {"cpu_ms": 1e3 * (time.process_time() - began) / _FILLS}


def waiters(readers: int, seconds: float) -> Figures:
    """Readers that want one entry at the same time, which takes long to fill: fills, and cores that waiting burns."""
    from epistream.cache.node import NodeCache
    from epistream.cache.source.entry import Entry, Part

    class Slow:
        """Bytes that come late."""

        size = 1 << 16
        is_mapped = has_ranges = is_costly = False

        def open(self) -> Any:
            with fetched.open("a") as file:
                file.write("x")
            time.sleep(seconds)
            return self

        def read(self, offset: int, size: int) -> bytes:
            return bytes(size)

        def close(self) -> None:
            pass

    def reader() -> None:
        with NodeCache(es.CacheOptions(mode="shm", directory=folder, keep=True)) as cache:
            cache.budget()
            began = time.process_time()
            cache.open(Entry((Part("/recordings/one", Slow.size, version="1", supply=Slow()),))).close()
            with spent.open("a") as file:
                file.write(f"{time.process_time() - began}\n")

    with TemporaryDirectory() as scratch, cache_folder() as folder:
        fetched, spent = Path(scratch, "fetched"), Path(scratch, "spent")
        started = [multiprocessing.get_context("fork").Process(target=reader) for _ in range(readers)]
        for process in started:
            process.start()
        for process in started:
            process.join(_PATIENCE_S)
        return {"fills": len(fetched.read_text()), "cores": sum(map(float, spent.read_text().split())) / seconds}


# --- decoded episodes ------------------------------------------------------------------------------------------------


def decode(dataset: str, mode: str, share: float | None, epochs: int) -> Figures:
    """CPU of epochs, in ms a window, and what was kept; `share` is the budget as a part of all decoded frames."""
    opened = es.open_dataset(dataset)
    num_bytes = opened.num_steps * opened.features[CAMERA].step_bytes
    budget = None if share is None else int(share * num_bytes) + (4 << 20 if share >= 1 else 0)
    with cache_folder() as folder:
        cache = es.CacheOptions(directory=folder, budget_bytes=budget)
        stream = es.EpisodeStream(dataset, batch_size=8, features=FEATURES, decode=mode, cache=cache)
        found = {}
        for epoch in range(1, epochs + 1):
            began = time.process_time()
            num_windows = sum(len(batch["action"]) for batch in stream)
            found[f"epoch_{epoch}"] = 1e3 * (time.process_time() - began) / num_windows
        found["made"] = stream.job.cache.stats().made_fills
        stream.job.cache.close()
        return found


def two_jobs(datasets: list[str], room: float, decode: str, epochs: int) -> Figures:
    """Two jobs of a user, in turns: CPU of the last epoch in ms a window, evictions and entries made in all epochs.

    `room` is the budget as a part of what both would keep.
    """
    sizes = [(d.num_steps * d.features[CAMERA].step_bytes) for d in map(es.open_dataset, datasets)]
    with cache_folder() as folder:
        cache = es.CacheOptions(directory=folder, budget_bytes=int(room * sum(sizes)))
        streams = [es.EpisodeStream(d, batch_size=8, features=FEATURES, decode=decode, cache=cache) for d in datasets]
        figures: Figures = {}
        for _ in range(epochs):
            spent, done, live = [0.0, 0.0], [0, 0], {number: iter(s) for number, s in enumerate(streams)}
            while live:
                for number, batches in list(live.items()):
                    began = time.process_time()
                    batch = next(batches, None)
                    spent[number] += time.process_time() - began
                    if batch is None:
                        del live[number]
                    else:
                        done[number] += len(batch["action"])
            figures = {f"job_{n}": 1e3 * spent[n] / done[n] for n in range(2)}
        stats = [stream.job.cache.stats() for stream in streams]
        for stream in streams:
            stream.job.cache.close()
        return {**figures, "evictions": sum(s.evictions for s in stats), "made": sum(s.made_fills for s in stats)}


# --- many datasets, many episodes ------------------------------------------------------------------------------------


def mixture(datasets: list[str]) -> Figures:
    """A mixture, in batches of 32: CPU of a window in ms in its first 1,600 and in the next ones, and what it holds."""
    streams = [es.EpisodeStream(dataset, features=FEATURES, decode="per_read", batch_size=32) for dataset in datasets]
    stream = streams[0] if len(streams) == 1 else es.Mixture(streams, [1] * len(streams), batch_size=32)
    batches = chain.from_iterable(repeat(stream))
    next(batches)
    found = {}
    for name in ("first", "later"):
        began = time.process_time()
        for _ in range(50):
            next(batches)
        found[f"{name}_cpu_ms"] = 1e3 * (time.process_time() - began) / 1600
    found["descriptors"] = len(list(Path("/proc/self/fd").iterdir()))
    found["state_bytes"] = len(json.dumps(stream.state_dict()))
    return found


def open_dataset(url: str, warm: str) -> Figures:
    """Opening, as each rank does: CPU in seconds, and the memory that it takes at its most, in MB."""
    es.open_dataset(warm)  # imports
    memory, began = _most_mb(), time.process_time()
    dataset = es.open_dataset(url)
    assert dataset.num_episodes
    return {"cpu_s": time.process_time() - began, "mb": _most_mb() - memory}


def write_manifest(like: str, out: str, episodes: int) -> Figures:
    """Write the manifest of a dataset of so many episodes, a source file each, without its shards."""
    from epistream.sharding.manifest.manifest import Manifest
    from epistream.sharding.manifest.manifest_columns import ManifestColumns, default_ranges
    from epistream.sharding.manifest.manifest_writing import write_manifest as write_manifest_file

    random = np.random.default_rng(1)
    length = random.integers(100, 300, episodes)
    num_shards = max(1, episodes // 100)
    shard = np.arange(episodes) * num_shards // episodes
    range_offsets, ranges = default_ranges(length)
    columns = ManifestColumns(
        names=tuple(f"shard-{number:06d}.tar" for number in range(num_shards)),
        shard_bytes=random.integers(80_000_000, 120_000_000, num_shards),
        shard_checksums=random.integers(0, 256, (num_shards, 16), dtype=np.uint8),
        index_bytes=np.full(num_shards, 40_000),
        index_checksums=random.integers(0, 256, (num_shards, 16), dtype=np.uint8),
        shard_split=np.zeros(num_shards, np.uint8),
        episode_shard=shard,
        episode_in_shard=np.arange(episodes) - np.searchsorted(shard, np.arange(num_shards))[shard],
        episode_length=length,
        range_offsets=range_offsets,
        ranges=ranges,
        task_offsets=np.arange(episodes + 1),
        task_ids=random.integers(0, 1000, episodes),
    )
    files = [(f"day_{n // 1000}/episode_{n}.hdf5", 1_000_000, f"{n + 1:032x}") for n in range(episodes)]
    common = {
        "features": es.open_dataset(like).features,
        "splits": ("all",),
        "columns": columns,
        "tasks": tuple(f"pick up object number {number}" for number in range(1000)),
    }
    Path(out).mkdir(parents=True)
    try:
        from epistream.sharding.manifest.sources import Source, Sources
    except ImportError:  # manifests of version 1
        from epistream.sharding.manifest.manifest import Source

        sources = tuple(Source(*file) for file in files)
        write_manifest_file(Manifest(**common, sources=sources, episode_source=np.arange(episodes)), out)
    else:
        sources = Sources.of([Source(*file) for file in files], np.arange(episodes))
        write_manifest_file(Manifest(**common, sources=sources), out)
    return {}


def _most_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


# --- packing ---------------------------------------------------------------------------------------------------------


def pack(source: str, out: str, shard_size: str = "256KiB") -> Figures:
    """Pack, or go on with packing: CPU in seconds, without imports, and bytes read by system calls."""
    with TemporaryDirectory() as scratch:  # what is imported late
        es.pack(next(Path(source).iterdir()), Path(scratch, "out"))
    before, read = cpu_s(), _bytes_read()
    es.pack(source, out, shard_size=shard_size, resume=True)
    return {"cpu_s": cpu_s() - before, "bytes_read": _bytes_read() - read}


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


# --- the network -----------------------------------------------------------------------------------------------------


def cold_epoch(source: str, copies: int, ranks: int) -> Figures:
    """Bytes over a network of 100 MB/s and 5 ms, in parts of the dataset, for `ranks` with two workers each."""
    from served import Network, served

    network = Network(100e6, 0.005)
    sent: list[int] = []
    with served(Path(source), copies, "8MiB", network) as (url, dataset), cache_folder() as folder:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(ranks + 1)
        started = [
            context.Process(target=_rank, args=(rank, url, ranks, str(folder), barrier)) for rank in range(ranks)
        ]
        for process in started:
            process.start()
        for _ in range(3):  # opened, first epoch, second epoch
            barrier.wait(_PATIENCE_S)
            sent.append(network.num_bytes)
            barrier.wait(_PATIENCE_S)
        for process in started:
            process.join(_PATIENCE_S)
        size = int((dataset.shard_bytes + dataset.index_bytes).sum())
    opening, first, second = sent
    return {"opening": opening / size, "epoch_1": (first - opening) / size, "epoch_2": (second - first) / size}


def _rank(rank: int, url: str, ranks: int, folder: str, barrier: Any) -> None:
    torch.set_num_threads(1)
    cache = es.CacheOptions(directory=folder)
    world = es.World.of(rank, ranks, ranks)
    stream = es.EpisodeStream(url, batch_size=8, decode="per_read", cache=cache, world=world)
    with es.StreamingLoader(stream, num_workers=2) as loader:
        _meet(barrier)
        for _ in range(2):
            for batch in loader:
                del batch
            _meet(barrier)


def _meet(barrier: Any) -> None:
    for _ in range(2):  # bytes are counted in between
        barrier.wait(_PATIENCE_S)


CASES: dict[str, Callable[..., Figures]] = {
    case.__name__: case
    for case in (fills, waiters, decode, two_jobs, mixture, write_manifest, open_dataset, pack, cold_epoch)
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    print(json.dumps(CASES[sys.argv[1]](**json.loads(sys.argv[2]))), flush=True)
