"""Lanes: the permuted shards of an epoch cut into runs of nearly equal window counts, and the pieces of each run."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pieces:
    """The pieces of one lane in the order of the permuted shards; a piece is a range of one shard's windows.

    Attributes:
        shard: (m,) the shard of each piece.
        first: (m,) the piece's first window within its shard.
        count: (m,) its windows, all at least 1.
    """

    shard: NDArray[np.int64]
    first: NDArray[np.int64]
    count: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard)


class LaneCounts(NamedTuple):
    """Of each lane, (lanes,): its pieces, the sum of some number of its shards, and of its pieces' windows squared."""

    pieces: NDArray[np.int64]
    values: NDArray[np.int64]
    squares: NDArray[np.float64]


class Lanes:
    """`num_lanes` runs over the windows of the shards in a given order; lengths differ by at most one, longer first.

    A shard at a cut belongs to two or more lanes. Memory is O(shards); nothing depends on the number of windows.

    Args:
        shard_order: (S',) shards in the order they are laid out; shards without windows may be among them.
        per_shard: (S,) windows of each shard.
        num_lanes: at most the number of windows.
    """

    def __init__(self, shard_order: NDArray[np.int64], per_shard: NDArray[np.int64], num_lanes: int) -> None:
        self._shard = shard_order[per_shard[shard_order] > 0]
        self._stop = np.cumsum(per_shard[self._shard])
        self._count = per_shard[self._shard]
        self.num_lanes = num_lanes
        self.num_windows = int(self._stop[-1])

    def bounds(self, lane: int) -> tuple[int, int]:
        """The lane's windows [start, stop) in the layout."""
        short, longer = divmod(self.num_windows, self.num_lanes)
        start = lane * short + min(lane, longer)
        return start, start + short + (lane < longer)

    def length(self, lane: int) -> int:
        """Windows of the lane."""
        start, stop = self.bounds(lane)
        return stop - start

    def num_pieces(self, lane: int) -> int:
        """Pieces of the lane."""
        low, high = self._rows(lane)
        return high - low

    def counts(self, shard_values: NDArray[np.int64]) -> "LaneCounts":
        """What every lane holds, in one go: O(shards).

        Args:
            shard_values: (S,) for example episodes of each shard; a cut divides them as it divides the windows.
        """
        short, longer = divmod(self.num_windows, self.num_lanes)
        lane = np.arange(self.num_lanes + 1)
        bounds = lane * short + np.minimum(lane, longer)
        first = np.searchsorted(self._stop, bounds[:-1], side="right")
        last = np.searchsorted(self._stop, bounds[1:], side="left")
        row = np.append(first, last[-1])
        values, begins = shard_values[self._shard], self._stop - self._count
        inside = values[row] * (bounds - begins[row]) // self._count[row]
        squares = np.cumsum(self._count.astype(np.float64) ** 2)
        ends = (self._stop[first] - bounds[:-1]) ** 2.0 + (bounds[1:] - begins[last]) ** 2.0
        several = squares[np.maximum(last - 1, 0)] - squares[first] + ends
        return LaneCounts(
            pieces=last - first + 1,
            values=np.diff((np.cumsum(values) - values)[row] + inside),
            squares=np.where(first == last, np.diff(bounds) ** 2.0, several),
        )

    def pieces(self, lane: int) -> Pieces:
        """The lane's pieces."""
        start, stop = self.bounds(lane)
        low, high = self._rows(lane)
        stops, counts = self._stop[low:high], self._count[low:high]
        begins = stops - counts
        first = np.maximum(start - begins, 0)
        last = np.minimum(stop, stops) - begins
        return Pieces(self._shard[low:high], first, last - first)

    def _rows(self, lane: int) -> tuple[int, int]:
        start, stop = self.bounds(lane)
        low = int(np.searchsorted(self._stop, start, side="right"))
        return low, int(np.searchsorted(self._stop, stop, side="left")) + 1
