"""What a node fetches and holds: ranks x workers over a remote dataset, with room for all of it and for a quarter.

    python benchmarks/node_cache.py FOLDER_OF_EPISODES [--copies 32] [--ranks 4] [--workers 2]

Every rank is a process of its own with worker processes, all in one cache directory, reading from an HTTP server on
loopback. Prints bytes fetched against the dataset's bytes per epoch, and memory (PSS) beside the budget.
"""

import argparse
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psutil
from served import Network, served

import epistream as es

BATCH_SIZE, NUM_EPOCHS = 16, 2
FEATURES = ["observation.state", "action"]


def run_rank(
    url: str, rank: int, args: argparse.Namespace, cache: es.CacheOptions, pipe: Connection, step: Barrier
) -> None:
    """Stream the epochs in step with the other ranks, as an all-reduce would keep them; tells counters and memory."""
    stream = es.EpisodeStream(
        url,
        batch_size=BATCH_SIZE,
        features=FEATURES,
        window=es.Window(action=range(16)),
        order=es.OrderOptions(lanes=4, resident_shards=8),
        world=es.World.of(rank, args.ranks, args.ranks),
        cache=cache,
    )
    with es.StreamingLoader(stream, num_workers=args.workers) as loader:
        for _ in range(NUM_EPOCHS):
            for batch in loader:
                del batch
                step.wait(60)
            stats = loader.stats()
            family = [psutil.Process(), *psutil.Process().children()]
            pss = sum(process.memory_full_info().pss for process in family)
            pipe.send((stats.cache.bytes_fetched, stats.cache.bytes_ranged, stats.cache.evictions, pss))
            pipe.recv()  # the next epoch begins on all ranks together


def measure(url: str, args: argparse.Namespace, budget_bytes: int) -> list[tuple[int, int, int, int]]:
    """Totals over the ranks after each epoch: bytes fetched, bytes of ranged reads, evictions, PSS."""
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
        for name, budget in (("all of it", 2 * size), ("a quarter", size // 4)):
            before = 0
            for epoch, (fetched, ranged, evictions, pss) in enumerate(measure(url, args, budget)):
                print(
                    f"room for {name}, epoch {epoch}: fetched {(fetched - before) / size:5.2f} of the dataset, "
                    f"{ranged / size:.2f} by ranges at the start, {evictions} evictions, PSS {pss / 1e6:,.0f} MB"
                )
                before = fetched


if __name__ == "__main__":
    main()
