"""What a first epoch over the network costs a node: bytes that the server sent, and the first batch of each rank.

    python benchmarks/cold_epoch.py FOLDER_OF_EPISODES [--copies 11 110] [--ranks 4] [--workers 2]

Packs copies of the episodes, serves them on loopback by a server that counts what it sends, and starts the ranks at the
same time with an empty cache: a process each, with worker processes, in one cache directory. Prints bytes sent against
the data set's own (shards and indexes; each rank's look at the manifest counts as sent), for the first epoch and the
second, and the seconds from `iter(loader)` to the first batch: the median of the ranks, and the slowest.
"""

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from served import Network, served

import epistream as es


def run_rank(url: str, rank: int, args: argparse.Namespace, directory: str, pipe: Connection, step: Barrier) -> None:
    """Stream two epochs in step with the other ranks, as an all-reduce would keep them; tells its first batch."""
    stream = es.EpisodeStream(
        url,
        batch_size=args.batch_size,
        window=es.Window(action=range(16)),
        world=es.World.of(rank, args.ranks, args.ranks),
        cache=es.CacheOptions(directory=directory),
    )
    with es.StreamingLoader(stream, num_workers=args.workers) as loader:
        step.wait(60)
        started, first_s = time.monotonic(), 0.0
        for _ in range(2):
            for batch in loader:
                first_s = first_s or time.monotonic() - started
                del batch
                step.wait(60)
            cache = loader.stats().cache
            pipe.send((first_s, cache.bytes_fetched, cache.bytes_ranged))
            pipe.recv()


def run(url: str, args: argparse.Namespace, network: Network, directory: str) -> list[tuple[float, ...]]:
    """For each epoch: bytes sent, requests, bytes that fills and ranged reads count, first batch of each rank."""
    context = multiprocessing.get_context("forkserver")
    step = context.Barrier(args.ranks)
    pipes = [context.Pipe() for _ in range(args.ranks)]
    ranks = [
        context.Process(target=run_rank, args=(url, rank, args, directory, pipes[rank][1], step))
        for rank in range(args.ranks)
    ]
    sent, requests, found = network.num_bytes, network.num_requests, []
    for rank in ranks:
        rank.start()
    for _ in range(2):
        answers = []
        for ours, _ in pipes:
            if not ours.poll(300):
                raise TimeoutError("a rank did not finish its epoch within 300 s")
            answers.append(ours.recv())
        first_s, fetched, ranged = zip(*answers, strict=True)
        counts = network.num_bytes - sent, network.num_requests - requests, sum(fetched), sum(ranged)
        found.append((*counts, statistics.median(first_s), max(first_s)))
        for ours, _ in pipes:
            ours.send("go on")
    for rank in ranks:
        rank.join(60)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("episodes", type=Path)
    parser.add_argument("--copies", type=int, nargs="+", default=[11, 110])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--shard-size", default="8MiB")
    parser.add_argument("--rate", type=float, default=1e9, help="bytes a second")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for copies in args.copies:
        network = Network(args.rate, args.latency)
        with served(args.episodes, copies, args.shard_size, network) as (url, dataset):
            size = int(dataset.shard_bytes.sum() + dataset.index_bytes.sum())
            print(f"{dataset.num_shards} shards, {size / 1e6:,.0f} MB; {args.ranks} ranks x {args.workers} workers")
            for number in range(args.rounds):
                directory = f"/dev/shm/epistream-epoch-{copies}-{number}"
                first, second = run(url, args, network, directory)
                print(
                    f"epoch 0: sent {first[0] / size:.3f} of it in {first[1]} requests (fills {first[2] / size:.3f}, "
                    f"by ranges {first[3] / size:.3f}); epoch 1: {(second[0] - first[0]) / size:.3f}; first batch "
                    f"{first[4]:.2f} s, slowest {first[5]:.2f} s"
                )


if __name__ == "__main__":
    main()
