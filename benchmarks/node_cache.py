"""What a node fetches and holds: ranks x workers over a remote dataset, with room for all of it and for a quarter.

    python benchmarks/node_cache.py FOLDER_OF_EPISODES [--copies 32] [--ranks 4] [--workers 2]

Every rank is a process of its own with worker processes, all in one cache directory, reading from an HTTP server on
loopback. Prints bytes fetched against the dataset's bytes per epoch. Workers run into the next epoch before this one
is consumed, so what is fetched at its border counts now here, now there: the mean is what the network carries. The
plan's own share is printed too: a shard at the cut between two lanes is used twice, at different times.

Then 1, 2, 4 and 8 readers that hold all of a budget in their hands: their memory (PSS, so that what n of them share
counts once) is the budget and a constant for each.
"""

import argparse
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import psutil
from served import Network, served

import epistream as es
from epistream.cache.node import NodeCache
from epistream.cache.source.entry import Entry
from epistream.loader.shards.shard_entry import shard_entry

BATCH_SIZE, NUM_EPOCHS = 16, 4
FEATURES = ["observation.state", "action"]


def open_stream(url: str, rank: int, ranks: int, cache: es.CacheOptions | str = "auto") -> es.EpisodeStream:
    """What a rank reads."""
    return es.EpisodeStream(
        url,
        batch_size=BATCH_SIZE,
        features=FEATURES,
        window=es.Window(action=range(16)),
        order=es.OrderOptions(lanes=4, resident_shards=8),
        world=es.World.of(rank, ranks, ranks),
        cache=cache,
    )


def planned(url: str, args: argparse.Namespace) -> int:
    """Bytes of all uses of shards in an epoch."""
    return sum(entry.size for _, entry in open_stream(url, 0, args.ranks).job.uses_from(0, 0))


def run_rank(
    url: str, rank: int, args: argparse.Namespace, cache: es.CacheOptions, pipe: Connection, step: Barrier
) -> None:
    """Stream the epochs in step with the other ranks, as an all-reduce would keep them; tells counters."""
    stream = open_stream(url, rank, args.ranks, cache)
    with es.StreamingLoader(stream, num_workers=args.workers) as loader:
        for _ in range(NUM_EPOCHS):
            for batch in loader:
                del batch
                step.wait(60)
            stats = loader.stats()
            pipe.send((stats.cache.bytes_fetched, stats.cache.bytes_ranged, stats.cache.evictions))
            pipe.recv()  # the next epoch begins on all ranks together


def measure(url: str, args: argparse.Namespace, budget_bytes: int) -> list[tuple[int, int, int]]:
    """Totals over the ranks after each epoch: bytes fetched, bytes of ranged reads, evictions."""
    directory = f"/dev/shm/epistream-node-{budget_bytes}"
    cache = es.CacheOptions(directory=directory, budget_bytes=budget_bytes)
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(args.ranks)]
    step = context.Barrier(args.ranks)
    ranks = [context.Process(target=run_rank, args=(url, n, args, cache, pipes[n][1], step)) for n in range(args.ranks)]
    for rank in ranks:
        rank.start()
    totals = []
    for _ in range(NUM_EPOCHS):
        answers = []
        for ours, _ in pipes:
            if not ours.poll(300):
                raise TimeoutError("a rank did not finish its epoch within 300 s")
            answers.append(ours.recv())
        totals.append(tuple(sum(column) for column in zip(*answers, strict=True)))
        for ours, _ in pipes:
            ours.send("go on")
    for rank in ranks:
        rank.join(60)
    return totals


def run_reader(entries: list[Entry], cache: es.CacheOptions, pipe: Connection, step: Barrier) -> None:
    """Hold a lease of every entry and look at every page of it."""
    with NodeCache(cache) as node:
        step.wait(60)
        opened = [node.open(entry) for entry in entries]
        for one in opened:
            for blob in one.blobs:
                np.frombuffer(blob.read(0, blob.size), np.uint8)[::4096].sum()
        step.wait(60)
        pipe.send(psutil.Process().memory_full_info().pss)
        step.wait(60)
        for one in opened:
            one.close()


def memory_of(entries: list[Entry], num_readers: int) -> int:
    """PSS of all readers together, in bytes."""
    cache = es.CacheOptions(mode="shm", directory=f"/dev/shm/epistream-readers-{num_readers}")
    context = multiprocessing.get_context("spawn")  # a fork would share this process's memory, and look small
    step = context.Barrier(num_readers)
    ours, theirs = context.Pipe()
    readers = [context.Process(target=run_reader, args=(entries, cache, theirs, step)) for _ in range(num_readers)]
    for reader in readers:
        reader.start()
    total = sum(ours.recv() for _ in readers if ours.poll(120))
    for reader in readers:
        reader.join(60)
    return total


def print_memory(entries: list[Entry]) -> None:
    """A line for each number of readers."""
    held = sum(entry.size for entry in entries)
    print(f"readers that hold {held / 1e6:,.1f} MB in {len(entries)} entries")
    for count in (1, 2, 4, 8):
        total = memory_of(entries, count)
        print(f"{count} readers: PSS {total / 1e6:6,.1f} MB = budget + {(total - held) / count / 1e6:5.1f} MB a reader")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("episodes", type=Path)
    parser.add_argument("--copies", type=int, default=32)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with served(args.episodes, args.copies, "1MiB", Network(1e9, 0.0)) as (url, dataset):
        size = int(dataset.shard_bytes.sum() + dataset.index_bytes.sum())
        print(f"{dataset.num_shards} shards, {size / 1e6:,.0f} MB; {args.ranks} ranks x {args.workers} workers")
        print(f"the plan: {planned(url, args) / size:.2f} of the dataset an epoch, if nothing stays that is not in use")
        for name, budget in (("all of it", 2 * size), ("a quarter", size // 4)):
            before = 0
            for epoch, (fetched, ranged, evictions) in enumerate(measure(url, args, budget)):
                print(
                    f"room for {name}, epoch {epoch}: fetched {(fetched - before) / size:5.2f} of the dataset, mean "
                    f"{fetched / size / (epoch + 1):.2f}; {ranged / size:.2f} by ranges so far, {evictions} evictions"
                )
                before = fetched
        print_memory([shard_entry(dataset, shard) for shard in range(dataset.num_shards)])


if __name__ == "__main__":
    main()
