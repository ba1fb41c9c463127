"""Shards that are not in the cache yet, read by ranges: the first batches do not wait for whole shards."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import OpenEntry
from epistream.cache.range_blob import RangeBlob
from epistream.sharding.features import Feature
from epistream.sharding.index import ShardIndex

Int64 = NDArray[np.int64]

# Requests at a time over all shards of a batch. Each waits for the network most of the time.
_PARALLEL = 16


@dataclass(frozen=True)
class ColdShard:
    """A shard to be read by ranges.

    Args:
        shard: its position in the dataset.
        entry: opened without waiting.
        index_url: for messages.
        episodes: (R,) position in the shard of each wanted window's episode.
        steps: feature -> (R, n) wanted steps.
    """

    shard: int
    entry: OpenEntry
    index_url: str
    episodes: Int64
    steps: Mapping[str, Int64]


def bring(cold: Sequence[ColdShard], features: Mapping[str, Feature]) -> dict[int, ShardIndex]:
    """Read the indexes of cold shards, and the blocks that hold what is wanted; all at the same time.

    Returns:
        The index of each shard. Reads of what was wanted wait for nothing from now on, and every block was checked.

    Raises:
        FetchError, ChecksumError, FormatError: one of them cannot be read so.
    """
    if not cold:
        return {}
    num_threads = min(len(cold), _PARALLEL)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="epistream-cold") as pool:
        indexes = pool.map(lambda one: _bring_one(one, features, _PARALLEL // num_threads), cold)
        return {one.shard: index for one, index in zip(cold, indexes, strict=True)}


def _bring_one(cold: ColdShard, features: Mapping[str, Feature], parallel: int) -> ShardIndex:
    tar, index_blob = cold.entry.blobs
    index = ShardIndex.parse(index_blob.read(0, index_blob.size), cold.index_url)
    if isinstance(tar, RangeBlob):
        tar.check_with(index.block_checksums, index.block_bytes)
        ranges = list(_ranges(index, features, cold))
        starts, sizes = (np.concatenate(part) for part in zip(*ranges, strict=True))
        tar.want(starts, sizes, parallel)
    return index


def _ranges(index: ShardIndex, features: Mapping[str, Feature], cold: ColdShard) -> Iterable[tuple[Int64, Int64]]:
    """Starts and sizes in bytes of what the wanted windows read, per feature."""
    for name, feature in features.items():
        if feature.kind == "frames":
            rows = np.unique(cold.steps[name] + index.first_row[cold.episodes][:, None])
            yield index.frame_offset[name][rows].astype(np.int64), index.frame_size[name][rows].astype(np.int64)
        else:
            offsets = index.array_offset[name][cold.episodes].astype(np.int64)[:, None]
            starts = np.unique(offsets + cold.steps[name] * feature.step_bytes)
            yield starts, np.full(len(starts), feature.step_bytes, np.int64)
