"""Batches for one thread or process: the schedule says which windows, and the cache is filled ahead of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.schedule import Schedule
from epistream.loader.reading.bad_shards import Replaced, WindowFeed
from epistream.loader.reading.prefetch import ShardsAhead, Uses

if TYPE_CHECKING:
    from epistream.loader.reading.job import ReadJob


class FedJob(Uses, Protocol):
    """What a feed needs of a job."""

    def schedule(self, epoch: int, start: int) -> Schedule:
        """Which positions of an epoch this rank takes, from position `start` on."""

    def keeps_shards(self) -> bool:
        """Whether shards go through the node's cache, rather than being read where they lie."""


class Feed(ABC):
    """Reads the batches of an epoch, of one dataset or of a mixture; keeps shards open until `release`.

    The first batches of a run are read by ranges where the cache is cold, and filling begins after the first one.
    """

    def __init__(self, job: FedJob, parts: Sequence[WindowFeed], *, prefetch: bool) -> None:
        """Read nothing yet.

        Args:
            job: what to read.
            parts: one per dataset.
            prefetch: fill the node's cache ahead, from a thread of this process.
        """
        self._parts = parts
        self._fed_job = job
        self._prefetch = prefetch
        self._ahead: ShardsAhead | None = None
        self._is_starting = False
        self._schedule = job.schedule(0, 0)

    def begin(self, epoch: int, start: int) -> int:
        """Turn to position `start` of an epoch, and fill the cache ahead of it; returns the number of batches there."""
        goes_on = (epoch, start) == (self._schedule.epoch + 1, 0)
        self._schedule = self._fed_job.schedule(epoch, start)
        self._turn(epoch, start)
        if not goes_on:
            self.close()
        self._is_starting = self._ahead is None and self._prefetch and self._fed_job.keeps_shards()
        if self._is_starting:
            for part in self._parts:
                part.start_cold()
        return self._schedule.num_batches

    def num_windows(self, batch_index: int) -> int:
        """Windows of a batch: the batch size, but for the last under ``remainder="uneven"``."""
        return len(self._schedule.positions(batch_index)[0])

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
        if self._ahead is not None:
            self._ahead.reach(epoch, first)
        replaced = self._read(positions, is_repeat, out)
        if self._is_starting:
            # Only now, so that filling does not take the network away from the first batch.
            self._ahead = ShardsAhead(self._fed_job, epoch, first)
            self._is_starting = False
        return len(positions), replaced

    def release(self) -> None:
        """Give up every shard that the cache leases. Call before any wait."""
        for part in self._parts:
            part.release()

    def close(self) -> None:
        """Give up everything, and stop filling ahead."""
        for part in self._parts:
            part.close()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    @abstractmethod
    def _turn(self, epoch: int, start: int) -> None:
        """A pass begins there."""

    @abstractmethod
    def _read(
        self, positions: NDArray[np.int64], is_repeat: NDArray[np.bool_], out: Mapping[str, NDArray[Any]]
    ) -> tuple[Replaced, ...]:
        """Fill the first rows with the windows at positions of the schedule's epoch, those of whole batches."""


class BatchFeed(Feed):
    """The batches of one dataset."""

    def __init__(self, job: "ReadJob", *, prefetch: bool = False) -> None:
        self._windows = WindowFeed(job)
        super().__init__(job, [self._windows], prefetch=prefetch)

    def _turn(self, epoch: int, start: int) -> None:
        self._windows.turn(epoch)

    def _read(
        self, positions: NDArray[np.int64], is_repeat: NDArray[np.bool_], out: Mapping[str, NDArray[Any]]
    ) -> tuple[Replaced, ...]:
        return self._windows.read(self._schedule.epoch, positions, is_repeat, out)
