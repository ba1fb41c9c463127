"""Tells the cache which shards come next, epoch after epoch, and which are passed."""

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

import xxhash

from epistream.cache.entry import Entry
from epistream.loader.reader import shard_entry
from epistream.loader.schedule import lanes_of

if TYPE_CHECKING:
    from epistream.loader.job import ReadJob
    from epistream.loader.world import World


class ShardsAhead:
    """Keeps a node's prefetcher for one plan in step with one reader. Every process has one; the cache lets one work.

    It begins at a position and goes on into the epochs after it, as a training loop does; whoever jumps elsewhere makes
    a new one.
    """

    def __init__(self, job: "ReadJob", world: "World", epoch: int, position: int) -> None:
        """Begin to fill ahead of `position` of `epoch`. Only in the process that reads: it starts a thread.

        Args:
            job: whose shards.
            world: which says what lanes this node reads.
            epoch: of the job's dataset.
            position: in that epoch.
        """
        self._job = job
        self._at = epoch, position
        self._lanes = lanes_of(world, job.plan.num_lanes)
        self._passing = self._uses()
        self._oldest = next(self._passing)
        self._num_passed = 0
        # What the lanes draw from now, and the next one of each.
        ahead = (job.plan.parts + 1) * len(self._lanes)
        name = xxhash.xxh3_64_hexdigest(repr(sorted(job.identity.items())).encode())
        self._prefetcher = job.cache.prefetcher(f"{name}-{self._lanes.start}", self._entries(), ahead)
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

    def _uses(self) -> Iterator[tuple[int, int, int]]:
        """Epoch, the position at which it is passed, and the shard, in the order of need, for ever."""
        first_epoch, position = self._at
        for epoch in count(first_epoch):
            # An order of its own: the prefetcher's thread and the reader go through it at the same time.
            order = self._job.plan.epoch(epoch)
            for use in order.uses_from(position, self._lanes):
                yield epoch, use.stop, use.shard
            position = 0

    def _entries(self) -> Iterator[Entry]:
        return (shard_entry(self._job.dataset, shard) for _, _, shard in self._uses())
