"""Batches for one thread or process: the schedule says which windows, and the cache is filled ahead of them."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.loader.reading.arrivals import Arrivals
from epistream.loader.reading.bad_shards import PartFeed, Replaced
from epistream.loader.reading.job import DATASET_INDEX, ReadJob
from epistream.loader.reading.prefetch import ShardsAhead


class Feed:
    """Reads the batches of an epoch, then of others; keeps shards open until `release`.

    The first batches of a run are read by ranges where the cache is cold, and filling begins after the first one. So
    does reading ahead on a slow disk, after the first batch of each rank; the others wait for it.
    The rows of a mixture's batch are grouped by dataset, in the order of the parts.

    Args:
        job: what to read.
        prefetch: fill the node's cache, or read ahead from a slow disk, in a thread of this process.
    """

    def __init__(self, job: ReadJob, *, prefetch: bool = False) -> None:
        self._job = job
        self._order = job.order
        # No dataset is held while another one waits; one that is alone holds nothing but its own.
        before_wait = self._give_up if len(job.parts) > 1 else None
        self._arrivals = Arrivals()
        parts = range(len(job.parts))
        self._parts = [PartFeed(job, number, before_wait, self._arrivals) for number in parts]
        # Parts that were read from since `release`: of many, a batch draws from few.
        self._in_use: set[int] = set()
        self._prefetch = prefetch
        self._ahead: ShardsAhead | None = None
        self._is_starting = False
        self._schedule = job.schedule(0, 0)

    def begin(self, epoch: int, start: int) -> int:
        """Turn to position `start` of an epoch, and fill the cache ahead of it; returns the number of batches there."""
        goes_on = (epoch, start) == (self._schedule.epoch + 1, 0)
        self._schedule = self._job.schedule(epoch, start)
        for part, own_epoch in zip(self._parts, self._order.own_epochs(epoch, start), strict=True):
            part.begin(own_epoch)
        if not goes_on:
            self.close()
        self._arrivals.begin_epoch()
        if self._ahead is None and self._prefetch:
            self._begin_ahead(epoch, start)
        return self._schedule.num_batches

    def read(self, batches: range, out: Mapping[str, NDArray[Any]]) -> tuple[int, tuple[Replaced, ...]]:
        """Read consecutive batches, one after the other.

        Args:
            batches: at least one.
            out: the arrays of a `BatchLayout` with room for all of them; the first rows are written.

        Returns:
            The number of windows, and what was replaced.
        """
        positions, is_repeat = self._schedule.positions_of(batches)
        epoch, first = self._schedule.epoch, int(positions[0])
        if self._ahead is not None and not self._is_starting:
            # Not before the first batch: entries of a data set over a network take requests, those passed as well.
            self._ahead.reach(epoch, first)
        self._arrivals.begin_batch(is_first=self._is_starting and batches[0] == 0)
        try:
            replaced = self._read_portions(epoch, positions, is_repeat, out)
        finally:
            self._arrivals.end_batch()
        if self._is_starting:
            # Only now, so that filling does not take the network away from the first batch.
            self._is_starting = False
            if self._ahead is not None:
                self._ahead.start_filling()
        return len(positions), replaced

    def release(self) -> None:
        """Give up every shard that the cache leases. Call before any wait."""
        self._give_up()
        self._in_use.clear()

    def _give_up(self) -> None:
        """As `release`, also while a part reads, which may open more."""
        for number in self._in_use:
            self._parts[number].release()

    def rest(self) -> None:
        """Give up files and mappings too, before a long wait; the next read opens them again."""
        for part in self._parts:
            part.close()

    def close(self) -> None:
        """Give up everything, and stop filling ahead."""
        self.rest()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self._arrivals.close()

    def _read_portions(
        self,
        epoch: int,
        positions: NDArray[np.int64],
        is_repeat: NDArray[np.bool_],
        out: Mapping[str, NDArray[Any]],
    ) -> tuple[Replaced, ...]:
        replaced: tuple[Replaced, ...] = ()
        row = 0
        for dataset, own_epoch, own, rows in self._order.portions(epoch, positions, self._schedule.batch_size):
            stop = row + len(own)
            views = out if len(own) == len(positions) else {name: view[row:stop] for name, view in out.items()}
            self._in_use.add(dataset)
            replaced += self._parts[dataset].read(own_epoch, own, is_repeat[rows], views)
            if DATASET_INDEX in views:
                views[DATASET_INDEX][: len(own)] = dataset
            row = stop
        return replaced

    def _begin_ahead(self, epoch: int, start: int) -> None:
        keeps, board = self._job.keeps_shards(), self._job.board()
        if not keeps and board is None:
            return
        self._ahead = ShardsAhead(self._job, epoch, start, board)
        self._is_starting = True
        if keeps:
            for part in self._parts:
                part.start_cold()
        if board is not None:
            with suppress(OSError):  # whoever reads the shard finds out
                self._arrivals.follow(board)
        self._ahead.start_reading()
