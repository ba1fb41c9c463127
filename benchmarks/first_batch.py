"""Time to the first batch from a cold cache, over a network of given speed, with and without ranged reads.

    python benchmarks/first_batch.py FOLDER_OF_EPISODES [--copies 24] [--rate 100e6] [--latency 0.02]

Packs copies of the episodes into shards of 16 MiB, serves them on loopback by a server that sends at most `rate`
bytes a second over all connections and answers each request after `latency` seconds, and streams from it.
"""

import argparse
import statistics
import time
from pathlib import Path

from served import Network, served

import epistream as es
from epistream.loader import window_feed


def first_batch(url: str, batch_size: int, directory: Path, *, ranged: bool) -> tuple[float, float]:
    """Seconds from ``iter`` to the first batch, and to the tenth, with a cache that is empty."""
    window_feed._MOST_COLD_BATCHES = 16 if ranged else 0
    stream = es.EpisodeStream(
        url,
        batch_size=batch_size,
        window=es.Window(action=range(100)),
        cache=es.CacheOptions(directory=str(directory)),
    )
    with es.StreamingLoader(stream, num_workers=2) as loader:
        began = time.perf_counter()
        batches = iter(loader)
        next(batches)
        first_s = time.perf_counter() - began
        for _ in range(9):
            next(batches)
        return first_s, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("episodes", type=Path)
    parser.add_argument("--copies", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with served(args.episodes, args.copies, "16MiB", Network(args.rate, args.latency)) as (url, dataset):
        for number in range(args.rounds):
            for ranged, found in times.items():
                directory = Path(f"/dev/shm/epistream-first-batch-{number}-{ranged}")
                found.append(first_batch(url, args.batch_size, directory, ranged=ranged))
    size = dataset.shard_bytes.sum() / 1e6
    print(f"{dataset.num_shards} shards, {size:,.0f} MB; {args.rate / 1e6:g} MB/s, {args.latency * 1000:g} ms;")
    print(f"batch {args.batch_size}, 2 cameras 480x640; medians of {args.rounds} rounds (first batch, ten batches)")
    for ranged, name in ((True, "ranged while shards stream in"), (False, "waiting for whole shards")):
        first, tenth = (statistics.median(column) for column in zip(*times[ranged], strict=True))
        print(f"{name:32s} {first:6.2f} s {tenth:6.2f} s")


if __name__ == "__main__":
    main()
