"""Tells the cache which shards come next, epoch after epoch, and which are passed."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import xxhash

from epistream.cache.prefetch import Prefetcher
from epistream.cache.read_ahead import ReadAhead
from epistream.cache.source.entry import Entry
from epistream.loader.reading.job import ReadJob


class ShardsAhead:
    """Keeps a node's prefetcher for one plan in step with one reader. Every process has one; the cache lets one work.

    What is read in place from a disk has a reader ahead in the same way. It begins at a position of an epoch and goes
    on into the epochs after it, as a training loop does; whoever jumps elsewhere makes a new one. Only in the process
    that reads: it has threads, which begin when told.

    Args:
        job: what is read.
        epoch: where it begins.
        position: of that epoch.
        board: the file where those who read ahead tell of it (`board_of`); None where nothing is on a disk.
    """

    def __init__(self, job: ReadJob, epoch: int, position: int, board: Path | None = None) -> None:
        self._job = job
        self._at = epoch, position
        self._passing = self._uses()
        self._oldest: tuple[int, int, Entry] | None = None
        self._num_passed = 0
        # What is drawn from now, and as much again.
        ahead = 2 * job.num_open_shards
        self._prefetchers: list[Prefetcher] = []
        self._readers: list[ReadAhead] = []
        if board is None or job.keeps_shards():
            # Nodes that share a directory (as in tests of several) have lanes of their own, so a name of their own.
            name = xxhash.xxh3_64_hexdigest(repr((job.world.group, sorted(job.identity.items()))).encode())
            entries = (entry for _, _, entry in self._uses())
            self._prefetchers.append(job.cache.prefetcher(name, entries, ahead))
        if board is not None:
            entries = (entry for _, _, entry in self._uses())
            self._readers.append(job.cache.read_ahead(board, entries, ahead))

    def start_reading(self) -> None:
        """Begin to read ahead; after fork, if the process forks at all."""
        for reader in self._readers:
            reader.start()

    def start_filling(self) -> None:
        """Begin to fill the cache; likewise."""
        for prefetcher in self._prefetchers:
            prefetcher.start()

    def reach(self, epoch: int, position: int) -> None:
        """The reader has come to a position; shards whose use ended before it may be evicted."""
        self._oldest = self._oldest or next(self._passing)
        while self._oldest[:2] <= (epoch, position):
            self._num_passed += 1
            self._oldest = next(self._passing)
        for prefetcher in self._prefetchers:
            prefetcher.advance(self._num_passed)
        for reader in self._readers:
            reader.advance(self._num_passed)

    def close(self) -> None:
        """End the threads, after the fill that they are in."""
        for prefetcher in self._prefetchers:
            prefetcher.close()
        for reader in self._readers:
            reader.close()

    def _uses(self) -> Iterator[tuple[int, int, Entry]]:
        """Epoch and position at which each shard is passed, and its entry, in the order of need, for ever."""
        first_epoch, position = self._at
        for epoch in count(first_epoch):
            # Orders of its own each time: the threads and the reader go through them at the same time.
            for stop, entry in self._job.uses_from(epoch, position):
                yield epoch, stop, entry
            position = 0
