"""The low-dimensional values of a shard as tables in the node's cache: where a shard is a file, rows are scattered."""

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import NodeCache, OpenEntry
from epistream.cache.source.blob import Blob
from epistream.cache.source.entry import Entry, part_offsets
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex

# Raised whenever the bytes of an entry change their meaning: jobs of other releases share the node's cache.
_VERSION = 1

# Batches after which a table is asked for again that could not be had: another process may just have been making it.
_ASK_AGAIN = 16

# One element per row, so that numpy moves a row as a whole instead of value by value.
Table = NDArray[np.void]


@dataclass
class _Kept:
    """The tables of a shard; without an entry there are none, because they were not to be had or are not needed."""

    entry: OpenEntry | None
    tables: Mapping[str, Table]
    num_batches_left: float = math.inf


class ArrayTables:
    """Tables of the array features of shards that are read in place. Not shared between threads.

    A window of a hundred actions lies anywhere in its shard: reading it takes a system call, and a batch takes
    hundreds. The tables are a small part of a shard with cameras; they are made when the shard is first used, kept
    only where there is room for them, and evicted like any entry.

    Args:
        features: those of kind "array" that are read.
        cache: where the tables are kept.
        max_open: shards whose tables are held open.
    """

    def __init__(self, features: Mapping[str, Feature], cache: NodeCache, max_open: int) -> None:
        self._features = dict(features)
        self._cache = cache
        self._max_open = max_open
        self._open: OrderedDict[int, _Kept] = OrderedDict()
        # Their keys are hashes of JSON, which takes as long as opening them.
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._content = json.dumps(["columns", _VERSION, [feature.to_dict() for feature in features.values()]])

    def take(self, shard: int, source: Entry, tar: Blob, index: ShardIndex) -> Mapping[str, Table]:
        """The tables of a shard, until `release`: by feature (rows,); empty if there are none.

        Args:
            shard: the shard.
            source: its entry, which the caller holds open.
            tar: its bytes.
            index: its index.
        """
        kept = self._open.get(shard)
        if kept is None or kept.num_batches_left == 0:
            kept = self._load(self._entry(shard, source), tar, index)
            while len(self._open) >= self._max_open:
                _close(self._open.popitem(last=False)[1])
            self._open[shard] = kept
        kept.num_batches_left -= 1
        return kept.tables

    def release(self) -> None:
        """Give up every table."""
        while self._open:
            _close(self._open.popitem()[1])

    def _entry(self, shard: int, source: Entry) -> Entry:
        entry = self._entries.pop(shard, None) or Entry(source.parts, self._content)
        self._entries[shard] = entry
        if len(self._entries) > self._max_open:
            self._entries.popitem(last=False)
        return entry

    def _load(self, entry: Entry, tar: Blob, index: ShardIndex) -> _Kept:
        # Over the network a few ranges are cheaper than the columns of a whole shard; in memory rows are at hand.
        if tar.is_mapped or tar.has_ranges or not self._features:
            return _Kept(None, {})
        num_rows = index.num_rows
        sizes = [num_rows * feature.step_bytes for feature in self._features.values()]
        offsets = part_offsets(sizes)

        def tables(buffer: memoryview) -> dict[str, Table]:
            return {
                name: np.frombuffer(buffer[start : start + size], f"V{feature.step_bytes}")
                for (name, feature), start, size in zip(self._features.items(), offsets, sizes, strict=True)
            }

        def fill(buffer: memoryview) -> None:
            for name, table in tables(buffer).items():
                starts = index.array_offset[name].tolist()
                for start, first, length in zip(starts, index.first_row.tolist(), index.length.tolist(), strict=True):
                    tar.read_into(start, table[first : first + length].view(np.uint8))

        opened = self._cache.open_made(entry, offsets[-1] + sizes[-1], fill, may_evict=False)
        if opened is None:
            return _Kept(None, {}, _ASK_AGAIN)
        blob = opened.blobs[0]
        return _Kept(opened, tables(memoryview(blob.read(0, blob.size))))


def gather_rows(table: Table, rows: NDArray[np.int64], feature: Feature) -> NDArray[Any]:
    """The values of a feature at rows of any shape, (*rows.shape, *shape of a step)."""
    return table.take(rows).view(feature.dtype).reshape(*rows.shape, *feature.shape)


def _close(kept: _Kept) -> None:
    kept.tables = {}  # views first: memory that is still looked at stays, uncounted
    if kept.entry is not None:
        kept.entry.close()
