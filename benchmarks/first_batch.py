"""Time to the first batch from a cold cache, over a network of given speed, with and without ranged reads.

    python benchmarks/first_batch.py FOLDER_OF_EPISODES [--copies 24] [--rate 100e6] [--latency 0.02]

Packs copies of the episodes into shards of 16 MiB, serves them on loopback by a server that sends at most `rate`
bytes a second over all connections and answers each request after `latency` seconds, and streams from it: each time
in a program of its own, as a user starts one. The server runs in this process, on the same processors; its processor
time is printed beside.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from served import Network, served

FIGURES = ("import", "open", "first", "tenth", "whole", "server")


def program(url: str, batch_size: int, directory: str, most_cold: int) -> None:
    """What a user's program does; tells the times of its steps, on the machine's clock."""
    import epistream as es
    from epistream.loader.reading import bad_shards

    bad_shards._MOST_COLD_BATCHES = most_cold
    es.StreamingLoader  # noqa: B018 - loads torch, as a training program has done anyway
    times = [time.monotonic()]
    stream = es.EpisodeStream(
        url, batch_size=batch_size, window=es.Window(action=range(100)), cache=es.CacheOptions(directory=directory)
    )
    with es.StreamingLoader(stream, num_workers=2) as loader:
        times.append(time.monotonic())
        batches = iter(loader)
        for number in range(10):
            next(batches)
            if number in (0, 9):
                times.append(time.monotonic())
        ranged = loader.stats().cache.bytes_ranged
    print(json.dumps([*times, ranged]))


def run(url: str, batch_size: int, directory: str, most_cold: int) -> tuple[dict[str, float], int]:
    """The figures of one program in seconds, and the bytes that its workers read by ranges for ten batches."""
    server, begin = psutil.Process(), time.monotonic()
    busy = sum(server.cpu_times()[:2])
    command = [sys.executable, __file__, "--program", url, str(batch_size), directory, str(most_cold)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    imported, opened, first, tenth, ranged = json.loads(done.stdout)
    seconds = (imported - begin, opened - imported, first - opened, tenth - opened, first - begin)
    return dict(zip(FIGURES, (*seconds, sum(server.cpu_times()[:2]) - busy), strict=True)), ranged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("episodes", type=Path)
    parser.add_argument("--copies", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    times: dict[int, list[tuple[dict[str, float], int]]] = {4: [], 0: []}
    with served(args.episodes, args.copies, "16MiB", Network(args.rate, args.latency)) as (url, dataset):
        for number in range(args.rounds):
            for most_cold, found in times.items():
                found.append(run(url, args.batch_size, f"/dev/shm/epistream-first-{number}-{most_cold}", most_cold))
    size = dataset.shard_bytes.sum() / 1e6
    print(f"{dataset.num_shards} shards, {size:,.0f} MB; {args.rate / 1e6:g} MB/s, {args.latency * 1000:g} ms;")
    print(f"batch {args.batch_size}, 2 cameras 480x640; seconds, medians of {args.rounds} rounds, by turns")
    print(f"{'':28s}" + "".join(f"{name:>8s}" for name in FIGURES))
    for most_cold, name in ((4, "by ranges at first"), (0, "waiting for whole shards")):
        rounds, ranged = zip(*times[most_cold], strict=True)
        medians = (statistics.median(each[name] for each in rounds) for name in FIGURES)
        print(f"{name:28s}" + "".join(f"{value:8.2f}" for value in medians) + f"  {max(ranged) / 1e6:.1f} MB by ranges")
    print("import: of epistream and torch; open: EpisodeStream(url); first, tenth: from iter(loader) to that batch;")
    print("whole: from the program's start to the first batch; server: processor time of the server, same machine")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--program"]:
        program(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        main()
