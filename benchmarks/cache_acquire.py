"""What an acquire of a shard that is in the cache costs, beside the system calls that it is made of.

    python benchmarks/cache_acquire.py [--size 134217728] [--rounds 5] [--count 5000]

Prints microseconds, medians of rounds that alternate between the two. The parts are: open, shared flock, fstat,
utime, a second open, mmap, unlock, munmap, close.
"""

import argparse
import fcntl
import mmap
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part


def time_each(action: Callable[[], None], count: int) -> list[float]:
    """Microseconds of each call."""
    times = []
    for _ in range(count):
        begin = time.perf_counter_ns()
        action()
        times.append((time.perf_counter_ns() - begin) / 1000)
    return times


def bare(path: str) -> Callable[[], None]:
    """The system calls of a hit, and nothing else."""

    def call() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        size = os.fstat(fd).st_size
        os.utime(fd)
        second = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        mapping = mmap.mmap(second, size, prot=mmap.PROT_READ)
        os.close(second)
        fcntl.flock(fd, fcntl.LOCK_UN)
        mapping.close()
        os.close(fd)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128 << 20, help="bytes of the shard")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=5000, help="acquires a round")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        shard = Path(source) / "shard.tar"
        with shard.open("wb") as file:
            file.truncate(given.size)
        entry = Entry((Part(str(shard), given.size, version="benchmark"),))
        with NodeCache(CacheOptions(mode="shm", directory=f"{place}/cache", budget_bytes=2 * given.size)) as cache:
            begin = time.perf_counter()
            cache.open(entry).close()
            fill_s = time.perf_counter() - begin
            (file_in_cache,) = Path(f"{place}/cache").glob("*.shard")
            hits, calls = [], []
            for _ in range(given.rounds):
                hits.append(statistics.median(time_each(lambda: cache.open(entry).close(), given.count)))
                calls.append(statistics.median(time_each(bare(str(file_in_cache)), given.count)))
    print(f"python {platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"fill of {given.size / (1 << 20):.0f} MiB from a warm page cache: {given.size / fill_s / 1e9:.2f} GB/s")
    print(f"hit: open and close      {statistics.median(hits):6.1f} us  (rounds {min(hits):.1f} to {max(hits):.1f})")
    print(f"its bare system calls    {statistics.median(calls):6.1f} us  (rounds {min(calls):.1f} to {max(calls):.1f})")


if __name__ == "__main__":
    main()
