"""The order of one epoch: which window of which shard stands at a position, computed where it is asked for."""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.loader.order.blocks import BlockOrder, BlockSizes
from epistream.loader.order.lanes import Lanes, Pieces
from epistream.loader.order.segments import LaneOrder, Segment, ShardUse
from epistream.loader.order.spread import Episodes
from epistream.lru import SharedLru

# Of windows that later segments will need, over all lanes that a process reads; with less room pieces are permuted more
# often: K = 2,048 shards of 8,000 windows in 8 lanes are dealt 196 segments at a time, so 2.3 times each.
_DEALT_BYTES = 24 * 2**20
# Fewer positions than so many a lane are looked up one by one: numpy's calls for each lane cost more. A batch of a
# mixture has but one or two of each lane and dataset.
_FEW = 8


class EpochOrder(ABC):
    """The windows of an epoch by position; positions [0, num_windows), each window at one of them."""

    num_windows: int
    num_lanes: int

    def windows(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The windows at `positions`.

        Args:
            positions: (n,) in [0, num_windows), in any order; neighbours are cheapest.

        Returns:
            shard (n,) and the window's number within it (n,), int64, in the order of `positions`.

        Raises:
            OptionError: if a position lies outside the epoch.
        """
        return self._windows(self._checked(positions))

    def ends_block(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the windows at `positions` are the last that the order takes of their block: (n,).

        False everywhere where the order is not by blocks. Cheap after `windows` of the same positions.

        Raises:
            OptionError: if a position lies outside the epoch.
        """
        return np.zeros(len(self._checked(positions)), np.bool_)

    def _checked(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        positions = np.asarray(positions, np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < self.num_windows:
            raise OptionError(f"position: {positions.min()} to {positions.max()}, wanted 0 to {self.num_windows - 1}.")
        return positions

    @abstractmethod
    def uses_from(self, position: int, lanes: Sequence[int] | None = None) -> Iterator[ShardUse]:
        """Shards in the order in which they are needed from `position` on, each with the positions that draw from it.

        A shard at a cut comes once a lane.

        Args:
            position: where to begin.
            lanes: the lanes that this node reads (`Schedule.lanes`); all when left out.
        """

    @abstractmethod
    def _windows(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...


class SequentialEpoch(EpochOrder):
    """Dataset order: the windows of runs, one run after the other."""

    def __init__(self, runs: Pieces) -> None:
        self._runs = runs
        self._stop = np.cumsum(runs.count)
        self.num_windows = int(self._stop[-1])
        self.num_lanes = 1

    def _windows(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        run = np.searchsorted(self._stop, positions, side="right")
        from_end = self._stop[run] - positions
        return self._runs.shard[run], self._runs.first[run] + self._runs.count[run] - from_end

    def uses_from(self, position: int, lanes: Sequence[int] | None = None) -> Iterator[ShardUse]:
        """One use for each run."""
        for run in range(int(np.searchsorted(self._stop, position, side="right")), len(self._stop)):
            stop = int(self._stop[run])
            yield ShardUse(max(stop - int(self._runs.count[run]), position), stop, int(self._runs.shard[run]))


class ShuffledEpoch(EpochOrder):
    """Position p belongs to lane p mod L, item p div L; see `LaneOrder` and `BlockOrder` for the order within a lane.

    Args:
        lanes: the lanes of the epoch; each is computed when it is first asked for.
        episodes: which windows are of one episode.
        parts: k, shards that a lane draws from at a time, where it has so many.
        key: the seed of the order, and the epoch.
        blocks: their sizes, where the order is by blocks.
    """

    def __init__(
        self, lanes: Lanes, episodes: Episodes, parts: int, key: tuple[int, int], blocks: BlockSizes | None = None
    ) -> None:
        self.num_windows, self.num_lanes = lanes.num_windows, lanes.num_lanes
        self._arguments = (lanes, episodes, parts, key, blocks)
        self._orders: dict[int, LaneOrder | BlockOrder] = {}
        # Two a lane: batches that are being read at once lie on both sides of a segment's end.
        self._segments: SharedLru[tuple[int, int], Segment] = SharedLru(2 * self.num_lanes)
        self._last: dict[int, Segment] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # What was computed stays behind: it holds a lock, and is cheaper to compute again than to send.
        return ShuffledEpoch, self._arguments

    def lane(self, lane: int) -> LaneOrder | BlockOrder:
        """The order of one lane; O(its pieces) when first asked for."""
        order = self._orders.get(lane)
        if order is None:
            lanes, episodes, parts, (seed, epoch), blocks = self._arguments
            pieces, key = lanes.pieces(lane), (seed, epoch, lane)
            order = LaneOrder(pieces, episodes, min(len(pieces), parts), key, self._room)
            if blocks is not None:
                order = BlockOrder(order, episodes, blocks, key, self._room)
            self._orders[lane] = order
        return order

    def _room(self) -> int:
        return _DEALT_BYTES // len(self._orders)

    def _windows(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shard, window = np.empty_like(positions), np.empty_like(positions)
        for where, segment, rows in self._found(positions):
            shard[where], window[where] = segment.shard[rows], segment.window[rows]
        return shard, window

    def ends_block(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """As `EpochOrder.ends_block`."""
        ends = super().ends_block(positions)
        if self._arguments[-1] is not None:
            for where, segment, rows in self._found(np.asarray(positions, np.int64)):
                if segment.ends_block is not None:
                    ends[where] = segment.ends_block[rows]
        return ends

    def _found(self, positions: NDArray[np.int64]) -> Iterator[tuple[Any, Segment, Any]]:
        """Segments, each with where in `positions` those are that it holds, and its rows of these."""
        if len(positions) < _FEW * self.num_lanes:
            for place, position in enumerate(positions.tolist()):
                item, lane = divmod(position, self.num_lanes)
                segment = self._segment(lane, item)
                yield place, segment, item - segment.start
            return
        items, lanes = np.divmod(positions, self.num_lanes)
        for lane in np.flatnonzero(np.bincount(lanes)).tolist():
            where = np.flatnonzero(lanes == lane)
            while len(where):
                wanted = items[where]
                segment = self._segment(lane, int(wanted[0]))
                inside = (wanted >= segment.start) & (wanted < segment.start + len(segment.shard))
                yield where[inside], segment, wanted[inside] - segment.start
                where = where[~inside]

    def _segment(self, lane: int, item: int) -> Segment:
        last = self._last.get(lane)
        if last is not None and last.start <= item < last.start + len(last.shard):
            return last
        order = self.lane(lane)
        number = order.find(item)
        segment = self._segments.get((lane, number), lambda: order.build(number))
        self._last[lane] = segment
        return segment

    def uses_from(self, position: int, lanes: Sequence[int] | None = None) -> Iterator[ShardUse]:
        """Merged over the lanes; O(lanes) to start, and then O(k) a shard."""
        wanted = range(self.num_lanes) if lanes is None else lanes
        return heapq.merge(*(self._uses_of(lane, position) for lane in wanted))

    def _uses_of(self, lane: int, position: int) -> Iterator[ShardUse]:
        num_lanes = self.num_lanes
        item = max(-(-(position - lane) // num_lanes), 0)
        if item * num_lanes + lane < self.num_windows:
            for use in self.lane(lane).uses(item):
                first, stop = use.first * num_lanes + lane, (use.stop - 1) * num_lanes + lane + 1
                yield ShardUse(first, stop, use.shard)
