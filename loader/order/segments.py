"""Segments: the order of one lane in one epoch, a group of shards at a time, found without walking the lane.

A lane's pieces are permuted. Piece i of m is cut into k equal parts, and part j goes to segment
``clip(i - k + 1 + j, 0, m - k)``: k neighbouring pieces share a segment, and one leaves and one enters from
each segment to the next. With m = 5 and k = 3 (rows: pieces; columns: segments; numbers: parts):

    ======  =======  =====  =======
    piece   seg 0    seg 1  seg 2
    ======  =======  =====  =======
    0       0 1 2
    1       0 1      2
    2       0        1      2
    3                0      1 2
    4                       0 1 2
    ======  =======  =====  =======

Part j of a piece of n windows is ``[floor(n*j/k), floor(n*(j+1)/k))`` of the piece's own permutation, so the
windows of all segments up to g are a sum of floors: a prefix sum for the pieces that are through, k - 1 terms
for the rest. Put together, a segment is mixed so that the windows of an episode lie evenly over it (`spread`).
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.lanes import Pieces
from epistream.loader.order.random_integers import Purpose, permutation, stream
from epistream.loader.order.spread import Episodes, spread
from epistream.lru import SharedLru

PieceOrder = NDArray[np.uint32] | NDArray[np.int64]
# Permutations of pieces by (lane, piece): kept for the k segments that share a piece, and redone without room.
Permutations = SharedLru[tuple[int, int], PieceOrder]


class Segment(NamedTuple):
    """A segment's windows in their final order: (n,) arrays, and where its first item lies in the lane."""

    start: int
    shard: NDArray[np.int64]
    window: NDArray[np.int64]


class ShardUse(NamedTuple):
    """A shard that a lane needs for its items [first, stop)."""

    first: int
    stop: int
    shard: int

    @property
    def dataset(self) -> int:
        """The only one; see `MixtureUse`."""
        return 0


class LaneOrder:
    """The order of one lane in one epoch: its pieces permuted, and cut into segments. Made in O(pieces).

    Args:
        pieces: the lane's pieces.
        episodes: which windows are of one episode, to be spread over a segment.
        parts: k, at most the number of pieces.
        key: seed, epoch and lane.
        permutations: where permutations of pieces are remembered; all lanes of an epoch may share it.
    """

    def __init__(
        self,
        pieces: Pieces,
        episodes: Episodes,
        parts: int,
        key: tuple[int, int, int],
        permutations: Permutations,
    ) -> None:
        seed, epoch, lane = key
        order = permutation(len(pieces), Purpose.PIECES, seed, epoch, lane)
        self._shard, self._first, self._count = pieces.shard[order], pieces.first[order], pieces.count[order]
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._count)])
        self._episodes = episodes
        self._key = key
        self.parts = parts
        self.num_segments = len(pieces) - parts + 1
        self._permutations = permutations

    def stop(self, segment: int) -> int:
        """Items of the lane up to the end of `segment`: the closed form, O(k)."""
        if segment < 0:
            return 0
        if segment >= self.num_segments - 1:
            return int(self._before[-1])
        through = segment + 1
        rising = self._count[through : through + self.parts - 1]
        parts_in = np.arange(self.parts - 1, 0, -1)
        return int(self._before[through] + np.sum(rising * parts_in // self.parts))

    def find(self, item: int) -> int:
        """The segment that holds the item: the first whose stop lies beyond it. O(k log m)."""
        return bisect_right(range(self.num_segments - 1), item, key=self.stop)

    def build(self, segment: int) -> Segment:
        """Put a segment together and mix it."""
        pieces = np.arange(segment, segment + self.parts)
        begin, end = self._share(pieces, segment)
        pieces, begin, end = (array[begin < end] for array in (pieces, begin, end))
        size, shard = end - begin, self._shard[pieces]
        permuted = [
            self._permute(piece)[start:stop]
            for piece, start, stop in zip(pieces.tolist(), begin.tolist(), end.tolist(), strict=True)
        ]
        window = np.repeat(self._first[pieces], size) + np.concatenate(permuted)
        seed, epoch, lane = self._key
        raw = stream(Purpose.SEGMENT, seed, epoch, lane, segment).random_raw(len(window))
        order = spread(self._episodes.group(shard, size, window), raw)
        return Segment(self.stop(segment - 1), np.repeat(shard, size)[order], window[order])

    def _share(self, pieces: NDArray[np.int64], segment: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What a segment takes of each piece's permuted windows: from where, to where."""
        parts = self.parts
        low, high = segment - pieces + parts - 1, segment - pieces + parts
        if segment == 0:
            low = np.zeros_like(low)
        if segment == self.num_segments - 1:
            high = np.full_like(high, parts)
        count = self._count[pieces]
        return count * np.clip(low, 0, parts) // parts, count * np.clip(high, 0, parts) // parts

    def _permute(self, piece: int) -> PieceOrder:
        seed, epoch, lane = self._key

        def anew() -> PieceOrder:
            count = int(self._count[piece])
            # The shard, not the piece's place, names the stream: the place changes with the epoch's permutation.
            order = permutation(count, Purpose.WINDOWS, seed, epoch, lane, int(self._shard[piece]))
            return order.astype(np.uint32) if count <= 2**32 else order

        return self._permutations.get((lane, piece), anew)

    def uses(self, item: int) -> Iterator[ShardUse]:
        """The shards needed from `item` on, in the order of need."""
        waiting: list[ShardUse] = []
        segment = self.find(item)
        start, shards, _ = self.build(segment)
        # In the middle of a segment, shards that end with it may have given their last window already.
        left, end = set(shards[item - start :].tolist()), start + len(shards)
        for piece in range(segment, len(self._shard)):
            first, stop = self._span(piece)
            if stop > end or int(self._shard[piece]) in left:
                heapq.heappush(waiting, ShardUse(max(first, item), stop, int(self._shard[piece])))
            # A piece of few windows can enter later than the next one; no later piece enters before `reached`.
            reached = self.stop(piece - self.parts + 1)
            while waiting and waiting[0].first <= reached:
                yield heapq.heappop(waiting)
        yield from sorted(waiting)

    def _span(self, piece: int) -> tuple[int, int]:
        """The items between which a piece is drawn from: start of its first segment, stop of its last."""
        last = self.num_segments - 1
        # The first parts of a piece shorter than k are empty: floor(n * (j + 1) / k) is 0 until j = ceil(k / n) - 1.
        entry = -(-self.parts // int(self._count[piece])) - 1
        first = min(max(piece - self.parts + 1 + entry, 0), last)
        return self.stop(first - 1), self.stop(min(piece, last))
