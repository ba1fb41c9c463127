"""The order of one lane by blocks: what is permuted are runs of neighbouring steps, so that their frames decode once.

Blocks are whole: a piece's blocks are permuted, and its parts end at the block's end that lies nearest to where those
of single windows would (`segments`). The blocks of a segment, in an order in which an episode's lie evenly, come after
those of the segment before: the blocks of a lane are one sequence. u of them, the lane's **pool**, are drawn from at
a time. Block i's windows are cut into u equal parts, and part j goes to **step** ``clip(i - u + 1 + j, 0, M - u)`` of
M - u + 1: as pieces go to segments, one level down, and over the borders of segments. With M = 5 and u = 3:

    ======  ======  ======  ======
    block   step 0  step 1  step 2
    ======  ======  ======  ======
    0       0 1 2
    1       0 1     2
    2       0       1       2
    3               0       1 2
    4                       0 1 2
    ======  ======  ======  ======

Step m ends with block m. So what comes up to the end of a segment are its blocks, those before, and a sum of floors
over the next u - 1: nothing that comes later need be known, nor how many blocks there are.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.random_integers import Purpose, permutation, stable_argsort, stream
from epistream.loader.order.segments import LaneOrder, Segment, ShardUse, narrowest
from epistream.loader.order.spread import Episodes, spread

_HALF = np.uint64(32)


class BlockSizes(NamedTuple):
    """What an order by blocks is made of.

    Attributes:
        steps: of a block, at most.
        pool: u, blocks that a lane draws from at a time, 2 or more.
        longest: windows of a block, at most.
    """

    steps: int
    pool: int
    longest: int


class _Laid(NamedTuple):
    """The blocks of a segment, one after the other, before their windows are mixed with those of others.

    Attributes:
        shard, num_windows: (b,) of each block.
        window: (n,) by their numbers within their shards; those of a block in random order.
        fraction: (n,) random integers of 32 bits.
    """

    shard: NDArray[Any]
    num_windows: NDArray[np.int64]
    window: NDArray[Any]
    fraction: NDArray[np.uint32]


class BlockOrder:
    """The order of one lane in one epoch, by blocks. Threads may share it: what two of them compute is the same.

    Args:
        lane: which pieces each segment draws from.
        episodes: which windows are of one episode, and where blocks begin.
        sizes: of blocks and pool.
        key: seed, epoch and lane.
        room: bytes that the lane may keep of permuted pieces.
    """

    def __init__(
        self,
        lane: LaneOrder,
        episodes: Episodes,
        sizes: BlockSizes,
        key: tuple[int, int, int],
        room: Callable[[], int],
    ) -> None:
        self._lane, self._episodes, self._sizes, self._key, self._room = lane, episodes, sizes, key, room
        self.num_segments = lane.num_segments
        self._total = lane.stop(lane.num_segments - 1)
        # No dict is changed while another thread may walk over it: those that lose keys are replaced.
        self._permuted: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
        self._laid: dict[int, _Laid] = {}
        self._laid_before: dict[int, int] = {}
        self._stops: dict[int, int] = {-1: 0}

    def stop(self, segment: int) -> int:
        """Items of the lane up to the end of the last step that ends with a block of `segment`."""
        found = self._stops.get(segment)
        if found is None:
            pool, following = self._sizes.pool, self._following(segment)
            found = self._total
            if len(following) == pool:
                ahead = following[:-1] * np.arange(pool - 1, 0, -1) // pool
                found = self._laid_before[segment + 1] + int(np.sum(ahead))
            self._stops[segment] = found
        return found

    def find(self, item: int) -> int:
        """The segment that holds the item; looked for from the one that would if it were of single windows."""
        segment = self._lane.find(item)
        while item >= self.stop(segment):
            segment += 1
        while item < self.stop(segment - 1):
            segment -= 1
        return segment

    def build(self, segment: int) -> Segment:
        """Put together the steps that end with the blocks of a segment, and mix each."""
        pool, following = self._sizes.pool, self._following(segment)
        own = len(self._laid_of(segment).num_windows)
        is_first, is_last = self._laid_before[segment] == 0, len(following) < pool
        # Blocks and steps are numbered from the first of the segment; later steps than `last` join it.
        count = np.concatenate([self._laid_of(segment).num_windows, following[: pool - 1]])
        last = max(own + len(following) - pool, 0) if is_last else own - 1
        number = np.arange(len(count))
        begin = np.zeros_like(count) if is_first else count * np.maximum(pool - 1 - number, 0) // pool
        taken = (count if is_last else count * np.minimum(last + pool - number, pool) // pool) - begin
        block = np.repeat(number, taken)
        rank = np.arange(len(block)) - np.repeat(np.cumsum(taken) - taken - begin, taken)
        whole = count[block]
        part = ((rank + 1) * pool - 1) // whole
        step = np.clip(block - pool + 1 + part, 0, last)
        at_first, at_last = is_first & (step == 0), is_last & (step == last)
        # What a block gives to the step at either end of the lane, where several of its parts share one.
        low = np.where(at_last & ~at_first, (count * np.clip(last + pool - 1 - number, 0, pool) // pool)[block], 0)
        high = np.where(at_last, whole, (count * np.clip(pool - number, 0, pool) // pool)[block])
        # A window lies where it would if all of its block's lay evenly over the block's `pool` steps, and at the ends
        # those that it gives to the step: three quarters of where between two are chance for the block, one for each.
        at_end = at_first | at_last
        place = np.where(at_end, rank - low, rank * pool - part * whole)
        rate, of = np.where(at_end, 1, pool), np.where(at_end, high - low, whole)
        shard, window, fraction = self._joined(segment, len(count))
        at = np.repeat(np.cumsum(count) - count, taken) + rank
        by_block, by_window = fraction[at - rank].astype(np.int64), fraction[at].astype(np.int64)
        # In units of 2**-32 of the step, in integers: floats may round differently elsewhere.
        chance = by_block - (by_block >> 2) + (by_window >> 2)
        order = _by_group(step, ((place << 32) + rate * chance) // of)
        return Segment(self.stop(segment - 1), shard[block[order]], window[at[order]], (rank + 1 == whole)[order])

    def uses(self, item: int) -> Iterator[ShardUse]:
        """The shards needed from `item` on, in the order of need; each a little longer than it is, at either end.

        No segment is put together: how far blocks and pool can move a window is known from their sizes alone.
        """
        sizes = self._sizes
        # A part ends up to half a block from where single windows are cut, in each of a segment's shards.
        cuts = (self._lane.parts - 1) * (sizes.longest // 2 + 1)
        ahead = (sizes.pool - 1) * sizes.longest
        half = ahead // 2 + sizes.pool + cuts
        for use in self._lane.spans_from(self._lane.find(max(item - ahead - cuts, 0)), 0):
            # The last step takes all that is left, which may be whole blocks.
            stop = min(self._total, use.stop + half if use.stop + ahead + cuts < self._total else self._total)
            if stop > item:
                yield ShardUse(max(use.first - half, item), stop, use.shard)

    def _following(self, segment: int) -> NDArray[np.int64]:
        """Windows of each of the u blocks that come after a segment's; of fewer where the lane ends."""
        counts, missing = [np.zeros(0, np.int64)], self._sizes.pool
        while missing > 0 and segment + 1 < self.num_segments:
            segment += 1
            counts.append(self._laid_of(segment).num_windows)
            missing -= len(counts[-1])
        return np.concatenate(counts)[: self._sizes.pool]

    def _joined(self, segment: int, num_blocks: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.uint32]]:
        """Shards of so many blocks from a segment's first on, and windows and fractions of all that these hold."""
        laid = [self._laid_of(segment)]
        while sum(len(each.num_windows) for each in laid) < num_blocks:
            laid.append(self._laid_of(segment + len(laid)))
        # What comes next begins with these; what lies before is through, or far from a reader in sequence.
        near = range(segment, segment + len(laid) + 1)
        self._laid = {number: each for number, each in self._laid.items() if number in near}
        joined = _Laid(*(np.concatenate(arrays) for arrays in zip(*laid, strict=True)))
        return joined.shard, joined.window, joined.fraction

    def _laid_of(self, segment: int) -> _Laid:
        found = self._laid.get(segment)
        if found is None:
            found = self._lay(segment)
            self._laid = {**self._laid, segment: found}
        return found

    def _lay(self, segment: int) -> _Laid:
        """The blocks that a segment draws from, in the order in which the pool takes them."""
        lane, room = self._lane, self._room()
        kept, sizes, firsts, counts = {}, [], [], []
        before = lane.windows_before(segment)
        pieces, begins, ends = lane.share(segment)
        for piece, begin, end in zip(pieces.tolist(), begins.tolist(), ends.tolist(), strict=True):
            if not end:
                sizes.append(0)
                continue
            first, stop = self._permuted.get(piece) or self._permute(piece)
            room -= first.nbytes + stop.nbytes
            if room >= 0:
                kept[piece] = first, stop
            low, high = _nearest(stop, begin), _nearest(stop, end)
            sizes.append(high - low)
            firsts.append(first[low:high])
            counts.append(np.diff(stop[low : high + 1]))
            before += int(stop[low])
        self._permuted = kept
        size, first, count = np.array(sizes), np.concatenate(firsts), np.concatenate(counts).astype(np.int64)
        self._laid_before[segment] = before
        shard = lane.narrow_shards[pieces]
        seed, epoch, number = self._key
        if len(first):
            raw = stream(Purpose.BLOCKS_OF_SEGMENT, seed, epoch, number, segment).random_raw(len(first))
            some = size > 0
            order = spread(self._episodes.group(shard[some], size[some], first), raw)
        else:
            order = np.zeros(0, np.int64)
        count = count[order]
        raw = stream(Purpose.WINDOWS_OF_BLOCKS, seed, epoch, number, segment).random_raw(int(count.sum()))
        # A block is a run, so that the windows that are permuted within blocks need not be listed first.
        within = _by_group(np.repeat(np.arange(len(count)), count), raw >> _HALF)
        window = (within + np.repeat(first[order] - (np.cumsum(count) - count), count)).astype(first.dtype)
        return _Laid(np.repeat(shard, size)[order], count, window, raw.astype(np.uint32))

    def _permute(self, piece: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The blocks of a piece in random order: the first window of each, (b,), and windows before each, (b + 1,)."""
        shard, first, count = self._lane.piece(piece)
        starts = self._episodes.blocks(shard, first, count, self._sizes.steps)
        seed, epoch, lane = self._key
        # The shard, not the piece's place, names the stream: the place changes with the epoch's permutation.
        order = permutation(len(starts), Purpose.BLOCKS, seed, epoch, lane, shard)
        sizes = np.diff(starts, append=first + count)[order]
        stop = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        return starts[order].astype(self._lane.narrow_window), stop.astype(narrowest(count))


def _nearest(stops: NDArray[Any], windows: int) -> int:
    """The number of blocks that hold nearest to so many windows; the fewer of two."""
    low = int(np.searchsorted(stops, windows, side="right")) - 1
    if low + 1 == len(stops):
        return low
    return low + (int(stops[low + 1]) - windows < windows - int(stops[low]))


def _by_group(group: NDArray[np.int64], key: NDArray[Any]) -> NDArray[np.int64]:
    """Order by group, and within a group by key; groups are numbered from 0."""
    by_key = stable_argsort(key)
    # Numpy sorts 16-bit integers by radix, ten times as fast.
    narrow = group.astype(narrowest(int(group.max(initial=0))))
    return by_key[np.argsort(narrow[by_key], kind="stable")]
