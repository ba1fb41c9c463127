"""Arrays that readers make of a shard once per node: one entry of the cache holds all of a kind, and is held open."""

import time
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import NodeCache, OpenEntry
from epistream.cache.source.entry import Entry, part_offsets
from epistream.lru import Lru

K = TypeVar("K")
Arrays = Mapping[str, NDArray[Any]]
# dtype and shape of each array by its name, in the order in which they lie in the entry.
Shapes = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]

# How long an entry is used before it is asked whether it was evicted, and marked as used; and how long one that is not
# used may stay mapped after that.
_RENEW_S, _SWEEP_S = 0.25, 0.1
# What is not there is looked for again after so long: somebody else may have made it meanwhile.
_LOOK_AGAIN_S = 2.0
# Where there is no room nothing more is made for so long, at first and at most: each try looks through the cache, for
# every shard that is missing, in every batch. What another process is making, or is stopped while it makes it, is asked
# for again after the first of them, and keeps nothing else from being made.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.25, 30.0


class Kept:
    """The arrays of one entry that is held open.

    Attributes:
        arrays: by name, read-only views of the entry.
        offsets: bytes of the entry at which each begins.
        write: puts bytes into the entry at an offset, for all who have it open; whether all of them were written.
        try_lock: locks a byte of the entry against all others who have it open; whether that was possible at once.
        unlock: gives it back.
        renew_at: when to ask whether it is still in the cache.
        views: for its user: what it makes of the arrays, to have it again.
    """

    def __init__(self, entry: OpenEntry, arrays: Arrays, offsets: Mapping[str, int], renew_at: float) -> None:
        self.arrays = arrays
        self.offsets = offsets
        self.renew_at = renew_at
        self.views: dict[str, Any] = {}
        self._entry = entry
        # The entry's own: what refers to itself stays mapped until the garbage collector comes.
        self.write = entry.write
        self.try_lock, self.unlock = entry.try_lock, entry.unlock

    def renew(self, *, used: bool) -> bool:
        """Whether it is still in the cache."""
        return self._entry.renew(used=used)

    def close(self) -> None:
        """Give it up."""
        self.arrays, self.views = {}, {}  # views first: memory that is still looked at stays, uncounted
        self._entry.close()


class KeptArrays(Generic[K]):
    """The arrays in the node's cache that one reader draws from. Not shared between threads.

    Entries stay mapped from batch to batch, but are not leased: small batches would spend more time on opening them
    than on reading them, and a training loop that pauses shall not keep others out of the cache. What was mapped stays
    readable if it is evicted, and is given back soon after.

    Args:
        cache: where they are kept.
        max_open: entries held open at a time, each two descriptors and a mapping.
        clock: seconds.
    """

    def __init__(self, cache: NodeCache, max_open: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock = clock
        self._open: Lru[K, Kept] = Lru(max_open, Kept.close)
        self._now_s = self._sweep_at = 0.0
        self._look_at: dict[K, float] = {}
        self._busy: set[K] = set()
        self._make_at = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def begin_batch(self, *, is_short: bool = False) -> None:
        """Look at the clock, for all calls until the next batch; give back what was evicted: now and then.

        Args:
            is_short: memory is short, so do it now.
        """
        self._now_s = now = self._clock()
        if now < self._sweep_at and not is_short:
            return
        self._sweep_at = now + _SWEEP_S
        for kept in list(self._open.values()):
            if not kept.renew(used=False):
                self._drop(kept)

    def get(self, key: K) -> Kept | None:
        """An entry that is held open."""
        kept = self._open.get(key)
        if kept is None or self._now_s < kept.renew_at:
            return kept
        kept.renew_at = self._now_s + _RENEW_S
        if kept.renew(used=True):
            return kept
        self._drop(kept)
        return None

    def is_missing(self, key: K) -> bool:
        """Whether an entry was looked for just now, and was not there."""
        return self._now_s < self._look_at.get(key, 0.0)

    def is_busy(self, key: K) -> bool:
        """Whether another process was making an entry just now."""
        return key in self._busy and self.is_missing(key)

    def ask_again(self, key: K) -> None:
        """Look for an entry that another process was making, at once and not after a while."""
        self._busy.discard(key)
        self._look_at.pop(key, None)

    @property
    def may_make(self) -> bool:
        """Whether there may be room: for a while after there was none, nothing is made."""
        return self._now_s >= self._make_at

    def open(
        self,
        key: K,
        entry: Callable[[], Entry],
        shapes: Shapes,
        fill: Callable[[Arrays], None] | None,
        *,
        may_evict: bool,
        num_filled: int | None = None,
    ) -> Kept | None:
        """Open an entry and hold it, until `close` or until others were used later.

        What is not there is asked for again after a pause, and so is room.

        Args:
            key: what `get` is asked for.
            entry: tells what the arrays are made of, and how.
            shapes: of the arrays.
            fill: makes them, if nobody on this node has; None leaves that to others.
            may_evict: whether entries that nobody uses may have to leave for them.
            num_filled: the first arrays, which `fill` may write; the others are written by `Kept.write`, and nobody
                looks at what was not; all unless given.

        Returns:
            None if they are not there, see `NodeCache.open_made`.
        """
        now = self._now_s
        if fill is not None and now < self._make_at:
            fill = None
        if self.is_busy(key) or (fill is None and self.is_missing(key)):
            return None
        self._busy.discard(key)
        sizes = [prod(shape) * dtype.itemsize for dtype, shape in shapes.values()]
        starts = part_offsets(sizes)

        def views(buffer: memoryview) -> Arrays:
            # By frombuffer, which keeps the memory mapped for as long as an array lives; ndarray(buffer=...) does not.
            return {
                name: np.frombuffer(buffer, dtype, prod(shape), start).reshape(shape)
                for (name, (dtype, shape)), start in zip(shapes.items(), starts, strict=True)
            }

        make = None if fill is None else lambda buffer: fill(views(buffer))
        allocated = None if num_filled is None else starts[num_filled]
        opened = self._cache.open_made(
            entry(),
            starts[-1] + sizes[-1],
            make,
            may_evict=may_evict,
            allocated=allocated,
            when_busy=lambda: self._busy.add(key),
        )
        if opened is None:
            is_busy = key in self._busy
            self._look_at[key] = now + (_FIRST_PAUSE_S if is_busy else _LOOK_AGAIN_S)
            if fill is not None and not is_busy:
                self._rest_from_making()
            return None
        if fill is not None:
            self._pause_s = _FIRST_PAUSE_S
        self._look_at.pop(key, None)
        opened.rest()
        blob = opened.blobs[0]
        kept = Kept(opened, views(blob.read(0, blob.size)), dict(zip(shapes, starts, strict=True)), now + _RENEW_S)
        self._open.put(key, kept)
        return kept

    def close(self) -> None:
        """Give up every entry."""
        self._open.clear()

    def _drop(self, kept: Kept) -> None:
        self._open.drop_if(lambda held: held is kept)
        self._rest_from_making()  # somebody needs the room

    def _rest_from_making(self) -> None:
        self._make_at = self._now_s + self._pause_s
        self._pause_s = min(_LAST_PAUSE_S, 2 * self._pause_s)
