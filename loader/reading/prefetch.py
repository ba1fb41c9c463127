"""Tells the cache which shards come next, epoch after epoch, and which are passed."""

from collections.abc import Iterator
from itertools import count

import xxhash

from epistream.cache.source.entry import Entry
from epistream.loader.reading.job import ReadJob


class ShardsAhead:
    """Keeps a node's prefetcher for one plan in step with one reader. Every process has one; the cache lets one work.

    It begins at a position of an epoch and goes on into the epochs after it, as a training loop does; whoever jumps
    elsewhere makes a new one. Only in the process that reads: it starts a thread.
    """

    def __init__(self, job: ReadJob, epoch: int, position: int) -> None:
        self._job = job
        self._at = epoch, position
        self._passing = self._uses()
        self._oldest = next(self._passing)
        self._num_passed = 0
        # Nodes that share a directory (as in tests of several) have lanes of their own, and so a name of their own.
        name = xxhash.xxh3_64_hexdigest(repr((job.world.group, sorted(job.identity.items()))).encode())
        # What is drawn from now, and as much again.
        entries = (entry for _, _, entry in self._uses())
        self._prefetcher = job.cache.prefetcher(name, entries, 2 * job.num_open_shards)
        self._prefetcher.start()

    def reach(self, epoch: int, position: int) -> None:
        """The reader has come to a position; shards whose use ended before it may be evicted."""
        while self._oldest[:2] <= (epoch, position):
            self._num_passed += 1
            self._oldest = next(self._passing)
        self._prefetcher.advance(self._num_passed)

    def close(self) -> None:
        """End the prefetcher's thread, after the fill that it is in."""
        self._prefetcher.close()

    def _uses(self) -> Iterator[tuple[int, int, Entry]]:
        """Epoch and position at which each shard is passed, and its entry, in the order of need, for ever."""
        first_epoch, position = self._at
        for epoch in count(first_epoch):
            # Orders of its own each time: the prefetcher's thread and the reader go through them at the same time.
            for stop, entry in self._job.uses_from(epoch, position):
                yield epoch, stop, entry
            position = 0
