"""Shards that are read by ranges while they come in: the first batches do not wait for whole shards."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import OpenEntry
from epistream.cache.source.entry import Entry
from epistream.loader.shards.shard_entry import read_index
from epistream.lru import Lru
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex

Int64 = NDArray[np.int64]

# Requests at a time over all shards of a batch. Each waits for the network most of the time.
_PARALLEL = 16


@dataclass(frozen=True, eq=False)
class ColdShard:
    """A shard to be read by ranges.

    Args:
        number: of the shard in its dataset.
        source: what it is.
        entry: it, opened directly.
        is_kept: whether a reader keeps it for later batches; else it is closed after this one.
        names: what the dataset calls its features otherwise.
    """

    number: int
    source: Entry
    entry: OpenEntry
    is_kept: bool
    names: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Wanted:
    """What R windows read of one cold shard.

    Args:
        cold: the shard.
        rows: (R,) of the batch.
        episodes: (R,) position in the shard of each window's episode.
        steps: feature -> (R, n) steps.
    """

    cold: ColdShard
    rows: Int64
    episodes: Int64
    steps: Mapping[str, Int64]


class ColdReads:
    """Brings what batches need of cold shards, many requests at a time. Keeps the indexes that it has seen.

    Args:
        features: what is read.
        max_indexes: indexes kept from batch to batch.
    """

    def __init__(self, features: Mapping[str, Feature], max_indexes: int) -> None:
        self._features = dict(features)
        self._indexes: Lru[str, ShardIndex] = Lru(max_indexes)

    def bring(self, wanted: Sequence[Wanted]) -> list[ShardIndex]:
        """Read the indexes of cold shards, and the blocks that hold what is wanted; all at the same time.

        Returns:
            The index of each shard. Reads of what was wanted wait for nothing from now on; every block was checked.

        Raises:
            FetchError, ChecksumError, FormatError: one of them cannot be read so.
        """
        pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="epistream-cold")
        try:
            known = [self._indexes.get(one.cold.source.key) for one in wanted]
            started = [pool.submit(self._bring_one, *one, pool) for one in zip(wanted, known, strict=True)]
            indexes = []
            for future in started:
                index, blocks = future.result()
                for block in blocks:
                    block.result()
                indexes.append(index)
            # Last, so that nobody waits for other processes while there is something to request.
            left = [request for one in wanted for request in one.cold.entry.blobs[0].requests_left()]
            for block in [pool.submit(request) for request in left]:
                block.result()
        finally:
            pool.shutdown(cancel_futures=True)
        for one, index in zip(wanted, indexes, strict=True):
            self._indexes.put(one.cold.source.key, index)
        return indexes

    def forget(self) -> None:
        """Drop the indexes: no more cold shards are expected."""
        self._indexes.clear()

    def _bring_one(
        self, wanted: Wanted, index: ShardIndex | None, pool: ThreadPoolExecutor
    ) -> tuple[ShardIndex, list[Future[object]]]:
        """The index of one shard, read if it is not known, and the requests for its blocks, which are under way."""
        cold = wanted.cold
        tar, index_blob = cold.entry.blobs
        if index is None:
            index = read_index(index_blob, cold.source, cold.names)
        if not tar.has_ranges:
            return index, []
        if len(index.block_checksums):  # pieces of files as they are have none
            tar.check_with(index.block_checksums, index.block_bytes)
        ranges = list(_ranges(index, self._features, wanted))
        if not ranges:
            return index, []
        starts, sizes = (np.concatenate(part) for part in zip(*ranges, strict=True))
        return index, [pool.submit(request) for request in tar.requests(starts, sizes)]


def _ranges(index: ShardIndex, features: Mapping[str, Feature], wanted: Wanted) -> Iterable[tuple[Int64, Int64]]:
    """Starts and sizes in bytes of what the wanted windows read, per feature that the index does not hold itself."""
    for name, feature in features.items():
        if feature.kind == "frames":
            rows = np.unique(wanted.steps[name] + index.first_row[wanted.episodes][:, None])
            if name in index.videos:  # and what these depend on
                rows = np.concatenate([run.rows for run in index.runs(name, rows)])
            yield index.frame_offset[name][rows].astype(np.int64), index.frame_size[name][rows].astype(np.int64)
        elif name not in index.values:
            offsets = index.array_offset[name][wanted.episodes].astype(np.int64)[:, None]
            starts = np.unique(offsets + wanted.steps[name] * feature.step_bytes)
            yield starts, np.full(len(starts), feature.step_bytes, np.int64)
