"""Arrays that readers make of a shard once per node: one entry of the cache holds all of a kind, and is held open."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass
class _Held:
    entry: OpenEntry
    arrays: Arrays


class KeptArrays(Generic[K]):
    """The arrays in the node's cache that one reader draws from. Not shared between threads.

    Args:
        cache: where they are kept.
        max_open: entries held open at a time, each a descriptor and a mapping.
    """

    def __init__(self, cache: NodeCache, max_open: int) -> None:
        self._cache = cache
        self._open: Lru[K, _Held] = Lru(max_open, _close)

    def get(self, key: K) -> Arrays | None:
        """The arrays of an entry that is held open."""
        held = self._open.get(key)
        return None if held is None else held.arrays

    def open(
        self, key: K, entry: Entry, shapes: Shapes, fill: Callable[[Arrays], None] | None, *, may_evict: bool
    ) -> Arrays | None:
        """Open an entry and hold it, until `release` or until others were used later.

        Args:
            key: what `get` is asked for.
            entry: what the arrays are made of, and how.
            shapes: of the arrays.
            fill: makes them, if nobody on this node has; None leaves that to others.
            may_evict: whether entries that nobody uses may have to leave for them.

        Returns:
            The arrays, read-only; None if they are not there, see `NodeCache.open_made`.
        """
        sizes = [prod(shape) * dtype.itemsize for dtype, shape in shapes.values()]
        offsets = part_offsets(sizes)

        def views(buffer: memoryview) -> Arrays:
            return {
                name: np.ndarray(shape, dtype, buffer, offset)
                for (name, (dtype, shape)), offset in zip(shapes.items(), offsets, strict=True)
            }

        make = None if fill is None else lambda buffer: fill(views(buffer))
        opened = self._cache.open_made(entry, offsets[-1] + sizes[-1], make, may_evict=may_evict)
        if opened is None:
            return None
        blob = opened.blobs[0]
        held = _Held(opened, views(blob.read(0, blob.size)))
        self._open.put(key, held)
        return held.arrays

    def release(self) -> None:
        """Give up every entry."""
        self._open.clear()


def _close(held: _Held) -> None:
    held.arrays = {}  # views first: memory that is still looked at stays, uncounted
    held.entry.close()
