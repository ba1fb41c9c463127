"""Reads windows at given positions of a dataset's epochs; knows what to do when a shard is bad, or not there yet."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FetchError, FormatError, SourceChangedError, SourceError
from epistream.loader.order.epoch import EpochOrder
from epistream.loader.reading.arrivals import Arrivals
from epistream.loader.reading.job import ReadJob
from epistream.loader.reading.reader import BatchWindows, EpisodeReader

# What a shard can do wrong; errors of the cache or of the caller are nobody's fault to be skipped.
BAD_SHARD = (FormatError, FetchError, SourceChangedError, SourceError)
# A worker that still finds shards missing after so many batches waits for their fills: many small requests bring less
# than a few large ones, and where the cache has no room, or keeps on a disk too, they bring it a second time.
_MOST_COLD_BATCHES = 4
# Positions that are looked through at a time for a window to put in a bad one's place.
_LOOK = 64
# Reasons that one message gives: of a data set without videos every episode has its own.
_MOST_REASONS = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replaced:
    """Windows of a bad shard that were replaced in one batch."""

    shard_url: str
    reason: str
    num_windows: int


class PartFeed:
    """Reads windows at given positions of one dataset's epochs, and replaces those of bad shards.

    With ``on_bad="skip"`` a shard that cannot be read is left alone for the rest of the epoch, and each of its windows
    is replaced by a repeat of the nearest window of the same lane, marked ``is_repeat``: every rank still gets
    the same number of batches. The next epoch tries the shard again.

    Args:
        job: what to read.
        number: which of its datasets.
        before_wait: gives up what the caller holds for the other datasets too, before this one waits for anything.
        arrivals: of shards that are read ahead.
    """

    def __init__(self, job: ReadJob, number: int, before_wait: Callable[[], None] | None, arrivals: Arrivals) -> None:
        self._part = part = job.parts[number]
        self._batch_size = job.batch_size
        options = job.reader_options[number]
        self._reader = EpisodeReader(part.dataset, part.features, part.window, job.cache, options, before_wait)
        self._reader.wait_for = partial(arrivals.wait_for, part.dataset)
        self._bad: dict[int, str] = {}
        self._orders: dict[int, EpochOrder] = {}
        self._num_cold_batches = 0

    def start_cold(self) -> None:
        """Read by ranges what is not in the cache, until the cache has caught up; somebody fills it meanwhile."""
        self._num_cold_batches = _MOST_COLD_BATCHES

    def begin(self, epoch: int) -> None:
        """A pass begins at an epoch: bad shards get another chance, and earlier epochs are done with."""
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
            FormatError, FetchError, SourceError, SourceChangedError: a bad shard; with ``on_bad="skip"`` only if there
                is no other.
            CacheError: see `NodeCache.open`.
        """
        order = self._order(epoch)
        windows = self._part.windows_at(order, epoch, positions, is_repeat)
        if self._num_cold_batches > 0 and self._read_cold(windows, out):
            return ()
        if self._part.on_bad == "raise":
            self._reader.read(windows, out)
            return ()
        wanted = windows.shard
        while True:
            # Of those that were wanted: what took the place of one may be bad itself, and is not kept then.
            is_bad = self._is_bad(wanted)
            if is_bad.any():
                taken = positions.copy()
                for row in np.flatnonzero(is_bad).tolist():
                    taken[row] = self._nearest_good(order, int(positions[row]))
                windows = self._part.windows_at(order, epoch, taken, is_repeat | is_bad)
            try:
                self._reader.read(windows, out)
                return self._report(wanted, windows)
            except BAD_SHARD:
                if not self._find_bad(windows):
                    raise  # each shard can be read by itself: something else is wrong

    def release(self) -> None:
        """Give up every shard that the cache leases."""
        self._reader.release()

    def close(self) -> None:
        """Give up everything that is open."""
        self._reader.close()

    def _read_cold(self, windows: BatchWindows, out: Mapping[str, NDArray[Any]]) -> bool:
        """Read without waiting for fills; False if that failed, and the ordinary way must do."""
        try:
            num_cold = self._reader.read(windows, out, wait=False)
        except BAD_SHARD as error:
            logger.info("No ranged reads: %s", error)
            self._num_cold_batches = 0
            return False
        num_batches = max(1, len(windows.step) // self._batch_size)
        self._num_cold_batches = self._num_cold_batches - num_batches if num_cold else 0
        return True

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders[epoch] = self._part.plan.epoch(epoch)
        return self._orders[epoch]

    def _find_bad(self, windows: BatchWindows) -> bool:
        """Read the windows of each shard by themselves, into memory that is thrown away; True if one is found bad."""
        scratch = self._part.layout(len(windows.step)).allocate()
        found = False
        for shard in np.unique(windows.shard).tolist():
            try:
                is_its = windows.shard == shard
                rows = replace(windows, **{name: values[is_its] for name, values in vars(windows).items()})
                self._reader.read(rows, scratch)
            except BAD_SHARD as error:
                self._bad[shard] = f"{type(error).__name__}: {error}"
                logger.warning("Skipped for the rest of the epoch: %s", error)
                found = True
        return found

    def _nearest_good(self, order: EpochOrder, position: int) -> int:
        """The nearest position of the same lane whose shard is good, looking back first; of any lane if it has none."""
        num_lanes, total = self._part.plan.num_lanes, self._part.plan.num_windows
        for stride in (num_lanes, 1):
            for block in range(0, total // stride + _LOOK, _LOOK):
                away = np.arange(block + 1, block + _LOOK + 1) * stride
                near = np.stack([position - away, position + away], axis=1).reshape(-1)
                near = near[(near >= 0) & (near < total)]
                good = near[~self._is_bad(order.windows(near)[0])]
                if len(good):
                    return int(good[0])
        reasons = list(dict.fromkeys(self._bad.values()))
        more = f" And {len(reasons) - _MOST_REASONS:,} more." if len(reasons) > _MOST_REASONS else ""
        told = "; ".join(reasons[:_MOST_REASONS])
        raise FormatError(f"{self._part.dataset.url}: no shard of it can be read. {told}{more}")

    def _is_bad(self, shard: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.isin(shard, list(self._bad))

    def _report(self, wanted: NDArray[np.int64], windows: BatchWindows) -> tuple[Replaced, ...]:
        lost = wanted[wanted != windows.shard]
        name = self._part.dataset.shard_label
        return tuple(
            Replaced(name(shard), self._bad[shard], int((lost == shard).sum())) for shard in np.unique(lost).tolist()
        )
