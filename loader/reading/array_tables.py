"""The low-dimensional values of a shard as tables in the node's cache: where a shard is a file, rows are scattered."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import NodeCache
from epistream.cache.source.blob import Blob
from epistream.cache.source.entry import Entry
from epistream.loader.frames.kept_arrays import Kept, KeptArrays
from epistream.loader.shards.open_shards import OpenShard
from epistream.lru import SharedLru
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex

# Raised whenever the bytes of an entry change their meaning: jobs of other releases share the node's cache.
_VERSION = 1

# One element per row, so that numpy moves a row as a whole instead of value by value.
Table = NDArray[np.void]
Int64 = NDArray[np.int64]


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
        self._row_dtypes = {name: np.dtype(f"V{feature.step_bytes}") for name, feature in features.items()}
        self._tables: KeptArrays[int] = KeptArrays(cache, max_open)
        # Their keys are hashes of JSON, which takes as long as opening them.
        self._entries: SharedLru[int, Entry] = SharedLru(max_open)
        self._content = json.dumps(["columns", _VERSION, [feature.to_dict() for feature in features.values()]])

    def take(self, opened: OpenShard) -> Mapping[str, Table]:
        """The tables of a shard: by feature (rows,); empty if there are none."""
        tables = self._tables.get(opened.number)
        if tables is not None:
            return tables.arrays
        # Over the network a few ranges are cheaper than the columns of a whole shard; in memory rows are at hand.
        if opened.tar.is_mapped or opened.tar.has_ranges or not self._row_dtypes:
            return {}
        number = opened.number
        if self._tables.is_busy(number) or (self._tables.is_missing(number) and not self._tables.may_make):
            return {}
        tables = self._open(opened)
        return {} if tables is None else tables.arrays

    def begin_batch(self, *, is_short: bool = False) -> None:
        """Another batch begins; memory may be short."""
        self._tables.begin_batch(is_short=is_short)

    def close(self) -> None:
        """Give up every table."""
        self._tables.close()

    def _open(self, opened: OpenShard) -> Kept | None:
        tar, index = opened.tar, opened.index

        def fill(tables: Mapping[str, Table]) -> None:
            for name, table in tables.items():
                starts, cuts = index.array_offset[name].tolist(), index.first_row[1:].tolist()
                episodes = np.split(table, cuts)
                tar.read_each(starts, [episode.view(np.uint8).data for episode in episodes])

        def entry() -> Entry:
            return self._entries.get(
                opened.number, lambda: Entry(opened.source.parts, f"{self._content}{opened.naming}")
            )

        shapes = {name: (dtype, (index.num_rows,)) for name, dtype in self._row_dtypes.items()}
        return self._tables.open(opened.number, entry, shapes, fill, may_evict=False)


def held_by(index: ShardIndex) -> Mapping[str, Table]:
    """The tables that an index itself holds, for shards whose rows are scattered over the tar; empty if it has none."""
    return {name: rows.view(f"V{rows.shape[1]}")[:, 0] for name, rows in index.values.items()}


def gather_rows(table: Table, rows: Int64, feature: Feature) -> NDArray[Any]:
    """The values of a feature at rows of any shape, (*rows.shape, *shape of a step)."""
    return table.take(rows).view(feature.dtype).reshape(*rows.shape, *feature.shape)


def gather_steps(tar: Blob, index: ShardIndex, feature: Feature, episodes: Int64, steps: Int64) -> NDArray[Any]:
    """The same without a table: steps (R, n) of episodes (R,), from the shard itself."""
    starts = index.array_offset[feature.name][episodes].astype(np.int64)[:, None] + steps * feature.step_bytes
    raw = np.empty((starts.size, feature.step_bytes), dtype=np.uint8)
    tar.gather(starts.reshape(-1), raw)
    return raw.view(feature.dtype).reshape(*steps.shape, *feature.shape)
