"""What a dataset keeps of the index of a shard, and the columns of many shards put together."""

from collections.abc import Sequence
from dataclasses import dataclass

import natsort
import numpy as np

from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.manifest_columns import Int64, ManifestColumns, default_ranges, hex_rows


@dataclass(frozen=True, eq=False)
class ShardSummary:
    """One shard with E episodes: its index is a thousand times larger, and there may be 1e5 of them.

    Args:
        name: File name of the tar, or of the HDF5 file.
        split: Of all its episodes.
        num_bytes: Size of the tar.
        checksum: XXH3-128 of the tar, hexadecimal.
        index_bytes: Size of the index.
        index_checksum: XXH3-128 of the index, hexadecimal.
        episodes: Their descriptions.
        numbers: (E,) where they stand in the dataset, but for gaps.
    """

    name: str
    split: str
    num_bytes: int
    checksum: str
    index_bytes: int
    index_checksum: str
    episodes: tuple[EpisodeMeta, ...]
    numbers: Int64

    @staticmethod
    def of(index: ShardIndex, index_data: bytes) -> "ShardSummary":
        """The summary of an index and its file."""
        return ShardSummary(
            name=index.shard_name,
            split=index.episodes[0].split,
            num_bytes=index.shard_bytes,
            checksum=index.shard_checksum,
            index_bytes=len(index_data),
            index_checksum=checksum(index_data),
            episodes=tuple(index.episodes),
            numbers=np.array([meta.episode_index for meta in index.episodes], np.int64),
        )


def splits_of(shards: Sequence[ShardSummary]) -> tuple[str, ...]:
    """The splits that there are, ``train`` first."""
    names = natsort.natsorted({shard.split for shard in shards})
    return tuple(sorted(names, key=lambda name: name != "train"))


def join_shards(
    shards: Sequence[ShardSummary], splits: Sequence[str]
) -> tuple[ManifestColumns, tuple[str, ...], list[EpisodeMeta]]:
    """The columns, the instructions in the order of first use, and the episodes in the order of the dataset."""
    metas = [meta for shard in shards for meta in shard.episodes]
    counts = [len(shard.episodes) for shard in shards]
    order = np.argsort(np.concatenate([shard.numbers for shard in shards]), kind="stable")
    ordered = [metas[row] for row in order]
    length = np.array([meta.length for meta in ordered], np.int64)
    task_number: dict[str, int] = {}
    task_ids = [task_number.setdefault(task, len(task_number)) for meta in ordered for task in meta.tasks]
    if all(meta.valid_ranges is None for meta in ordered):
        range_offsets, ranges = default_ranges(length)
    else:
        lists = [((0, meta.length),) if meta.valid_ranges is None else meta.valid_ranges for meta in ordered]
        range_offsets = _offsets([len(one) for one in lists])
        ranges = np.array([pair for one in lists for pair in one], np.int64).reshape(-1, 2)
    columns = ManifestColumns(
        names=tuple(shard.name for shard in shards),
        shard_bytes=np.array([shard.num_bytes for shard in shards], np.int64),
        shard_checksums=hex_rows([shard.checksum for shard in shards]),
        index_bytes=np.array([shard.index_bytes for shard in shards], np.int64),
        index_checksums=hex_rows([shard.index_checksum for shard in shards]),
        shard_split=np.array([splits.index(shard.split) for shard in shards], np.uint8),
        episode_shard=np.repeat(np.arange(len(shards)), counts)[order],
        episode_in_shard=np.concatenate([np.arange(count) for count in counts])[order],
        episode_length=length,
        range_offsets=range_offsets,
        ranges=ranges,
        task_offsets=_offsets([len(meta.tasks) for meta in ordered]),
        task_ids=np.array(task_ids, np.int64),
    )
    return columns, tuple(task_number), ordered


def _offsets(counts: Sequence[int]) -> Int64:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
