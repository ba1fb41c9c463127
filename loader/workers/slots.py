"""How batches lie in the slots of a ring: large ones have a slot each, small ones share one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.working_set import open_bytes
from epistream.loader.reading.batch_layout import BatchLayout
from epistream.loader.reading.job import ReadJob

# Reading and handing over a batch costs some thousand calls of Python whatever is in it: several that are read as one
# cost little more than one. Threads gain most, because such calls hold the interpreter's lock. Twice this: no gain.
_SHARED_BYTES = 16 << 20
_MOST_TOGETHER = 32
# In short epochs all workers shall have something to do nevertheless.
_LEAST_SHARE = 4


@dataclass(frozen=True)
class Slots:
    """The slots of one loader. Picklable.

    Attributes:
        layout: of a slot, which is that of a batch with as many rows as all its batches have.
        batch_size: rows of each batch.
        batches_per_slot: consecutive batches of a worker that share a slot.
    """

    layout: BatchLayout
    batch_size: int
    batches_per_slot: int

    @classmethod
    def plan(cls, job: ReadJob, num_workers: int, slots_per_worker: int) -> "Slots":
        """The slots for batches of a job."""
        together = most_together(job.layout.num_bytes, job.schedule(0, 0).num_batches, num_workers)
        while together > 1 and not _budget_holds(job, together * num_workers * slots_per_worker):
            together //= 2
        return cls(job.layout.times(together), job.batch_size, together)

    def groups(self, num_batches: int, num_workers: int) -> Iterator[range]:
        """The batches of each slot of an epoch, in order; slot n is filled by worker ``n % num_workers``.

        The first slot of each worker has one batch only, so that the first batches are there as soon as can be.
        """
        first = number = 0
        while first < num_batches:
            stop = min(first + (1 if number < num_workers else self.batches_per_slot), num_batches)
            yield range(first, stop)
            first, number = stop, number + 1

    def batches(self, block: NDArray[np.uint8], num_windows: int) -> Iterator[dict[str, NDArray[Any]]]:
        """The arrays of each batch in a slot that holds `num_windows`; views of `block`."""
        arrays = self.layout.views(block)
        for first in range(0, num_windows, self.batch_size):
            rows = slice(first, min(first + self.batch_size, num_windows))
            yield {name: array[rows] for name, array in arrays.items()}


def most_together(batch_bytes: int, num_batches: int, num_workers: int) -> int:
    """Batches that share a slot, where the cache's budget allows it.

    Args:
        batch_bytes: of each.
        num_batches: of an epoch, on each rank.
        num_workers: of each rank.
    """
    return max(1, min(_SHARED_BYTES // batch_bytes, num_batches // (_LEAST_SHARE * num_workers), _MOST_TOGETHER))


def _budget_holds(job: ReadJob, batches_in_flight: int) -> bool:
    """Whether the node's cache will hold the shards that so many batches of each rank draw from.

    If not, workers that are far apart would evict each other's shards: they are fetched again and again then.
    """
    job = replace(job, batches_at_once=batches_in_flight)
    budget = job.budget_ahead(batches_in_flight * job.layout.num_bytes * job.world.all_processes.local_size)
    windows = batches_in_flight * job.batch_size * job.world.size
    return budget is None or sum(open_bytes(plan, windows) for plan in job.plans) <= budget
