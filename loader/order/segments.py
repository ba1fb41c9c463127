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
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.lanes import Pieces
from epistream.loader.order.random_integers import Purpose, permutation, stream
from epistream.loader.order.spread import Episodes, spread

# Segments dealt at once, in units of k: a piece is permuted 1 + 1 / 2 times then, and not k times.
_DEALT_AHEAD = 2
# Lanes begin their first rows of dealt segments at so many different lengths: else all would end in the same batch.
_STAGGER = 8


class Segment(NamedTuple):
    """A segment's windows in their final order: (n,) integers, and where its first item lies in the lane.

    Integers are the narrowest that hold them: many resident shards make long segments, which every process keeps.
    By blocks, `ends_block` (n,) says which windows are the last of their block.
    """

    start: int
    shard: NDArray[Any]
    window: NDArray[Any]
    ends_block: NDArray[np.bool_] | None = None


class Dealt(NamedTuple):
    """The windows of neighbouring segments before they are mixed: those of one piece after those of another.

    Attributes:
        segments: which.
        window: (n,) by their numbers within their shards, in the narrowest integers that hold them.
        place: (p,) where in `window` the permutation of piece `segments.start + i` would begin, were all of it there.
    """

    segments: range
    window: NDArray[Any]
    place: NDArray[np.int64]


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
        room: bytes that the lane may keep of segments that come after the one it is asked for.
    """

    def __init__(
        self,
        pieces: Pieces,
        episodes: Episodes,
        parts: int,
        key: tuple[int, int, int],
        room: Callable[[], int],
    ) -> None:
        seed, epoch, lane = key
        order = permutation(len(pieces), Purpose.PIECES, seed, epoch, lane)
        self.shards, self._first, self._count = pieces.shard[order], pieces.first[order], pieces.count[order]
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._count)])
        self.narrow_shards = self.shards.astype(narrowest(int(self.shards.max())))
        self.narrow_window = narrowest(int((self._first + self._count).max()))
        self._episodes = episodes
        self._key = key
        self.parts = parts
        self.num_segments = len(pieces) - parts + 1
        self._parts_in = np.arange(parts - 1, 0, -1)
        self._room = room
        self._dealt: Dealt | None = None
        self._next, self._in_sequence = 0, False

    def stop(self, segment: int) -> int:
        """Items of the lane up to the end of `segment`: the closed form, O(k)."""
        if segment < 0:
            return 0
        if segment >= self.num_segments - 1:
            return int(self._before[-1])
        through = segment + 1
        rising = self._count[through : through + self.parts - 1]
        return int(self._before[through] + np.sum(rising * self._parts_in // self.parts))

    def find(self, item: int) -> int:
        """The segment that holds the item: the first whose stop lies beyond it. O(k log m), O(k) in sequence."""
        following = self._next  # looked at once: other threads move it on
        if self.stop(following - 1) <= item < self.stop(following):
            return following
        return bisect_right(range(self.num_segments - 1), item, key=self.stop)

    def build(self, segment: int) -> Segment:
        """Put a segment together and mix it."""
        pieces, begin, end = self.share(segment)
        pieces, begin, end = (array[begin < end] for array in (pieces, begin, end))
        size, shard = end - begin, self.shards[pieces]
        dealt = self._dealt_for(segment)
        # Row r of a piece's share is window `begin + r` of its permutation.
        shift = dealt.place[pieces - dealt.segments.start] + begin - (np.cumsum(size) - size)
        window = dealt.window[np.repeat(shift, size) + np.arange(np.sum(size))]
        seed, epoch, lane = self._key
        raw = stream(Purpose.SEGMENT, seed, epoch, lane, segment).random_raw(len(window))
        order = spread(self._episodes.group(shard, size, window), raw)
        self._next = segment + 1
        return Segment(self.stop(segment - 1), np.repeat(self.narrow_shards[pieces], size)[order], window[order])

    def share(self, segment: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The k pieces of a segment, and what it takes of their windows, which may be none: from where, to where."""
        pieces = np.arange(segment, segment + self.parts)
        return pieces, *self._share(pieces, segment)

    def piece(self, piece: int) -> tuple[int, int, int]:
        """Shard, first window and windows of a piece, in the epoch's order."""
        return int(self.shards[piece]), int(self._first[piece]), int(self._count[piece])

    def windows_before(self, piece: int) -> int:
        """Windows of the pieces before one."""
        return int(self._before[piece])

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

    def _dealt_for(self, segment: int) -> Dealt:
        """What was dealt with the segments before, or now; threads that come at once may both deal, the same."""
        dealt = self._dealt
        if dealt is None or segment not in dealt.segments:
            dealt = self._dealt = self._deal(range(segment, self._ahead(segment)))
        return dealt

    def _ahead(self, segment: int) -> int:
        """Up to which segment to deal. Only who goes on from segment to segment gets more than the one."""
        if self._dealt is None or segment != self._next:
            self._in_sequence = False
            return segment + 1
        most = _DEALT_AHEAD * self.parts
        if not self._in_sequence:
            most = most * (1 + self._key[2] % _STAGGER) // _STAGGER
        self._in_sequence = True
        fitting = self._room() // self.narrow_window.itemsize
        return max(segment + 1, min(segment + most, self.find(self.stop(segment - 1) + fitting)))

    def _deal(self, segments: range) -> Dealt:
        """Permute every piece that the segments draw from, and keep what they take of it: O(k + segments) pieces.

        Each piece's windows stand in its own permutation for all of its parts, so it does not matter how many
        segments are dealt together.
        """
        pieces = np.arange(segments.start, segments.stop + self.parts - 1)
        begin, end = self._share(pieces, segments.start)[0], self._share(pieces, segments.stop - 1)[1]
        stops = np.cumsum(end - begin)
        place = stops - end
        window = np.empty(int(stops[-1]), self.narrow_window)
        seed, epoch, lane = self._key
        for piece, start, stop, at in zip(*(array.tolist() for array in (pieces, begin, end, place)), strict=True):
            if start < stop:
                # The shard, not the piece's place, names the stream: the place changes with the epoch's permutation.
                shard, count = int(self.shards[piece]), int(self._count[piece])
                order = permutation(count, Purpose.WINDOWS, seed, epoch, lane, shard)
                window[at + start : at + stop] = order[start:stop] + self._first[piece]
        return Dealt(segments, window, place)

    def uses(self, item: int) -> Iterator[ShardUse]:
        """The shards needed from `item` on, in the order of need."""
        segment = self.find(item)
        end, left = self.stop(segment), None
        if item > self.stop(segment - 1):
            # In the middle of a segment, shards that end with it may have given their last window already.
            left = set(np.unique(self.build(segment).shard[item - end :]).tolist())
        for use in self.spans_from(segment, item):
            if left is None or use.stop > end or use.shard in left:
                yield use

    def spans_from(self, segment: int, item: int) -> Iterator[ShardUse]:
        """What the pieces from the first of a segment on are drawn from for, none before `item`, in order."""
        waiting: list[ShardUse] = []
        for piece in range(segment, len(self.shards)):
            first, stop = self._span(piece)
            heapq.heappush(waiting, ShardUse(max(first, item), stop, int(self.shards[piece])))
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


def narrowest(highest: int) -> np.dtype[Any]:
    """Of integers from 0 to `highest`; no unsigned ones of 64 bits, which numpy adds to signed ones as floats."""
    return np.dtype(np.uint16 if highest < 2**16 else np.uint32 if highest < 2**32 else np.int64)
