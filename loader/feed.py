"""Batches for one thread or process: which windows, then their bytes, and what to do when a shard is bad."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FetchError, FormatError, SourceChangedError, SourceError
from epistream.loader.ahead import ShardsAhead
from epistream.loader.epoch import EpochOrder
from epistream.loader.reader import BatchWindows

if TYPE_CHECKING:
    from epistream.loader.job import ReadJob

OnBad = Literal["raise", "skip"]

# What a shard can do wrong; errors of the cache or of the caller are nobody's fault to be skipped.
BAD_SHARD = (FormatError, FetchError, SourceChangedError, SourceError)
# Positions that are looked through at a time for a window to put in a bad one's place.
_LOOK = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replaced:
    """Windows of a bad shard that were replaced in one batch."""

    shard_url: str
    reason: str
    num_windows: int


class Feed(Protocol):
    """Reads the batches of an epoch for one thread or process; keeps shards open until `release`."""

    def begin(self, epoch: int, start: int) -> int:
        """Turn to position `start` of an epoch, and fill the cache ahead of it; returns the number of batches there."""

    def num_windows(self, batch_index: int) -> int:
        """Windows of a batch: the batch size, but for the last under ``remainder="uneven"``."""

    def read(self, batch_index: int, out: Mapping[str, NDArray[Any]]) -> tuple[int, tuple[Replaced, ...]]:
        """Fill the first rows of the arrays of `BatchLayout`; returns the number of windows, and what was replaced."""

    def release(self) -> None:
        """Give up every shard that is held open. Call before any wait."""

    def close(self) -> None:
        """Give up everything, and stop filling ahead."""


class WindowFeed:
    """Reads windows at given positions of one dataset's epochs, and replaces those of bad shards.

    With ``on_bad="skip"`` a shard that cannot be read is left alone for the rest of the epoch, and each of its windows
    is replaced by a repeat of the nearest window of the same lane, marked ``is_repeat``: every rank still gets
    the same number of batches. The next epoch tries the shard again.
    """

    def __init__(self, job: "ReadJob") -> None:
        self._job = job
        self._reader = job.reader()
        self._bad: dict[int, str] = {}
        self._orders: dict[int, EpochOrder] = {}

    def turn(self, epoch: int) -> None:
        """A new pass begins at an epoch: bad shards get another chance, and earlier epochs are done with."""
        self._bad.clear()
        self._orders = {number: order for number, order in self._orders.items() if number >= epoch}

    def read(
        self,
        epoch: int,
        positions: NDArray[np.int64],
        is_repeat: NDArray[np.bool_],
        out: Mapping[str, NDArray[Any]],
    ) -> tuple[Replaced, ...]:
        """Fill the arrays of one batch, or the rows of it that views cover.

        Args:
            epoch: of the dataset.
            positions: in it, (n,).
            is_repeat: (n,).
            out: the arrays of `BatchLayout`; the first n rows are written.

        Returns:
            What had to be replaced.

        Raises:
            FormatError, FetchError, SourceError, SourceChangedError: a bad shard; with ``on_bad="skip"`` only if a lane
                has no other.
            CacheError: see `NodeCache.open`.
        """
        order = self._order(epoch)
        windows = self._job.windows_at(order, epoch, positions, is_repeat)
        if self._job.on_bad == "raise":
            self._reader.read(windows, out)
            return ()
        wanted = windows.shard
        while True:
            is_bad = self._is_bad(windows.shard)
            if is_bad.any():
                taken = positions.copy()
                for row in np.flatnonzero(is_bad).tolist():
                    taken[row] = self._nearest_good(order, int(positions[row]))
                windows = self._job.windows_at(order, epoch, taken, is_repeat | is_bad)
            try:
                self._reader.read(windows, out)
                return self._report(wanted, windows)
            except BAD_SHARD:
                if not self._find_bad(windows):
                    raise  # each shard can be read by itself: something else is wrong

    def release(self) -> None:
        """Give up every shard that is held open."""
        self._reader.release()

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders[epoch] = self._job.plan.epoch(epoch)
        return self._orders[epoch]

    def _find_bad(self, windows: BatchWindows) -> bool:
        """Read the windows of each shard by themselves, into memory that is thrown away; True if one is found bad."""
        scratch = self._job.layout.allocate()
        found = False
        for shard in np.unique(windows.shard).tolist():
            try:
                self._reader.read(_rows(windows, windows.shard == shard), scratch)
            except BAD_SHARD as error:
                self._bad[shard] = f"{type(error).__name__}: {error}"
                logger.warning("Skipped for the rest of the epoch: %s", error)
                found = True
        return found

    def _nearest_good(self, order: EpochOrder, position: int) -> int:
        """The nearest position of the same lane whose shard is good, looking back first."""
        num_lanes, total = self._job.plan.num_lanes, self._job.num_windows
        for block in range(0, total // num_lanes + _LOOK, _LOOK):
            away = np.arange(block + 1, block + _LOOK + 1) * num_lanes
            near = np.stack([position - away, position + away], axis=1).reshape(-1)
            near = near[(near >= 0) & (near < total)]
            good = near[~self._is_bad(order.windows(near)[0])]
            if len(good):
                return int(good[0])
        reasons = "; ".join(self._bad.values())
        raise FormatError(f"lane of position {position}: no shard of it can be read. {reasons}")

    def _is_bad(self, shard: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.isin(shard, list(self._bad))

    def _report(self, wanted: NDArray[np.int64], windows: BatchWindows) -> tuple[Replaced, ...]:
        lost = wanted[wanted != windows.shard]
        urls = self._job.dataset.shard_url
        return tuple(
            Replaced(urls[shard], self._bad[shard], int((lost == shard).sum())) for shard in np.unique(lost).tolist()
        )


class BatchFeed:
    """The batches of one dataset, with the node's cache filled ahead of them."""

    def __init__(self, job: "ReadJob", *, prefetch: bool = False) -> None:
        """Read nothing yet.

        Args:
            job: what to read.
            prefetch: fill the node's cache ahead, from a thread of this process.
        """
        self._job = job
        self._prefetch = prefetch
        self._windows = WindowFeed(job)
        self._ahead: ShardsAhead | None = None
        self._schedule = job.schedule(0, 0)

    def begin(self, epoch: int, start: int) -> int:
        """Turn to position `start` of an epoch, and fill the cache ahead of it; returns the number of batches there."""
        goes_on = (epoch, start) == (self._schedule.epoch + 1, 0)
        self._schedule = self._job.schedule(epoch, start)
        self._windows.turn(epoch)
        if self._ahead is not None and not goes_on:
            self.close()
        if self._ahead is None and self._prefetch and self._job.keeps_shards():
            self._ahead = ShardsAhead(self._job, epoch, start)
        return self._schedule.num_batches

    def num_windows(self, batch_index: int) -> int:
        """Windows of a batch: the batch size, but for the last under ``remainder="uneven"``."""
        return len(self._schedule.positions(batch_index)[0])

    def read(self, batch_index: int, out: Mapping[str, NDArray[Any]]) -> tuple[int, tuple[Replaced, ...]]:
        """Fill the first rows of the arrays of `BatchLayout`; returns the number of windows, and what was replaced."""
        positions, is_repeat = self._schedule.positions(batch_index)
        if self._ahead is not None:
            self._ahead.reach(self._schedule.epoch, int(positions[0]))
        return len(positions), self._windows.read(self._schedule.epoch, positions, is_repeat, out)

    def release(self) -> None:
        """Give up every shard that is held open. Call before any wait."""
        self._windows.release()

    def close(self) -> None:
        """Give up everything, and stop filling ahead."""
        self.release()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


def _rows(windows: BatchWindows, chosen: NDArray[np.bool_]) -> BatchWindows:
    return replace(windows, **{name: values[chosen] for name, values in vars(windows).items()})
