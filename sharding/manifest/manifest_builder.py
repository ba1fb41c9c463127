"""How a job puts a manifest together from the indexes of its shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import natsort
import numpy as np

from epistream.errors import FormatError
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.feature_sets import describe_difference, with_longest_groups
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.dataset_statistics import NO_MORE, MoreStatistics
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_columns import Int64, ManifestColumns, hex_rows, offsets_of
from epistream.sharding.manifest.sources import Source, Sources
from epistream.sharding.manifest.stored_records import NO_RECORDS, Records


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
        records: (E,) what is known of each; None if nothing is.
    """

    name: str
    split: str
    num_bytes: int
    checksum: str
    index_bytes: int
    index_checksum: str
    episodes: tuple[EpisodeMeta, ...]
    numbers: Int64
    records: EpisodeRecords | None = None

    @staticmethod
    def of(index: ShardIndex, index_data: bytes, records: EpisodeRecords | None = None) -> "ShardSummary":
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
            records=records,
        )


def join_records(shards: Sequence[ShardSummary]) -> Records:
    """Those of all episodes, in the order of the dataset; none if any shard has none."""
    parts = [shard.records for shard in shards if shard.records is not None]
    if len(parts) < len(shards):
        return NO_RECORDS
    order = np.argsort(np.concatenate([shard.numbers for shard in shards]), kind="stable")
    return Records.of(EpisodeRecords.join(parts).select(order))


def splits_of(shards: Sequence[ShardSummary]) -> tuple[str, ...]:
    """The splits that there are, ``train`` first."""
    names = natsort.natsorted({shard.split for shard in shards})
    return tuple(sorted(names, key=lambda name: name != "train"))


def join_shards(
    shards: Sequence[ShardSummary], splits: Sequence[str]
) -> tuple[ManifestColumns, Texts, list[EpisodeMeta]]:
    """The columns, the instructions in the order of first use, and the episodes in the order of the dataset."""
    metas = [meta for shard in shards for meta in shard.episodes]
    counts = [len(shard.episodes) for shard in shards]
    order = np.argsort(np.concatenate([shard.numbers for shard in shards]), kind="stable")
    ordered = [metas[row] for row in order]
    length = np.array([meta.length for meta in ordered], np.int64)
    task_number: dict[str, int] = {}
    task_ids = [task_number.setdefault(task, len(task_number)) for meta in ordered for task in meta.tasks]
    range_offsets = ranges = None
    if any(meta.valid_ranges not in (None, ((0, meta.length),)) for meta in ordered):
        lists = [((0, meta.length),) if meta.valid_ranges is None else meta.valid_ranges for meta in ordered]
        range_offsets = offsets_of([len(one) for one in lists])
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
        task_offsets=offsets_of([len(meta.tasks) for meta in ordered]),
        task_ids=np.array(task_ids, np.int64),
    )
    return columns, Texts.of(task_number, "tasks"), ordered


class ManifestBuilder:
    """Collects the shards of a dataset, in any order, and makes the manifest. Single-threaded; does no I/O.

    Everything comes from the shards' indexes, so a job that resumes adds the shards it finds complete just as it
    adds those that it writes::

        builder = ManifestBuilder(features, splits=("train", "val"))
        for path in folder.glob("shard-*.index"):
            data = path.read_bytes()
            builder.add_shard(ShardIndex.parse(data, path.name), data)
        manifest = builder.build(statistics=statistics, statistics_split="train", sources=sources, provenance={...})
        write_manifest(manifest, "out/")
    """

    def __init__(self, features: Mapping[str, Feature] | None = None, splits: Sequence[str] | None = None) -> None:
        """Start without shards.

        Args:
            features: That every shard must have; None for those of the first one.
            splits: Their names in order; None for those of the shards, ``train`` first.
        """
        self._features, self._splits = dict(features or {}), None if splits is None else tuple(splits)
        self._shards: dict[str, ShardSummary] = {}

    def add_shard(self, index: ShardIndex, index_data: bytes, records: EpisodeRecords | None = None) -> None:
        """Take a shard that is complete. Keeps nothing of the index but its episodes' descriptions.

        Args:
            index: Its index.
            index_data: The same as written to disk.
            records: Of its episodes, in its order.

        Raises:
            FormatError: If its features are not the dataset's, its split is unknown, or its name was added before.
        """
        self.add(ShardSummary.of(index, index_data, records), index.features)

    def add(self, shard: ShardSummary, features: Mapping[str, Feature]) -> None:
        """Take a shard of which no more is at hand than a summary, and its features.

        Raises:
            FormatError: As `add_shard`.
        """
        self._features = with_longest_groups(self._features or dict(features), features)
        difference = describe_difference(features, self._features)
        if difference:
            raise FormatError(
                f"{shard.name}: {difference}, wanted the features of the shards before it. Pack all with "
                "the same options."
            )
        if self._splits is not None and shard.split not in self._splits:
            raise FormatError(f"{shard.name}: split {shard.split!r}, wanted one of {', '.join(self._splits)}.")
        if shard.name in self._shards:
            raise FormatError(f"{shard.name}: added twice, wanted each shard once.")
        self._shards[shard.name] = shard

    def build(
        self,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
        statistics_split: str | None = None,
        sources: Sequence[Source] | None = None,
        provenance: Mapping[str, Any] | None = None,
        *,
        more: MoreStatistics = NO_MORE,
        renumber: bool = False,
    ) -> Manifest:
        """The manifest of all shards added. Episodes are ordered by `EpisodeMeta.episode_index`.

        Args:
            statistics: Of each array feature.
            statistics_split: The split they were computed on; wanted with `statistics`.
            sources: Files that episodes came from, linked by `EpisodeMeta.source`; None for those that episodes
                name, of which no more is known.
            provenance: Whatever else is worth keeping, as JSON can hold it.
            more: What else is known of the values.
            renumber: If indexes of episodes collide, take the order in which shards were added.

        Raises:
            FormatError: If there is no shard, two episodes have one index, or the statistics do not fit.
        """
        if not self._shards:
            raise FormatError("manifest: no shards, wanted at least one.")
        numbered = _numbered(list(self._shards.values()), renumber)
        shards = natsort.natsorted(numbered, key=lambda shard: shard.name)
        splits = self._splits or splits_of(shards)
        columns, tasks, ordered = join_shards(shards, splits)
        if sources is None:
            sources = [Source(path) for path in dict.fromkeys(meta.source for meta in ordered) if path]
        source_number = {source.path: number for number, source in enumerate(sources)}
        episode_source = np.array([source_number.get(meta.source, -1) for meta in ordered], np.int64)
        manifest = Manifest(
            features=self._features,
            splits=splits,
            columns=columns,
            tasks=tasks,
            statistics={name: dict(values) for name, values in (statistics or {}).items()},
            statistics_split=statistics_split,
            more=more,
            sources=Sources.of(sources, episode_source),
            records=join_records(shards),
            provenance=dict(provenance or {}),
        )
        manifest.check("manifest")
        return manifest


def _numbered(shards: Sequence[ShardSummary], renumber: bool) -> Sequence[ShardSummary]:
    """The shards with every number of an episode once."""
    everything = np.sort(np.concatenate([shard.numbers for shard in shards]))
    twice = np.flatnonzero(np.diff(everything) == 0)
    if not len(twice):
        return shards
    if not renumber:
        raise FormatError(f"manifest: episode_index {everything[twice[0]]} in two episodes, wanted it once.")
    starts = np.cumsum([0] + [len(shard.episodes) for shard in shards])
    return [
        replace(shard, numbers=start + np.arange(len(shard.episodes)))
        for shard, start in zip(shards, starts[:-1], strict=True)
    ]
